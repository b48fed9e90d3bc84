"""The five-dimensional view: how each norm lies in it, and that it leads to every element, set and weight.

Read by NumPy. No kernel runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from libraries import NumPyArray
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import anynorm as an
from anynorm._core.dispatch import Bound, bound
from anynorm.backend import Five, Ints, View, view
from tests.core.test_properties import _by_channel, _over_axes

# Elements of memory before, between and after those of an axis.
Margin = tuple[int, int, int]
NONE: Margin = (0, 0, 0)

# A norm, with its positional and keyword arguments between x and the parameters.
Norm = tuple[Callable[..., Any], tuple[int, ...], dict[str, Any]]
BATCH: Norm = (an.batch_norm, (), {})
INSTANCE: Norm = (an.instance_norm, (), {})


def layer(*axis: int) -> Norm:
    """Return layer norm over these axes."""
    return an.layer_norm, (), {"axis": axis}


def group(groups: int, **options: Any) -> Norm:
    """Return group norm of so many groups."""
    return an.group_norm, (groups,), options


def planned(norm: Norm, x: NumPyArray, weight: NumPyArray | None = None, bias: NumPyArray | None = None) -> Bound:
    """Return a call that was checked and planned, and not computed."""
    function, args, options = norm
    return bound(function, (x, *args), {"weight": weight, "bias": bias, **options})


def numbered(*shape: int) -> NumPyArray:
    """Return an array whose values are the positions of its elements."""
    return np.arange(math.prod(shape), dtype="float64").reshape(shape)


def laid(x: NumPyArray, order: Sequence[int], margins: tuple[Margin, ...] | None = None) -> NumPyArray:
    """Return x in memory where its axes come in another order, with margins, which are in that order too."""
    inner = x.transpose(order)
    spans, slices = [], []
    for length, (before, between, after) in zip(inner.shape, margins or (NONE,) * x.ndim, strict=True):
        stop = before + (length - 1) * (between + 1) + 1
        spans.append(stop + after)
        slices.append(slice(before, stop, between + 1))
    memory = np.full(spans, -1.0)
    memory[tuple(slices)] = inner
    return memory[tuple(slices)].transpose(np.argsort(order))


def steps_of(array: NumPyArray) -> Ints:
    """Return an array's strides in elements."""
    return tuple([stride // array.itemsize for stride in array.strides])


def view_of(call: Bound, *others: NumPyArray) -> View | str:
    """Return the view of a call's x and of other arrays of its shape, in elements."""
    weight, bias = [None if value is None else (value.shape, steps_of(value)) for value in (call.weight, call.bias)]
    return view(call.entry.plan, call.x.shape, tuple([steps_of(value) for value in (call.x, *others)]), weight, bias)


def read(array: NumPyArray, lengths: Five, steps: Five) -> NumPyArray:
    """Return what loops find from an array's first element on; an IndexError past the end of its memory."""
    memory = array if array.base is None else array.base
    start = array.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
    offsets = np.tensordot(steps, np.indices(lengths), 1)
    found: NumPyArray = memory.ravel(order="K")[start // array.itemsize + offsets]
    return found


def verify(norm: Norm, call: Bound, others: tuple[NumPyArray, ...], found: View | str) -> None:
    """Raise unless a view of numbered arrays leads to what the plan says: elements, sets, weight and bias."""
    assert isinstance(found, View), found
    plan, lengths = call.entry.plan, found.lengths
    places = read(call.x, lengths, found.strides[0]).astype(int)
    np.testing.assert_array_equal(np.sort(places, axis=None), np.arange(call.x.size))
    for array, steps in zip((call.x, *others), found.strides, strict=True):
        np.testing.assert_array_equal(read(array, lengths, steps), places)
        assert [step != 0 for step in steps] == [length > 1 for length in lengths]
        assert min(steps[1], *steps[3:]) >= 0

    def broadcast(values: NumPyArray, shape: Any) -> NumPyArray:
        spread = np.broadcast_to(values.reshape(shape), plan.shape)  # type: ignore[arg-type]
        found: NumPyArray = spread.reshape(-1)[places]
        return found

    sets = broadcast(numbered(*plan.statistic), plan.statistic)  # type: ignore[arg-type]
    np.testing.assert_array_equal(sets, np.broadcast_to(sets[:, :1, :, :1, :1], lengths))
    np.testing.assert_array_equal(np.sort(sets[:, 0, :, 0, 0], axis=None), np.arange(math.prod(plan.statistic)))  # type: ignore[arg-type]
    for parameter, shape, item in ((call.weight, plan.weight, found.weight), (call.bias, plan.bias, found.bias)):
        assert (parameter is None) == (item is None)
        if item is not None:
            np.testing.assert_array_equal(read(parameter, lengths, item), broadcast(parameter, shape))
            assert item[4] == 0
    verify_axes(call, places, found)
    verify_merged(norm, call, found)


def verify_axes(call: Bound, places: NumPyArray, found: View) -> None:
    """Raise unless the plan's axes along each dimension, outermost first, are those that the loops run through."""
    shape: Any = call.entry.plan.shape
    inside = [[shape[axis] for axis in axes] for axes in found.axes]
    assert [math.prod(value) for value in inside] == list(found.lengths)
    in_turn = [axis for axes in found.axes for axis in axes]
    assert sorted(in_turn) == [axis for axis, length in enumerate(shape) if length > 1]
    numbers = np.unravel_index(places.reshape([shape[axis] for axis in in_turn]), shape)
    for turn, axis in enumerate(in_turn):
        np.testing.assert_array_equal(numbers[axis], np.indices([shape[value] for value in in_turn])[turn])


def verify_merged(norm: Norm, call: Bound, found: View) -> None:
    """Raise if two neighbours could be one axis. Channels within a group are S, and no neighbour to any."""
    function, args, options = norm
    grouped = function is an.group_norm
    if grouped:
        channels = call.x.shape[options.get("channel_axis", 1)] // args[0]
        assert channels in (1, found.lengths[3])
    arrays = [*found.strides, *[value for value in (found.weight, found.bias) if value is not None]]
    for outer, inner in itertools.pairwise([place for place in range(5) if found.lengths[place] > 1]):
        alike = (outer in (0, 2)) == (inner in (0, 2)) and not (grouped and 3 in (outer, inner))
        assert not (alike and all(array[outer] == array[inner] * found.lengths[inner] for array in arrays))


X = numbered(2, 6, 5, 7)

LAYOUTS = {
    "dense": laid(X, (0, 1, 2, 3)),
    "channels_last": laid(X, (0, 2, 3, 1)),
    "cropped": laid(X, (0, 1, 2, 3), (NONE, NONE, NONE, (2, 0, 1))),
    "every-second": laid(X, (0, 1, 2, 3), (NONE, NONE, NONE, (0, 1, 0))),
    "samples-sliced": laid(X, (0, 1, 2, 3), ((0, 3, 0), NONE, NONE, NONE)),
}

GIVEN: Norm = (an.batch_norm, (), {"mean": numbered(6), "var": numbered(6)})

# name, layout, norm, the parameters' shape, lengths, the weight's steps, and the lengths without one where they differ.
TABLE: tuple[tuple[str, str, Norm, Ints, Ints, Ints, Ints | None], ...] = (
    ("layer", "dense", layer(-1), (7,), (60, 1, 1, 7, 1), (0, 0, 0, 1, 0), (60, 1, 1, 1, 7)),
    ("layer", "cropped", layer(-1), (7,), (60, 1, 1, 7, 1), (0, 0, 0, 1, 0), (60, 1, 1, 1, 7)),
    ("layer", "every-second", layer(-1), (7,), (60, 1, 1, 7, 1), (0, 0, 0, 1, 0), (60, 1, 1, 1, 7)),
    ("layer-trailing", "dense", layer(1, 2, 3), (6, 5, 7), (2, 1, 1, 210, 1), (0, 0, 0, 1, 0), (2, 1, 1, 1, 210)),
    ("layer-trailing", "samples-sliced", layer(2, 3), (5, 7), (2, 1, 6, 35, 1), (0, 0, 0, 1, 0), (2, 1, 6, 1, 35)),
    ("layer-all", "dense", layer(0, 1, 2, 3), X.shape, (1, 1, 1, 420, 1), (0, 0, 0, 1, 0), (1, 1, 1, 1, 420)),
    ("layer-leading", "dense", layer(0, 1), (2, 6), (1, 12, 35, 1, 1), (0, 1, 0, 0, 0), None),
    ("layer-per-sample", "dense", layer(-1), (2, 1, 1, 7), (2, 1, 30, 7, 1), (7, 0, 0, 1, 0), (60, 1, 1, 1, 7)),
    ("layer-outer-weight", "dense", layer(2, 3), (1, 1, 5, 1), (12, 1, 1, 5, 7), (0, 0, 0, 1, 0), (12, 1, 1, 1, 35)),
    ("layer-inner-weight", "dense", layer(2, 3), (1, 1, 1, 7), (12, 5, 1, 7, 1), (0, 0, 0, 1, 0), (12, 1, 1, 1, 35)),
    ("layer-two-axes", "cropped", layer(2, 3), (5, 7), (12, 5, 1, 7, 1), (0, 7, 0, 1, 0), (12, 5, 1, 1, 7)),
    ("layer-channels", "dense", layer(1), (6,), (2, 6, 35, 1, 1), (0, 1, 0, 0, 0), None),
    ("layer-channels", "channels_last", layer(1), (6,), (70, 1, 1, 6, 1), (0, 0, 0, 1, 0), (70, 1, 1, 1, 6)),
    ("rms", "dense", (an.rms_norm, (), {}), (7,), (60, 1, 1, 7, 1), (0, 0, 0, 1, 0), (60, 1, 1, 1, 7)),
    ("batch", "dense", BATCH, (6,), (1, 2, 6, 1, 35), (0, 0, 1, 0, 0), None),
    ("batch", "channels_last", BATCH, (6,), (1, 70, 6, 1, 1), (0, 0, 1, 0, 0), None),
    ("batch", "cropped", BATCH, (6,), (1, 2, 6, 5, 7), (0, 0, 1, 0, 0), None),
    ("batch", "samples-sliced", BATCH, (6,), (1, 2, 6, 1, 35), (0, 0, 1, 0, 0), None),
    ("batch-given", "dense", GIVEN, (6,), (1, 2, 6, 1, 35), (0, 0, 1, 0, 0), None),
    ("instance", "dense", INSTANCE, (6,), (2, 1, 6, 1, 35), (0, 0, 1, 0, 0), (12, 1, 1, 1, 35)),
    ("instance", "channels_last", INSTANCE, (6,), (2, 35, 6, 1, 1), (0, 0, 1, 0, 0), None),
    ("instance-per-sample", "dense", INSTANCE, (2, 6, 1, 1), (12, 1, 1, 1, 35), (1, 0, 0, 0, 0), None),
    ("group", "dense", group(3), (6,), (2, 1, 3, 2, 35), (0, 0, 2, 1, 0), (6, 1, 1, 2, 35)),
    ("group", "channels_last", group(3), (6,), (2, 35, 3, 2, 1), (0, 0, 2, 1, 0), None),
    ("group-per-sample", "dense", group(3), (2, 6, 1, 1), (6, 1, 1, 2, 35), (2, 0, 0, 1, 0), None),
    ("group-of-all", "dense", group(1), (6,), (2, 1, 1, 6, 35), (0, 0, 0, 1, 0), None),
    ("group-of-one", "dense", group(6), (6,), (2, 1, 6, 1, 35), (0, 0, 1, 0, 0), (12, 1, 1, 1, 35)),
)

# The plan's axes along A, R, B, S and P, with a parameter, outermost first.
AXES = {
    "layer-dense": "012 - - 3 -",
    "layer-cropped": "012 - - 3 -",
    "layer-every-second": "012 - - 3 -",
    "layer-trailing-dense": "0 - - 123 -",
    "layer-trailing-samples-sliced": "0 - 1 23 -",
    "layer-all-dense": "- - - 0123 -",
    "layer-leading-dense": "- 01 23 - -",
    "layer-per-sample-dense": "0 - 12 3 -",
    "layer-outer-weight-dense": "01 - - 2 3",
    "layer-inner-weight-dense": "01 2 - 3 -",
    "layer-two-axes-cropped": "01 2 - 3 -",
    "layer-channels-dense": "0 1 23 - -",
    "layer-channels-channels_last": "023 - - 1 -",
    "rms-dense": "012 - - 3 -",
    "batch-dense": "- 0 1 - 23",
    "batch-channels_last": "- 023 1 - -",
    "batch-cropped": "- 0 1 2 3",
    "batch-samples-sliced": "- 0 1 - 23",
    "batch-given-dense": "- 0 1 - 23",
    "instance-dense": "0 - 1 - 23",
    "instance-channels_last": "0 23 1 - -",
    "instance-per-sample-dense": "01 - - - 23",
    "group-dense": "0 - 1 2 34",
    "group-channels_last": "0 34 1 2 -",
    "group-per-sample-dense": "01 - - 2 34",
    "group-of-all-dense": "0 - - 2 34",
    "group-of-one-dense": "0 - 1 - 34",
}


@pytest.mark.parametrize(
    ("layout", "norm", "shape", "lengths", "along", "bare", "axes"),
    [pytest.param(*row, AXES[f"{name}-{row[0]}"], id=f"{name}-{row[0]}") for name, *row in TABLE],
)
def test_table(layout: str, norm: Norm, shape: Ints, lengths: Ints, along: Ints, bare: Ints | None, axes: str) -> None:
    """Each norm takes the places that the design's table gives it, with weight and bias, with either, without."""
    x, parameter = LAYOUTS[layout], numbered(*shape)
    for parameters in ((parameter, parameter), (parameter, None), (None, parameter)):
        call = planned(norm, x, *parameters)
        found = view_of(call, x)
        verify(norm, call, (x,), found)
        steps = tuple([None if value is None else along for value in parameters])
        assert isinstance(found, View)
        assert (found.lengths, found.weight, found.bias) == (lengths, *steps)
        assert " ".join(["".join(map(str, axis)) or "-" for axis in found.axes]) == axes
    call = planned(norm, x)
    found = view_of(call, x)
    verify(norm, call, (x,), found)
    assert found[0] == (bare or lengths)


@pytest.mark.parametrize("ndim", range(2, 7))
def test_dense_arrays_merge(ndim: int) -> None:
    """However many axes a dense array has, trailing axes are one, and so are those on each side of the channels."""
    shape = (3, 2, 4, 2, 3, 2)[:ndim]
    x = numbered(*shape)
    for first in range(ndim):
        outer, inner = math.prod(shape[:first]), math.prod(shape[first:])
        found = view_of(planned(layer(*range(first, ndim)), x, numbered(*shape[first:])))
        assert found[0] == (outer, 1, 1, inner, 1)
        found = view_of(planned((an.batch_norm, (), {"channel_axis": first}), x, numbered(shape[first])))
        before, after = math.prod(shape[:first]), math.prod(shape[first + 1 :])
        assert found[0] == ((1, before, shape[first], 1, after) if first else (shape[0], 1, 1, 1, after))


Y = numbered(2, 3, 4, 5)
Z = numbered(2, 3, 2, 3, 2)

ORDERS: dict[str, tuple[Bound, str]] = {
    "apart": (planned(layer(0, 2), Y), "reduced, kept, reduced, kept"),
    "apart-of-five": (planned(layer(1, 3), Z), "kept, reduced, kept, reduced, kept"),
    "fortran-group": (planned(group(3), np.asfortranarray(X)), "reduced, kept, channels of a group, kept"),
    "channels-first-group": (planned(group(3), laid(X, (1, 0, 2, 3))), "kept, channels of a group, kept, reduced"),
    "weight-around": (
        planned(layer(1, 2, 3), Y, numbered(1, 3, 1, 5)),
        "kept, reduced with weight, reduced, reduced with weight",
    ),
    "bias-around": (
        planned(layer(1, 2, 3), Y, None, numbered(1, 3, 1, 5)),
        "kept, reduced with weight, reduced, reduced with weight",
    ),
    "three-kept": (planned(layer(3), laid(Y, (0, 1, 2, 3), ((1, 0, 1),) * 4)), "kept, kept, kept, reduced"),
    "four-reduced": (
        planned(layer(0, 1, 2, 3), laid(Y, (0, 1, 2, 3), ((1, 0, 1),) * 4)),
        "reduced, reduced, reduced, reduced",
    ),
}


@pytest.mark.parametrize("case", ORDERS)
def test_order_that_does_not_fit(case: str) -> None:
    """An order of axes that five dimensions do not hold is the reason given, in words."""
    call, order = ORDERS[case]
    expected = f"the order of x's axes in memory, outermost first, is {order}, for which the kernels have no loops"
    assert view_of(call) == expected


def test_strides_that_do_not_fit() -> None:
    """Elements that repeat or overlap are refused, and those that run backwards along reduced axes, or of a weight."""
    weight = numbered(5)
    fits = planned(layer(-1), Y, weight, weight)
    assert isinstance(view_of(fits, Y), View)
    ways: list[tuple[str, str, Any]] = [
        ("runs backwards along an axis", " that is reduced", np.flip),
        (
            "repeats its elements along an axis, with a stride of 0",
            "",
            lambda array: np.broadcast_to(array[..., :1], array.shape),
        ),
    ]
    for reason, reduced, bad in ways:
        assert view_of(fits._replace(x=bad(Y)), Y) == f"x {reason}{reduced}"
        assert view_of(fits, Y, bad(Y)) == f"an array beside x {reason}{reduced}"
        assert view_of(fits._replace(weight=bad(weight)), Y) == f"weight {reason}"
        assert view_of(fits._replace(bias=bad(weight)), Y) == f"bias {reason}"
    for overlapping in (sliding_window_view(numbered(9), 5), as_strided(numbered(9), (3, 3), (16, 8))):
        assert view_of(planned(layer(-1), overlapping)) == "axes of x overlap in memory"


def test_kept_axes_that_run_backwards() -> None:
    """Along A and B each array has its own direction; axes are one where all continue each other in the same."""
    both = view_of(planned(layer(-1), Y[::-1, ::-1, ::-1], numbered(5)))
    assert isinstance(both, View)
    assert (both.lengths, both.strides) == ((24, 1, 1, 5, 1), ((-5, 0, 0, 1, 0),))
    one = view_of(planned(layer(-1), Y[::-1], numbered(5)), Y)
    assert isinstance(one, View)
    assert one.lengths == (2, 1, 12, 5, 1)
    assert one.strides == ((-60, 0, 5, 1, 0), (60, 0, 5, 1, 0))
    # Of a group the first channel comes first: only whole groups may run backwards.
    assert "backwards along an axis that is reduced" in view_of(planned(group(3), X[:, ::-1]))
    assert isinstance(view_of(planned(group(6), X[:, ::-1])), View)


@pytest.mark.parametrize("stride", [0, -8, 8, 800])
def test_strides_of_axes_of_length_one(stride: int) -> None:
    """Along an axis of length 1 an array may have any stride, x, weight or another: it leads nowhere."""
    x = as_strided(numbered(24), (2, 1, 3, 4), (96, stride, 32, 8))
    weight = as_strided(numbered(4), (1, 1, 1, 4), (stride, stride, stride, 8))
    dense = numbered(2, 1, 3, 4)
    expected = view_of(planned(layer(-1), dense, numbered(4)), dense)
    assert isinstance(expected, View)
    assert view_of(planned(layer(-1), x, weight), x) == expected


def test_cached() -> None:
    """A layout that was met before costs a look-up: the very same view comes back."""
    assert view_of(planned(group(3), X, numbered(6)), X) is view_of(planned(group(3), X.copy(), numbered(6)), X)


@pytest.mark.parametrize(
    "shape", [*itertools.product((1, 2, 4), repeat=3), *itertools.product((1, 2), repeat=4)], ids=str
)
def test_any_split_of_the_channels(shape: Ints) -> None:
    """Whichever axis group norm splits, its view is right, also where lengths of 1 leave open which axis it is."""
    x, fitting = numbered(*shape), 0
    for channel, length in enumerate(shape):
        others = [axis for axis in range(len(shape)) if axis != channel]
        for count, groups in itertools.product(range(len(shape)), (1, 2, 4)):
            if length % groups:
                continue
            for batch in itertools.combinations(others, count):
                norm = group(groups, channel_axis=channel, batch_axis=batch)
                for weight in (None, numbered(length)):
                    call = planned(norm, x, weight)
                    found = view_of(call, x)
                    if isinstance(found, View):
                        verify(norm, call, (x,), found)
                        fitting += 1
    assert fitting >= 10


MARGINS = st.sampled_from([NONE, NONE, NONE, (1, 0, 0), (0, 0, 2), (0, 1, 0)])


@st.composite
def _memory(draw: st.DrawFn, x: NumPyArray, *orders: Ints) -> NumPyArray:
    """Draw the same numbers lying in one of these orders, or any, and often in wider memory."""
    order = draw(st.sampled_from(orders) if orders else st.permutations(range(x.ndim)))
    return laid(x, order, draw(st.none() | st.tuples(*[MARGINS] * x.ndim)))


@st.composite
def _turned(draw: st.DrawFn, shape: Ints, *orders: Ints) -> NumPyArray:
    """Draw numbered elements lying in memory, often backwards along some axes."""
    axes = draw(st.just(()) | st.sets(st.sampled_from(range(len(shape))), min_size=1, max_size=2).map(tuple))
    return np.flip(draw(_memory(np.flip(numbered(*shape), axes), *orders)), axes)


@st.composite
def _calls(draw: st.DrawFn) -> tuple[Norm, Bound, tuple[NumPyArray, ...]]:
    """Draw a norm on arrays of up to six axes, and up to two arrays beside x, which often lie as x does."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=6)))
    function = draw(st.sampled_from(["layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm"]))
    drawn = draw((_over_axes if function in ("layer_norm", "rms_norm") else _by_channel)(function, shape))
    arrays = {name: numbered(*parameter) for name, parameter in drawn.parameters.items()}
    parameters = [arrays.pop(name, None) for name in ("weight", "bias")]
    norm = getattr(an, function), drawn.groups, drawn.options | arrays
    axes = tuple(range(len(shape)))
    usual = axes, (*axes[:1], *axes[2:], *axes[1:2])
    x = draw(_turned(shape, *usual) | _turned(shape))
    others = tuple([draw(st.just(x) | _turned(shape)) for _ in range(draw(st.integers(0, 2)))])
    return (
        norm,
        planned(norm, x, *[None if parameter is None else draw(_memory(parameter)) for parameter in parameters]),
        others,
    )


def test_any_layout() -> None:
    """A view, where there is one, leads once to every element, of every set, in every array; else the order is why."""
    fitting, backwards = [], []

    @settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
    @given(drawn=_calls())
    def holds(drawn: tuple[Norm, Bound, tuple[NumPyArray, ...]]) -> None:
        norm, call, others = drawn
        found = view_of(call, *others)
        if isinstance(found, View):
            verify(norm, call, others, found)
            fitting.append(tuple([length > 1 for length in found.lengths]))
            backwards.append(any(step < 0 for steps in found.strides for step in steps))
        else:
            assert (
                "the order of x's axes" in found
                or "backwards along an axis that is reduced" in found
                or "repeats its" in found
            )

    holds()
    assert len(fitting) >= 200
    assert min(backwards.count(True), backwards.count(False)) >= 20
    assert len(set(fitting)) >= 15


@st.composite
def _fitting_calls(draw: st.DrawFn) -> tuple[Norm, Bound, tuple[NumPyArray, ...]]:
    """Draw arrays that lie as (A, R, B, S, P), in any order of their axes, for layer norm or group norm."""
    a, r, b, s, p = lengths = draw(st.tuples(*[st.integers(1, 3)] * 5))
    grouped = draw(st.booleans())
    inside = (a, r, b * s, p) if grouped else lengths
    order = draw(st.permutations(range(len(inside))))  # where in x's shape each axis stands
    shape = tuple([inside[axis] for axis in np.argsort(order)])
    norm = (
        group(b, channel_axis=order[2], batch_axis=order[0])
        if grouped
        else layer(*[order[place] for place in (1, 3, 4)])
    )
    parameters = []
    for _ in ("weight", "bias"):
        along = {order[place] for place in range(len(inside) - 1) if draw(st.booleans())}
        parameters.append(numbered(*[length if axis in along else 1 for axis, length in enumerate(shape)]))
    x = draw(_memory(numbered(*shape), tuple(order)))
    return (
        norm,
        planned(norm, x, *[draw(st.none() | _memory(parameter)) for parameter in parameters]),
        (draw(_memory(numbered(*shape))),),
    )


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=_fitting_calls())
def test_what_fits_has_a_view(drawn: tuple[Norm, Bound, tuple[NumPyArray, ...]]) -> None:
    """Arrays that lie as the five dimensions do have a view, whatever order their axes are named in."""
    norm, call, others = drawn
    verify(norm, call, others, view_of(call, *others))
