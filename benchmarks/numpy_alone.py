"""anynorm on NumPy arrays, without any engine, against the five-line NumPy formula that people write today.

The five lines are fast and wrong on hard input (their sums are naive along leading axes, their float16 overflows), so
this compares time on easy input only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import anynorm as an
from anynorm._dispatch import library_of, why_formula
from anynorm.layer_norm import layer_norm_call
from benchmarks.timing import Pair, interleaved, per_call


def five_lines(x: Any, axes: tuple[int, ...], weight: Any, bias: Any) -> Any:
    """Normalize over `axes` as one writes it in NumPy."""
    mean = x.mean(axis=axes, keepdims=True)
    var = x.var(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


class Case(NamedTuple):
    """A norm on an array, ours and theirs."""

    name: str
    x: Any
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


def cases(dtype: str) -> Iterator[Case]:
    """Yield the cases, made one at a time: they are large."""
    for rows, length in ((512, 768), (4096, 1024), (16384, 4096), (500000, 8), (1, 4_000_000)):
        x, w, b = _array(dtype, rows, length), _array(dtype, length), _array(dtype, length)
        yield Case("layer norm", x, _call(an.layer_norm, x, w, b), _call(five_lines, x, (1,), w, b))
    for shape in ((32, 64, 56, 56), (32, 56, 56, 64), (32, 224, 224, 3)):
        yield _by_channel("batch norm", an.batch_norm, dtype, shape)
    for shape in ((8, 64, 128, 128), (8, 128, 128, 64)):
        yield _by_channel("instance norm", an.instance_norm, dtype, shape)
    for channel, split, axes in ((1, (8, 32, 8, 64, 64), (2, 3, 4)), (3, (8, 64, 64, 32, 8), (1, 2, 4))):
        shape = (8, 256, 64, 64) if channel == 1 else (8, 64, 64, 256)
        x, w, b = _array(dtype, *shape), _array(dtype, 256), _array(dtype, 256)
        groups = (32, 8, 1, 1) if channel == 1 else (32, 8)
        theirs = _call(five_lines, x.reshape(split), axes, w.reshape(groups), b.reshape(groups))
        yield Case("group norm", x, _call(an.group_norm, x, 32, w, b, channel_axis=channel), theirs)


def _by_channel(name: str, norm: Callable[..., Any], dtype: str, shape: tuple[int, ...]) -> Case:
    """Return a batch or instance norm; the channels lie along axis 1, or last if that is shorter or of 64."""
    channel = 3 if shape[3] in (3, 64) else 1
    x, w, b = _array(dtype, *shape), _array(dtype, shape[channel]), _array(dtype, shape[channel])
    kept = (channel,) if norm is an.batch_norm else (0, channel)
    axes = tuple(axis for axis in range(4) if axis not in kept)
    column = (-1,) if channel == 3 else (-1, 1, 1)
    theirs = _call(five_lines, x, axes, w.reshape(column), b.reshape(column))
    return Case(name, x, _call(norm, x, weight=w, bias=b, channel_axis=channel), theirs)


def _array(dtype: str, *shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(dtype)


def _call(function: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: function(*args, **options)


def run(case: Case, rounds: int) -> Pair:
    """Time one case."""
    return interleaved(case.ours, case.theirs, rounds=rounds, at_least=0.02)


def overhead() -> dict[str, float]:
    """Return microseconds: a whole call on a small array, its checks and plan, and dispatch itself; best of 15."""
    x, w, b = np.ones((8, 64), np.float32), np.ones(64, np.float32), np.zeros(64, np.float32)
    call = layer_norm_call(x, w, b)
    timed = {
        "layer_norm of (8, 64) float32": _call(an.layer_norm, x, w, b),
        "five lines of (8, 64) float32": _call(five_lines, x, (1,), w, b),
        "of which checks and plan": _call(layer_norm_call, x, w, b),
        "of which choosing the backend": _call(why_formula, call),
        "of which finding the library by type": _call(library_of, "layer_norm", "x", x),
    }
    return {name: min(per_call(its, 500) for _ in range(15)) * 1e6 for name, its in timed.items()}
