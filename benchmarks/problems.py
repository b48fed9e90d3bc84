"""What is normalized: a norm on data of one shape, layout and dtype, and the sets of these that are timed.

Knows no library but torch, whose tensors hold the data, and times nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

NORMS = {
    "layer_norm": "layer norm",
    "rms_norm": "RMS norm",
    "batch_norm": "batch norm",
    "group_norm": "group norm",
    "instance_norm": "instance norm",
}
ALONG_ROWS = ("layer_norm", "rms_norm")

# From here on, no cell may be slower than torch; below, what a call costs before any work decides.
LARGE = 64 * 1024


class Seen(NamedTuple):
    """How a formula of array operations sees the data: in which shape, over which axes, the weight as which column."""

    view: tuple[int, ...]
    axes: tuple[int, ...]
    column: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """A norm on data of one shape, layout and dtype."""

    norm: str  # a key of NORMS
    shape: tuple[int, ...]  # the channels second, whatever the layout
    groups: int = 1
    channels_last: bool = False
    dtype: str = "float32"
    given: bool = False  # whether the statistics are given, as where batch norm infers

    def __str__(self) -> str:
        groups = f"/{self.groups}" if self.norm == "group_norm" else ""
        layout = " channels last" if self.channels_last else ""
        given = " inferring" if self.given else ""
        return f"{NORMS[self.norm]}{given} ({', '.join(map(str, self.shape))}){groups}{layout}"

    @property
    def elements(self) -> int:
        """Return how many values are normalized."""
        return math.prod(self.shape)

    @property
    def stored(self) -> tuple[int, ...]:
        """Return the shape in the order of memory, which is that of the NumPy array."""
        return (self.shape[0], *self.shape[2:], self.shape[1]) if self.channels_last else self.shape

    @property
    def channel_axis(self) -> int:
        """Return the axis of the stored shape along which the weight lies."""
        return len(self.shape) - 1 if self.channels_last else 1

    @property
    def has_bias(self) -> bool:
        """Return whether there is a bias beside the weight; RMS norm has none in most models."""
        return self.norm != "rms_norm"

    def seen(self) -> Seen:
        """Return how a formula of array operations sees the stored array."""
        shape, channel = self.stored, self.channel_axis
        if self.norm in ALONG_ROWS:
            return Seen(shape, (1,), shape[1:])
        if self.norm == "group_norm":
            split = (self.groups, shape[channel] // self.groups)
            view = (*shape[:channel], *split, *shape[channel + 1 :])
            axes = tuple([axis for axis in range(len(view)) if axis not in (0, channel)])
            return Seen(view, axes, (*split, *[1] * (len(view) - channel - 2)))
        kept = (channel,) if self.norm == "batch_norm" else (0, channel)
        axes = tuple([axis for axis in range(len(shape)) if axis not in kept])
        return Seen(shape, axes, (shape[channel], *[1] * (len(shape) - channel - 1)))


class Arrays(NamedTuple):
    """The data of a problem, all of one library; bias is None where there is none."""

    x: Any
    dy: Any
    weight: Any
    bias: Any


class Data:
    """Easy data of a problem, as torch tensors and as NumPy arrays of the very same memory."""

    def __init__(self, problem: Problem) -> None:
        import torch

        generator = torch.Generator().manual_seed(problem.elements)
        dtype = getattr(torch, problem.dtype)

        def values(*shape: int) -> Any:
            return torch.randn(shape, generator=generator).to(dtype)

        self.problem = problem
        x, dy = values(*problem.stored), values(*problem.stored)
        weight = values(problem.shape[1])
        self._stored = Arrays(x, dy, weight, values(problem.shape[1]) if problem.has_bias else None)

    @property
    def torch(self) -> Arrays:
        """Return tensors whose channels are second, as torch counts them, whatever the layout."""
        x, dy, weight, bias = self._stored
        if self.problem.channels_last:
            x, dy = x.movedim(-1, 1), dy.movedim(-1, 1)
        return Arrays(x, dy, weight, bias)

    @property
    def numpy(self) -> Arrays:
        """Return NumPy arrays in the order of memory."""
        return Arrays(*[None if tensor is None else tensor.numpy() for tensor in self._stored])


def _layouts(norm: str, *shape: int, groups: int = 1) -> tuple[Problem, Problem]:
    return Problem(norm, shape, groups), Problem(norm, shape, groups, channels_last=True)


_SIZES = ((8, 64), (512, 768), (4096, 1024), (16384, 4096))

# The shapes of the first table: the five norms at sizes that networks have.
NAMED = (
    *[Problem(norm, shape) for norm in ALONG_ROWS for shape in _SIZES],
    *_layouts("batch_norm", 32, 64, 56, 56),
    *_layouts("group_norm", 8, 256, 32, 32, groups=32),
    *_layouts("instance_norm", 8, 64, 128, 128),
)
HALVES = tuple([replace(problem, dtype=dtype) for dtype in ("bfloat16", "float16") for problem in NAMED])
DOUBLES = tuple([replace(problem, dtype="float64") for problem in (NAMED[1], NAMED[2], NAMED[8], NAMED[10], NAMED[12])])

# One set that only chunks can share out between cores, and sets so short that what surrounds them decides.
LONG = (Problem("layer_norm", (1, 10_000_000)), Problem("layer_norm", (1_000_000, 8)))

# Where the worst cell is looked for, beside the named shapes.
AWKWARD = (
    Problem("layer_norm", (64, 1024)),
    Problem("layer_norm", (512, 768)),
    Problem("layer_norm", (128, 8192)),
    *_layouts("batch_norm", 8, 64, 28, 28),
    Problem("batch_norm", (256, 128)),
    *_layouts("batch_norm", 32, 512, 7, 7),
    *_layouts("group_norm", 4, 64, 28, 28, groups=32),
    *_layouts("instance_norm", 4, 64, 32, 32),
)
SMALL = (
    Problem("layer_norm", (8, 64)),
    Problem("layer_norm", (64, 256)),
    Problem("batch_norm", (2, 32, 8, 8)),
    Problem("group_norm", (2, 32, 8, 8), 8),
    Problem("instance_norm", (2, 32, 8, 8)),
)

# Batch norm with the statistics that training has left behind.
INFERRING = tuple(
    [
        replace(problem, given=True)
        for shape in ((2, 32, 8, 8), (8, 64, 28, 28), (32, 64, 56, 56), (32, 512, 7, 7))
        for problem in _layouts("batch_norm", *shape)
    ]
)

# What the libraries beside torch are timed on.
FOR_PEERS = (NAMED[0], NAMED[1], NAMED[2], NAMED[6], *NAMED[8:])

# At least 64 MiB, against the machine's copy: each set fits the cache, so that memory need be read but once, ...
ONE_PASS = (
    Problem("layer_norm", (16384, 4096)),
    Problem("rms_norm", (16384, 4096)),
    Problem("group_norm", (32, 256, 56, 56), 32),
    Problem("instance_norm", (32, 256, 56, 56)),
    Problem("batch_norm", (16, 256, 64, 64)),
)
# ... or some sets do not, so that memory is read twice.
TWO_PASSES = (
    Problem("batch_norm", (32, 64, 112, 112)),
    Problem("batch_norm", (16, 256, 64, 64), channels_last=True),
    Problem("group_norm", (32, 256, 56, 56), 32, channels_last=True),
    Problem("instance_norm", (32, 256, 56, 56), channels_last=True),
)

# A quick run leaves out what is larger.
QUICK_ELEMENTS = 2**23


def quick(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Yield the problems that a quick run times."""
    for problem in problems:
        if problem.elements <= QUICK_ELEMENTS:
            yield problem
