"""Memory: how y is laid out, what `out` may be, and what views an argument may be. What is computed is the matrix's."""

from __future__ import annotations

import functools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from inputs import NORMS, Case, Norm, check, make_case, shared_reference, verify
from layouts import LAYOUTS, STRIDED, layouts_of
from libraries import BOTH_NUMPY, LIBRARIES, ArrayLibrary, NumPyArray, each_library, numpy_dtype

import anynorm as an

WITH_STRIDES = (*BOTH_NUMPY, "torch", "cupy", "torch_cuda")

each_norm = pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in NORMS])


def _strides(array: Any) -> tuple[int, ...]:
    """Return strides in elements."""
    if hasattr(array, "stride"):
        return tuple(array.stride())
    return tuple(stride // array.dtype.itemsize for stride in array.strides)


def _dense_in_order_of(x: Any) -> tuple[int, ...]:
    """Return the strides of a dense array whose axes lie in the order of x's."""
    outermost_first = sorted(range(x.ndim), key=lambda axis: -abs(_strides(x)[axis]))
    strides, step = [0] * x.ndim, 1
    for axis in reversed(outermost_first):
        strides[axis] = step
        step *= x.shape[axis]
    return tuple(strides)


@pytest.mark.feature("layout kept")
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "formula"])
@each_norm
@pytest.mark.parametrize(
    ("library", "dtype", "layout"),
    [
        pytest.param(name, dtype, layout, id=f"{name}-{dtype}-{layout}")
        for name in WITH_STRIDES
        for dtype in ("float16", "float32")
        if dtype in LIBRARIES[name].dtypes
        for layout in layouts_of(name)
    ],
    indirect=["library"],
)
def test_y_lies_as_x_does(norm: Norm, library: ArrayLibrary, dtype: str, layout: str, fast: bool) -> None:
    """y is dense, with its axes in x's stride order, whichever path serves it: channels_last stays channels_last."""
    case = make_case(norm, dtype)
    x = library.make(LAYOUTS[layout](case.arrays["x"]))
    with an.fast_paths(fast):
        y = case.function()(library.make_all(case.arrays) | {"x": x})
    assert _strides(y) == _dense_in_order_of(x)


@each_norm
@each_library(["torch"])
def test_torch_calls_it_channels_last(norm: Norm, library: ArrayLibrary) -> None:
    """torch itself agrees that y is in channels_last."""
    import torch

    case = make_case(norm, "float32")
    arrays = library.make_all(case.arrays)
    arrays["x"] = arrays["x"].to(memory_format=torch.channels_last)
    assert case.function()(arrays).is_contiguous(memory_format=torch.channels_last)


WRITABLE = (*BOTH_NUMPY, "torch", "strict_CPU_DEVICE", "cupy", "torch_cuda")


@pytest.mark.feature("out=")
@each_norm
@pytest.mark.parametrize(
    ("library", "dtype", "layout"),
    [
        pytest.param(name, dtype, layout, id=f"{name}-{dtype}-{layout}")
        for name in WRITABLE
        for dtype in ("float16", "float32")
        if dtype in LIBRARIES[name].dtypes
        for layout in (STRIDED if LIBRARIES[name].layouts != "any" else ("contiguous",))
    ],
    indirect=["library"],
)
def test_out_of_any_layout(norm: Norm, library: ArrayLibrary, dtype: str, layout: str) -> None:
    """`out` is returned and holds y, whatever its strides; nothing else changes."""
    case = make_case(norm, dtype)
    out = library.make(LAYOUTS[layout](np.full_like(case.arrays["x"], 7)))
    arrays = library.make_all(case.arrays)
    assert case.function(out=out)(arrays) is out
    verify(library.to_numpy(out), case.arrays["x"], case.reference())
    for name, array in arrays.items():
        assert library.to_numpy(array).tobytes() == make_case(norm, dtype).arrays[name].tobytes()


@pytest.mark.quick
@pytest.mark.feature("out=")
@each_norm
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
@each_library(WRITABLE)
def test_out_may_be_x_itself(norm: Norm, library: ArrayLibrary, layout: str) -> None:
    """In place, x becomes y."""
    case = make_case(norm, "float32")
    exact, before = case.reference(), case.arrays["x"].copy()
    x = library.make(LAYOUTS[layout](before.copy()))
    assert case.function(out=x)(library.make_all(case.arrays) | {"x": x}) is x
    verify(library.to_numpy(x), before, exact)


@pytest.mark.feature("out=")
@pytest.mark.parametrize("norm", ["layer", "group", "batch"])
@each_library(WITH_STRIDES)
def test_out_may_lie_beside_x(library: ArrayLibrary, norm: str) -> None:
    """`out` may interleave with x in one buffer, as long as they share no element."""
    (found,) = [value for value in NORMS if value.name == norm]
    case = make_case(found, "float32")
    buffer = np.concatenate([case.arrays["x"], np.zeros_like(case.arrays["x"])], axis=-1)
    both = library.make(buffer)
    x, out = both[..., :8], both[..., 8:]
    case.function(out=out)(library.make_all(case.arrays) | {"x": x})
    verify(np.ascontiguousarray(library.to_numpy(out)), case.arrays["x"], case.reference())


def _overlapping(kind: str, library: ArrayLibrary) -> tuple[Any, dict[str, Any]]:
    """Return an `out` that overlaps an argument in some way, and the arguments."""
    memory = library.make(np.random.default_rng(1).normal(size=(7, 6)).astype("float32"))
    x, weight = memory[:6], library.make(np.ones(6, "float32"))
    if kind == "shifted":
        return memory[1:], {"x": x}
    if kind == "transposed":
        return x.T, {"x": x}
    if kind == "reversed":
        return x[::-1] if library.family == "numpy" else memory[1:], {"x": x}
    if kind == "weight":
        return memory[1:], {"x": x + 0, "weight": memory[1]}
    if kind == "bias":
        return memory[1:], {"x": x + 0, "weight": weight, "bias": memory[6]}
    assert kind == "weight_of_x"
    return x, {"x": x, "weight": x[2]}


OVERLAPS = ("shifted", "transposed", "reversed", "weight", "bias", "weight_of_x")


@pytest.mark.parametrize("kind", OVERLAPS)
@each_library(["numpy", "torch", "cupy", "torch_cuda"])
def test_out_may_not_overlap_an_argument(library: ArrayLibrary, kind: str) -> None:
    """An `out` that shares elements with an argument, but is not x itself, is refused before anything is written."""
    out, arrays = _overlapping(kind, library)
    before = library.to_numpy(out).tobytes()
    with pytest.raises(ValueError, match="out"):
        an.layer_norm(arrays.pop("x"), **arrays, out=out)
    assert library.to_numpy(out).tobytes() == before


@pytest.mark.parametrize("name", ["mean", "var"])
@each_library(["numpy", "torch", "cupy", "torch_cuda"])
def test_out_may_not_overlap_given_statistics(library: ArrayLibrary, name: str) -> None:
    """Given mean and var are arguments like any other."""
    out = library.make(np.ones((7, 6), "float32"))
    given = {"mean": library.make(np.zeros(6, "float32")), "var": library.make(np.ones(6, "float32"))} | {name: out[3]}
    with pytest.raises(ValueError, match="out"):
        an.batch_norm(library.make(np.ones((7, 6), "float32")), **given, out=out)


def _strided(memory: Any, shape: tuple[int, ...], strides: tuple[int, ...], start: int = 0) -> Any:
    """Return a view of a one-dimensional array from `start` on, with strides in elements."""
    if hasattr(memory, "as_strided"):
        return memory[start:].as_strided(shape, strides)
    in_bytes = [stride * memory.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(memory[start:], shape, in_bytes)


# Strides, in elements, of an array of shape (3, 4, 5): some elements share a place, though no stride is 0.
MEETING_ITSELF = {
    "windows": (20, 3, 1),
    "rows": (19, 5, 1),
    "equal_strides": (20, 1, 1),
    "apart": (1, 40, 2),
    "last_element": (59, 20, 5),
    "unordered": (6, 35, 4),
}


@pytest.mark.parametrize("kind", list(MEETING_ITSELF))
@each_library(["numpy", "torch", "cupy", "torch_cuda"])
def test_out_may_not_overlap_itself(library: ArrayLibrary, kind: str) -> None:
    """An `out` of which elements share a place is refused by strides of any size, also where x lies in that place."""
    memory = library.make(np.random.default_rng(1).normal(size=200).astype("float32"))
    before = library.to_numpy(memory).tobytes()
    out = _strided(memory, (3, 4, 5), MEETING_ITSELF[kind])
    for x in (library.make(np.ones((3, 4, 5), "float32")), out):
        with pytest.raises(ValueError, match=r"several elements of out share one place in memory. Pass"):
            an.layer_norm(x, out=out)
    assert library.to_numpy(memory).tobytes() == before


# Here all are apart, though the steps of one axis lie among those of another.
INTERLEAVED = {"short_axes": ((2, 3), (3, 2)), "long_axis": ((40, 2), (2, 39)), "three": ((2, 2, 5), (1, 25, 3))}


@pytest.mark.feature("out=")
@pytest.mark.parametrize("kind", list(INTERLEAVED))
@each_library(WITH_STRIDES)
def test_out_may_interleave_with_itself(library: ArrayLibrary, kind: str) -> None:
    """An `out` whose elements all have places of their own is taken, whatever the order of these."""
    shape, strides = INTERLEAVED[kind]
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    case = Case(Norm("layer", "layer_norm"), {"x": x})
    out = _strided(library.make(np.zeros(200, "float32")), shape, strides)
    an.layer_norm(library.make(x), out=out)
    verify(np.ascontiguousarray(library.to_numpy(out)), x, case.reference())


@pytest.mark.feature("out=")
@pytest.mark.parametrize("steps", [(6, 1), (1, 4), (-6, 1), (6, -1), (-1, -4)], ids=str)
@each_library(WITH_STRIDES)
def test_out_may_be_x_with_another_stride_along_an_axis_of_length_1(
    library: ArrayLibrary, steps: tuple[int, int]
) -> None:
    """Where an axis has length 1 its stride leads nowhere: `out` is x itself all the same, and x becomes y."""
    if min(steps) < 0 and library.family != "numpy":
        pytest.skip(f"{library.name} has no negative strides")
    memory = library.make(np.random.default_rng(1).normal(size=24).astype("float32"))
    start = sum(-(length - 1) * step for length, step in zip((4, 6), steps, strict=True) if step < 0)
    x, out = [_strided(memory, (4, 1, 6), (steps[0], along, steps[1]), start) for along in (0, 7)]
    before = np.ascontiguousarray(library.to_numpy(x)).copy()
    assert an.layer_norm(x, out=out) is out
    verify(
        np.ascontiguousarray(library.to_numpy(x)), before, Case(Norm("layer", "layer_norm"), {"x": before}).reference()
    )
    if library.family == "numpy":  # the same places in another order are not x itself
        with pytest.raises(ValueError, match="out overlaps x"):
            an.layer_norm(x, out=out[::-1])


VIEWS = {
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "read_only": LAYOUTS["read_only"],
    "fortran": np.asfortranarray,
}


@pytest.mark.parametrize("view", list(VIEWS))
@each_norm
@each_library(WITH_STRIDES)
def test_parameters_may_be_views(library: ArrayLibrary, norm: Norm, view: str) -> None:
    """Weight, bias, mean and var may lie in memory as they like."""
    case = make_case(norm, "float32")
    if view == "reversed" and library.family != "numpy":
        pytest.skip(f"{library.name} has no negative strides")
    check(Case(norm, {name: a if name == "x" else VIEWS[view](a) for name, a in case.arrays.items()}), library)


# An x and an axis of layer norm, with parameters that differ from sample to sample but are far smaller than x.
PER_SAMPLE: dict[str, tuple[tuple[int, ...], Any, tuple[int, ...]]] = {
    "channels_over_last": ((16, 64, 64, 128), -1, (16, 64, 1, 1)),
    "last_over_last": ((16, 64, 64, 128), -1, (16, 1, 1, 128)),
    "channels_over_channels": ((16, 64, 64, 128), 1, (16, 64, 1, 1)),
    "rows_over_images": ((16, 64, 64, 128), (2, 3), (16, 1, 64, 1)),
    "short_sets": ((2**18, 4, 8), -1, (2**18, 1, 8)),
    "long_sets": ((4, 2, 2**10, 2**10), (2, 3), (4, 1, 2**10, 1)),
}


@pytest.mark.parametrize("kind", list(PER_SAMPLE))
@each_library(BOTH_NUMPY)
def test_parameters_of_a_sample_stay_small(library: ArrayLibrary, kind: str) -> None:
    """A call with per-sample parameters takes the memory of y and of six blocks of 2¹⁸ elements, not of x again."""
    shape, axis, parameter = PER_SAMPLE[kind]
    x = library.make(np.random.default_rng(1).normal(size=shape).astype("float32"))
    weight = library.make(np.ones(parameter, "float32"))
    an.layer_norm(x[:1], weight[:1], axis=axis)
    tracemalloc.start()
    try:
        y = an.layer_norm(x, weight, weight, axis=axis)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert y.shape == x.shape
    assert peak <= 1.3 * x.nbytes + 6 * 2**18 * 4


@functools.lru_cache(maxsize=1)
def _long_sets(parameter: tuple[int, ...], scale: float) -> Case:
    random = np.random.default_rng(3)
    x = random.normal(3, 2, size=(3, 700, 400)).astype("float32")
    x[1] *= scale
    arrays = {name: random.normal(size=parameter).astype("float32") for name in ("weight", "bias")}
    return Case(Norm("layer", "layer_norm", {"axis": (1, 2)}), {"x": x} | arrays).frozen()


# Libraries and orders meet a case one after the other: its reference is slow.
@each_library(BOTH_NUMPY)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=["sets_first", "sets_last", "turned"])
@pytest.mark.parametrize("scale", [1.0, 1e30], ids=["ordinary", "computed_again"])
@pytest.mark.parametrize("parameter", [(3, 700, 1), (3, 1, 400), (1, 700, 1), (3, 700, 400), (3, 1, 1)], ids=str)
def test_parameters_of_long_sets(
    library: ArrayLibrary, parameter: tuple[int, ...], order: tuple[int, int, int], scale: float
) -> None:
    """Sets longer than a block meet the weights that are theirs, however these vary and x lies in memory."""
    case = _long_sets(parameter, scale)
    x = np.ascontiguousarray(case.arrays["x"].transpose(order)).transpose(np.argsort(order))
    check(case.with_x(x), library, shared_reference(case))


def _windows(x: NumPyArray) -> NumPyArray:
    return np.lib.stride_tricks.sliding_window_view(x.reshape(-1), 8)[:90].reshape(3, 6, 5, 8)


REPEATING = {
    "broadcast_batch": lambda x: np.broadcast_to(x[:1], x.shape),
    "broadcast_channels": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "broadcast_last": lambda x: np.broadcast_to(x[..., :1], x.shape),
    "windows": _windows,
}


@pytest.mark.parametrize("kind", list(REPEATING))
@each_norm
@each_library([*BOTH_NUMPY, "torch"])
def test_x_may_repeat_memory(library: ArrayLibrary, norm: Norm, kind: str) -> None:
    """x may be a broadcast view or overlapping windows; y has memory of its own."""
    case = make_case(norm, "float32")
    view = REPEATING[kind](case.arrays["x"])
    arrays = library.make_all(case.arrays)
    x = arrays["x"]
    if library.family == "numpy":
        arrays["x"] = view
    else:
        arrays["x"] = x.as_strided(view.shape, [stride // 4 for stride in view.strides])
    y = case.function()(arrays)
    verify(library.to_numpy(y), view, case.with_x(view).reference())
    assert 0 not in _strides(y)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@each_norm
@each_library(BOTH_NUMPY)
def test_other_byte_order(library: ArrayLibrary, norm: Norm, dtype: str) -> None:
    """NumPy arrays of the other byte order are normalized and stay so."""
    case = make_case(norm, dtype)
    swapped = {name: a.astype(numpy_dtype(dtype).newbyteorder()) for name, a in case.arrays.items()}
    y = Case(norm, swapped).run(library)
    assert y.dtype == swapped["x"].dtype
    verify(y.astype(dtype), case.arrays["x"], case.reference())
