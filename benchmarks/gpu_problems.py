"""What is normalized on a GPU, how many bytes that has to move, and which number to reach it counts for.

Touches no array and knows no library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from benchmarks.problems import ALONG_ROWS, Problem

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
DTYPES = tuple(BYTES)

FORWARD, BACKWARD = "forward", "backward"
HOST_FORWARD, HOST_BOTH = "host time, forward", "host time, forward + backward"

# Arrays that have to be moved: x is read and y written; x and dy are read and dx is written.
MOVED = {FORWARD: 2, BACKWARD: 3}
READ = {FORWARD: 1, BACKWARD: 2}

# From here on, percentages of a copy are numbers to reach: below, starting and ending a kernel decides.
LARGE_BYTES = 2**27

# Bytes of x in a set that is held on the chip between two passes: forward x, backward x and dy.
HELD = {FORWARD: 2**20, BACKWARD: 2**19}

# Bytes of columns that are read side by side.
STRIP = 128

# Channels last, all that is read is still in the second-level cache when it is read again: up to so many bytes. Below
# the first number a copy takes no longer than starting the kernels does.
RESIDENT = (2**23, 30_000_000)


def size(problem: Problem) -> int:
    """Return the bytes of x."""
    return problem.elements * BYTES[problem.dtype]


def moved(problem: Problem, direction: str) -> int:
    """Return the bytes that have to be moved, whatever the way: weights and statistics do not count."""
    return MOVED[direction] * size(problem)


def set_size(problem: Problem) -> int:
    """Return the bytes of the elements of x that share a statistic."""
    batch, channels = problem.shape[:2]
    match problem.norm:
        case "batch_norm":
            sets = channels
        case "group_norm":
            sets = batch * problem.groups
        case "instance_norm":
            sets = batch * channels
        case _:
            sets = batch
    return size(problem) // sets


def row_size(problem: Problem) -> int:
    """Return the bytes of a row of layer or RMS norm."""
    return problem.shape[1] * BYTES[problem.dtype]


def inputs_for(problem: Problem, direction: str, cache: int) -> int:
    """Return how many inputs take turns, so that no call finds in the cache what an earlier one has left there.

    Together they, and as many results, take more than twice the cache; there are at least two.
    """
    return max(2, 2 * cache // (READ[direction] * size(problem)) + 1)


def held(problem: Problem, direction: str) -> bool:
    """Return whether sets of a problem stay on the chip between two passes.

    Channels last it is a strip of columns that stays, whole groups of them: as many rows forward as backward.
    """
    if not problem.channels_last:
        return set_size(problem) <= HELD[direction]
    channels = set_size(problem) // BYTES[problem.dtype] // _rows_of_a_set(problem)
    return max(STRIP, channels * BYTES[problem.dtype]) * _rows_of_a_set(problem) <= HELD[BACKWARD]


def _rows_of_a_set(problem: Problem) -> int:
    """Return how many elements of each of its channels a set has."""
    batch, _, *inner = problem.shape
    return math.prod(inner) * (batch if problem.norm == "batch_norm" else 1)


def resident(problem: Problem, direction: str) -> bool:
    """Return whether all that is read stays in the second-level cache."""
    return RESIDENT[0] <= READ[direction] * size(problem) <= RESIDENT[1]


def _rows(elements: int, lengths: Iterable[int], dtypes: Iterable[str]) -> tuple[Problem, ...]:
    return tuple(
        [
            Problem(norm, (elements // length, length), dtype=dtype)
            for dtype in dtypes
            for norm in ALONG_ROWS
            for length in lengths
        ]
    )


def _layouts(norm: str, *shape: int, groups: int = 1, dtypes: Iterable[str] = ("bfloat16",)) -> tuple[Problem, ...]:
    first = Problem(norm, shape, groups)
    return tuple([replace(first, dtype=dtype, channels_last=last) for dtype in dtypes for last in (False, True)])


LENGTHS = tuple([2**power for power in range(6, 19)])
ELEMENTS, FEWER_ELEMENTS = 2**27, 2**24

# Layer and RMS norm, as much data for every length.
ROWS = _rows(ELEMENTS, LENGTHS, DTYPES)
FEWER_ROWS = _rows(FEWER_ELEMENTS, LENGTHS, DTYPES)
# Every other length, for peers that take long; and those that compile something for each length, or convert.
SOME_ROWS = _rows(ELEMENTS, LENGTHS[::2], DTYPES)
FEW_ROWS = _rows(ELEMENTS, (1024, 4096, 16384, 65536), ("bfloat16",))

_BOTH = ("bfloat16", "float32")

# ResNet-50 at batches of 32 and 256; the U-Net and the decoder of Stable Diffusion; style transfer; nnU-Net.
NETWORKS = (
    *_layouts("batch_norm", 256, 512, 28, 28),
    *_layouts("batch_norm", 256, 1024, 14, 14, dtypes=_BOTH),
    *_layouts("batch_norm", 256, 256, 56, 56),
    *_layouts("batch_norm", 256, 64, 112, 112),
    *_layouts("batch_norm", 32, 64, 112, 112),
    *_layouts("batch_norm", 32, 256, 56, 56, dtypes=_BOTH),
    *_layouts("batch_norm", 32, 512, 28, 28),
    *_layouts("batch_norm", 32, 2048, 7, 7),
    *_layouts("group_norm", 64, 320, 64, 64, groups=32, dtypes=DTYPES),
    *_layouts("group_norm", 64, 640, 32, 32, groups=32),
    *_layouts("group_norm", 8, 320, 64, 64, groups=32),
    *_layouts("group_norm", 8, 1280, 16, 16, groups=32),
    *_layouts("group_norm", 4, 128, 512, 512, groups=32),
    *_layouts("instance_norm", 32, 64, 256, 256, dtypes=_BOTH),
    *_layouts("instance_norm", 2, 128, 64, 64, 64),
    *_layouts("instance_norm", 2, 32, 128, 128, 128),
)
FEW_NETWORKS = tuple(
    [
        problem
        for problem in NETWORKS
        if problem.dtype == "bfloat16"
        and problem.shape in ((256, 512, 28, 28), (64, 320, 64, 64), (32, 64, 256, 256))
        and not problem.channels_last
    ]
)

# Rows that no vector divides, and few channels.
AWKWARD = (
    *_rows(ELEMENTS, (1000, 4097), _BOTH),
    *_layouts("batch_norm", 256, 3, 224, 224),
    *_layouts("instance_norm", 64, 3, 512, 512),
    *_layouts("group_norm", 64, 6, 256, 256, groups=3),
)

# Where the time of a call is the time that Python takes for it.
TINY = (
    Problem("layer_norm", (8, 64)),
    Problem("rms_norm", (8, 64)),
    Problem("batch_norm", (4, 32, 4, 4)),
    Problem("group_norm", (4, 32, 4, 4), 8),
    Problem("instance_norm", (4, 32, 4, 4)),
)

QUICK = (
    *_rows(ELEMENTS, (1024, 8192, 65536), ("bfloat16",)),
    *[problem for problem in NETWORKS if problem.dtype == "bfloat16" and problem.shape == (256, 512, 28, 28)],
    *[problem for problem in NETWORKS if problem.dtype == "bfloat16" and problem.shape == (64, 320, 64, 64)],
    *TINY[:1],
)
