"""Eager calls on JAX arrays on the CPU: by the engine, and by the formula that XLA compiles, in turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

import anynorm
import anynorm_numba
from anynorm._core import cache

an: Any = anynorm

# Name of the function, shape of x, and what follows x.
CALLS: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    ("layer_norm", (8, 64), ()),
    ("layer_norm", (512, 768), ()),
    ("layer_norm", (4096, 1024), ()),
    ("batch_norm", (32, 64, 56, 56), ()),
    ("group_norm", (8, 256, 32, 32), (32,)),
)


class Row(NamedTuple):
    """A call's microseconds, the lower quartile of many, and the median of XLA's time over the engine's."""

    call: str
    xla: float
    engine: float
    ratio: float


def rows(dtype: str, seconds: float) -> Iterator[Row]:
    """Time each call, forward and with its pullback, for so many seconds."""
    jax = import_module("jax")
    for name, shape, groups in CALLS:
        numbers = np.random.default_rng(0)
        channels = shape[-1] if name == "layer_norm" else shape[1]
        drawn = [numbers.normal(size=own).astype("float32") for own in (shape, shape, channels, channels)]
        x, dy, weight, bias = [jax.device_put(array).astype(dtype) for array in drawn]
        for way in ("forward", "both"):
            call = _call(getattr(an, name), x, groups, {"weight": weight, "bias": bias}, dy if way == "both" else None)
            yield Row(f"{name} {shape} {way}", *_timed(jax, call, seconds))


def report(found: Iterator[Row]) -> None:
    """Print the rows as they come."""
    print(f"{'':40} {'XLA, µs':>10} {'engine, µs':>10} {'ratio':>6}")
    for row in found:
        print(f"{row.call:40} {row.xla:10.0f} {row.engine:10.0f} {row.ratio:6.2f}", flush=True)


def _call(
    function: Callable[..., Any], x: Any, groups: tuple[int, ...], parameters: dict[str, Any], dy: Any
) -> Callable[[], Any]:
    if dy is None:
        return lambda: function(x, *groups, **parameters)

    def both() -> Any:
        y, pullback = an.vjp(function, x, *groups, **parameters)
        return y, pullback(dy)

    return both


def _timed(jax: Any, call: Callable[[], Any], seconds: float) -> tuple[float, float, float]:
    entries: dict[Any, Any] = {}  # the signatures that XLA serves
    by_xla: list[float] = []
    by_engine: list[float] = []
    end = time.perf_counter() + seconds
    while len(by_engine) < 12 or time.perf_counter() < end:
        with (
            mock.patch.object(cache, "entries", entries),
            mock.patch.object(anynorm_numba, "missing", return_value="it is timed without"),
        ):
            by_xla.append(_microseconds(jax, call))
        by_engine.append(_microseconds(jax, call))
    by_xla, by_engine = by_xla[2:], by_engine[2:]  # the first compile
    ratio = statistics.median([one / other for one, other in zip(by_xla, by_engine, strict=True)])
    return statistics.quantiles(by_xla)[0], statistics.quantiles(by_engine)[0], ratio


def _microseconds(jax: Any, call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return (time.perf_counter() - begin) * 1e6
