"""Arrays that run backwards along kept axes, as x[::-1] does: served by the engine, with the bits of those that do not.

What is compared with lies forwards in memory and holds the same numbers.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from engine_runs import in_threads, watched
from libraries import NumPyArray

import anynorm as an

pytest.importorskip("numba")

Index = tuple[slice, ...]

# Lengths of x, in the order of memory; from x's axes to that order; and the axes that each norm keeps there without
# the one that its kernels want innermost.
MEMORIES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "rows": ((5, 6, 8, 9), (0, 1, 2, 3)),
    "channels_last": ((5, 8, 9, 6), (0, 2, 3, 1)),
    "channels_first": ((6, 5, 8, 9), (1, 0, 2, 3)),
}

W = np.linspace(-1, 2, 6)
ALONG = np.linspace(0.5, 2, 9)
CHANNELS: dict[str, Any] = {"weight": W, "bias": W}

# The function, its numbers and arrays, and by memory the kept axes of x along which kernels take any step.
CALLS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "layer": (an.layer_norm, (), {"weight": ALONG, "bias": ALONG}, {"rows": (0, 1, 2), "channels_first": (0, 1, 2)}),
    "layer-plain": (
        an.layer_norm,
        (),
        {"axis": (2, 3)},
        {"rows": (0, 1), "channels_last": (0,), "channels_first": (0, 1)},
    ),
    "rms": (an.rms_norm, (), {"weight": ALONG}, {"rows": (0, 1, 2), "channels_first": (0, 1, 2)}),
    "group": (an.group_norm, (3,), CHANNELS, {"rows": (0,), "channels_last": (0,)}),
    "instance": (an.instance_norm, (), CHANNELS, {"rows": (0, 1), "channels_last": (0,), "channels_first": (0, 1)}),
    "batch": (an.batch_norm, (), CHANNELS, {"rows": (1,), "channels_first": (1,)}),
    "given": (an.batch_norm, (), CHANNELS | {"mean": W, "var": W * W}, {"rows": (1,), "channels_first": (1,)}),
}


def cuts(axes: tuple[int, ...], order: tuple[int, ...], kept: tuple[int, ...]) -> list[int]:
    """Return where axes that are kept are no longer one, because one of two neighbours runs backwards.

    With two such places there are three of them, and a view has two.
    """
    turned = [axis in axes for axis in order if axis in kept]
    return [place for place in range(1, len(turned)) if turned[place] != turned[place - 1]]


CASES = [
    pytest.param(name, memory, axes, id=f"{name}-{memory}-{''.join(map(str, axes))}")
    for name, (*_, kept) in CALLS.items()
    for memory, along in kept.items()
    for count in range(1, len(along) + 1)
    for axes in itertools.combinations(along, count)
    if len(cuts(axes, MEMORIES[memory][1], along)) < 2
]


def laid(numbers: NumPyArray, memory: str, axes: tuple[int, ...] = ()) -> NumPyArray:
    """Return the numbers in memory in an order of axes, backwards along some of them."""
    order = MEMORIES[memory][1]
    held = np.ascontiguousarray(np.flip(numbers, axes).transpose(order)).transpose(np.argsort(order))
    found: NumPyArray = np.flip(held, axes)
    np.testing.assert_array_equal(found, numbers)
    return found


def drawn(memory: str, dtype: str, seed: int) -> NumPyArray:
    """Return numbers for x or dy."""
    shape, order = MEMORIES[memory]
    numbers = np.random.default_rng(seed).normal(2, 3, [shape[place] for place in np.argsort(order)])
    return numbers.astype(dtype)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("name", "memory", "axes"), CASES)
def test_same_bits(name: str, memory: str, axes: tuple[int, ...], dtype: str, threads: int) -> None:
    """y and dx have the bits of arrays that lie forwards, whichever of x, dy and `out` run backwards.

    So have gradients of weight and bias, but for those of layer and RMS norm: these are summed over sets in an order
    that depends on which axes are one in memory.
    """
    function, numbers, options, _ = CALLS[name]
    options = {
        key: option.astype(dtype) if isinstance(option, np.ndarray) else option for key, option in options.items()
    }
    forth, dy = drawn(memory, dtype, 1), drawn(memory, dtype, 2)
    with in_threads(threads):
        expected, pullback = an.vjp(function, laid(forth, memory), *numbers, **options)
        right = pullback(laid(dy, memory))
        with watched() as jobs:
            for which in ("x", "dy", "out", "all"):
                turned = {value: axes if which in (value, "all") else () for value in ("x", "dy", "out")}
                x = laid(forth, memory, turned["x"])
                out, dx = [laid(np.zeros_like(forth), memory, turned["out"]) for _ in range(2)]
                assert an.explain(function, x, *numbers, **options, out=out).path == "anynorm_numba"
                y, pullback = an.vjp(function, x, *numbers, **options)
                found = pullback(laid(dy, memory, turned["dy"]), out=dx)
                assert function(x, *numbers, **options, out=out) is out
                for array, other in ((y, expected), (out, expected), (dx, right.x)):
                    assert array.tobytes() == other.tobytes()
                if name not in ("layer", "rms") and right.weight is not None:
                    assert found.weight.tobytes() == right.weight.tobytes()
                    assert found.bias.tobytes() == right.bias.tobytes()
            assert function(x, *numbers, **options, out=x).tobytes() == expected.tobytes()
        assert len(jobs) == 13


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_gradients_of_rows(dtype: str) -> None:
    """Of a table whose rows run backwards gradients of weight and bias have the bits of one that lies forwards."""
    x, dy = [np.random.default_rng(seed).normal(2, 3, (70, 40)).astype(dtype) for seed in (1, 2)]
    weight = np.linspace(-1, 2, 40).astype(dtype)
    found = []
    for step in (1, -1):
        _, pullback = an.vjp(an.layer_norm, x[::step].copy()[::step], weight, weight)
        found.append(pullback(dy[::step].copy()[::step]))
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("reduced", "axes"),
    [((2, 3), (0,)), ((2, 3), (1,)), ((2, 3), (0, 1)), ((3,), (0,)), ((3,), (2,)), ((3,), (0, 1, 2))],
    ids=str,
)
def test_moments(reduced: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Moments have the bits of arrays that lie forwards."""
    x = drawn("rows", "float32", 3)
    turned = laid(x, "rows", axes)
    assert an.explain(an.moments, turned, axis=reduced).path == "anynorm_numba"
    for one, other in zip(an.moments(turned, axis=reduced)[1:], an.moments(x, axis=reduced)[1:], strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize(
    ("function", "memory", "axis"),
    [(an.layer_norm, "rows", 3), (an.batch_norm, "rows", 0), (an.batch_norm, "channels_last", 1)],
    ids=["reduced", "reduced-outermost", "innermost"],
)
def test_what_is_not_served(function: Any, memory: str, axis: int) -> None:
    """Backwards along a reduced axis, or the innermost of columns, an array is served without the engine, and why."""
    x = drawn(memory, "float32", 4)
    route = an.explain(function, laid(x, memory, (axis,)))
    assert route.path == "anynorm_numpy"
    innermost = memory == "channels_last"
    backwards = "neighbours in x's innermost axis follow each other backwards in memory"
    assert route.reason == (backwards if innermost else "x runs backwards along an axis that is reduced")
    np.testing.assert_allclose(function(laid(x, memory, (axis,))), function(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [an.batch_norm, an.instance_norm], ids=lambda array: array.__name__)
def test_channels_of_small_images(function: Any) -> None:
    """Sets of many runs of under 64 elements are columns, in which channels go forwards; the reason says which runs."""
    x = np.random.default_rng(5).normal(size=(64, 3, 5, 5)).astype("float32")
    turned = x[:, ::-1].copy()[:, ::-1]
    route = an.explain(function, turned)
    if function is an.instance_norm:  # a set is one run
        assert route.path == "anynorm_numba"
    else:
        assert route.reason == "sets lie in runs of 25 elements, and those follow each other backwards in memory"
    apart = an.explain(an.batch_norm, np.zeros((64, 6, 5, 5), "float32")[:, ::2])
    assert apart.reason == "sets lie in runs of 25 elements, and those do not follow each other without a gap in memory"
    np.testing.assert_allclose(function(turned), function(x), rtol=1e-5, atol=1e-5)
    for few_or_large in (x[:63], np.zeros((64, 3, 8, 8), "float32")):
        assert an.explain(function, few_or_large[:, ::-1]).path == "anynorm_numba"
