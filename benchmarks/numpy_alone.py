"""anynorm on NumPy arrays, without any engine, against the five-line NumPy formula that people write today.

The five lines are fast and wrong on hard input (their sums are naive along leading axes, their float16 overflows), so
this compares time on easy input only.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import anynorm as an
from anynorm._core.dispatch import bound
from benchmarks.timing import Pair, interleaved, per_call


def without_engine() -> None:
    """Switch the engine off in this process, for good: what is timed here is NumPy alone."""
    sys.modules["numba"] = None  # type: ignore[assignment]  # as if it were not installed: to import it fails


def five_lines(x: Any, axes: tuple[int, ...], weight: Any, bias: Any) -> Any:
    """Normalize over `axes` as one writes it in NumPy."""
    mean = x.mean(axis=axes, keepdims=True)
    var = x.var(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def five_lines_and_back(x: Any, dy: Any, axes: tuple[int, ...], weight: Any, bias: Any) -> tuple[Any, ...]:
    """Normalize over `axes` and return the gradients too, as one writes it in NumPy."""
    mean = x.mean(axis=axes, keepdims=True)
    r = 1 / np.sqrt(x.var(axis=axes, keepdims=True) + 1e-5)
    unit = (x - mean) * r
    g = dy * weight
    dx = r * (g - g.mean(axis=axes, keepdims=True) - unit * (g * unit).mean(axis=axes, keepdims=True))
    shared = tuple([axis for axis in range(-x.ndim, 0) if axis < -weight.ndim or weight.shape[axis] == 1])
    return unit * weight + bias, dx, (dy * unit).sum(axis=shared), dy.sum(axis=shared)


class Kind(NamedTuple):
    """A norm on arrays of one shape; the five lines see them in the shape `view`, weight and bias in `column`."""

    name: str
    function: Callable[..., Any]
    shape: tuple[int, ...]
    arguments: tuple[int, ...]
    options: dict[str, int]
    view: tuple[int, ...]
    axes: tuple[int, ...]
    column: tuple[int, ...]


def _rows(*shape: int) -> Kind:
    return Kind("layer norm", an.layer_norm, shape, (), {}, shape, (1,), (shape[1],))


def _batch(*shape: int, channel: int) -> Kind:
    axes, column = ((0, 2, 3), (shape[1], 1, 1)) if channel == 1 else ((0, 1, 2), (shape[3],))
    return Kind("batch norm", an.batch_norm, shape, (), {"channel_axis": channel}, shape, axes, column)


def _instance(*shape: int, channel: int) -> Kind:
    axes, column = ((2, 3), (shape[1], 1, 1)) if channel == 1 else ((1, 2), (shape[3],))
    return Kind("instance norm", an.instance_norm, shape, (), {"channel_axis": channel}, shape, axes, column)


def _group(*shape: int, channel: int) -> Kind:
    split = (32, shape[channel] // 32)
    view = (*shape[:channel], *split, *shape[channel + 1 :])
    axes, places = ((2, 3, 4), (1, 1)) if channel == 1 else ((1, 2, 4), ())
    return Kind("group norm", an.group_norm, shape, (32,), {"channel_axis": channel}, view, axes, (*split, *places))


KINDS = (
    _rows(512, 768),
    _rows(4096, 1024),
    _rows(16384, 4096),
    _rows(500000, 8),
    _rows(1, 4_000_000),
    _batch(32, 64, 56, 56, channel=1),
    _batch(32, 56, 56, 64, channel=3),
    _batch(32, 224, 224, 3, channel=3),
    _instance(8, 64, 128, 128, channel=1),
    _instance(8, 128, 128, 64, channel=3),
    _group(8, 256, 64, 64, channel=1),
    _group(8, 64, 64, 256, channel=3),
)


class Case(NamedTuple):
    """A norm on an array, ours and theirs."""

    name: str
    direction: str
    x: Any
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


def cases(dtype: str) -> Iterator[Case]:
    """Yield the cases, forward and then forward and backward, made one at a time: they are large."""
    for kind in KINDS:
        x, dy = _array(dtype, *kind.shape), _array(dtype, *kind.shape)[::-1].copy()
        w, b = [_array(dtype, math.prod(kind.column)) for _ in range(2)]
        arguments = (x, *kind.arguments)
        theirs, its_dy, its_w, its_b = (
            x.reshape(kind.view),
            dy.reshape(kind.view),
            *[a.reshape(kind.column) for a in (w, b)],
        )
        ours = _call(kind.function, *arguments, weight=w, bias=b, **kind.options)
        yield Case(kind.name, "forward", x, ours, _call(five_lines, theirs, kind.axes, its_w, its_b))
        ours = _call(_there_and_back, dy, kind.function, *arguments, weight=w, bias=b, **kind.options)
        yield Case(kind.name, "both", x, ours, _call(five_lines_and_back, theirs, its_dy, kind.axes, its_w, its_b))


def _there_and_back(dy: Any, *arguments: Any, **options: Any) -> Any:
    y, pullback = an.vjp(*arguments, **options)
    return y, pullback(dy)


def _array(dtype: str, *shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(dtype)


def _call(function: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Any]:
    return partial(function, *args, **options)


def run(case: Case, rounds: int) -> Pair:
    """Time one case."""
    return interleaved(case.ours, case.theirs, rounds=rounds, at_least=0.02)


def overhead() -> dict[str, float]:
    """Return microseconds: a whole call on a small array, and dispatch itself; best of 15."""
    x, w, b = np.ones((8, 64), np.float32), np.ones(64, np.float32), np.zeros(64, np.float32)
    timed = {
        "layer_norm of (8, 64) float32": _call(an.layer_norm, x, w, b),
        "five lines of (8, 64) float32": _call(five_lines, x, (1,), w, b),
        "of which finding what runs it": _call(bound, an.layer_norm, (x, w, b), {}),
    }
    return {name: min(per_call(value, 500) for _ in range(15)) * 1e6 for name, value in timed.items()}
