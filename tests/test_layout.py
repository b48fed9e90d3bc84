"""Memory: how y is laid out, what `out` may be, and what views an argument may be. What is computed is the matrix's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inputs import NORMS, Case, Norm, check, make_case, verify
from layouts import LAYOUTS, STRIDED, layouts_of
from libraries import LIBRARIES, ArrayLibrary, NumPyArray, each_library, numpy_dtype

import anynorm as an

WITH_STRIDES = ("numpy", "torch", "cupy", "torch_cuda")

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


WRITABLE = ("numpy", "torch", "strict_CPU_DEVICE", "cupy", "torch_cuda")


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
@each_library(["numpy", "torch", "cupy", "torch_cuda"])
def test_out_may_lie_beside_x(library: ArrayLibrary, norm: str) -> None:
    """`out` may interleave with x in one buffer, as long as they share no element."""
    (found,) = [its for its in NORMS if its.name == norm]
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
        return x[::-1] if library.name == "numpy" else memory[1:], {"x": x}
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


VIEWS = {
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "read_only": LAYOUTS["read_only"],
    "fortran": np.asfortranarray,
}


@pytest.mark.parametrize("view", list(VIEWS))
@each_norm
@each_library(["numpy", "torch", "cupy", "torch_cuda"])
def test_parameters_may_be_views(library: ArrayLibrary, norm: Norm, view: str) -> None:
    """Weight, bias, mean and var may lie in memory as they like."""
    case = make_case(norm, "float32")
    if view == "reversed" and library.name != "numpy":
        pytest.skip(f"{library.name} has no negative strides")
    check(Case(norm, {name: a if name == "x" else VIEWS[view](a) for name, a in case.arrays.items()}), library)


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
@each_library(["numpy", "torch"])
def test_x_may_repeat_memory(library: ArrayLibrary, norm: Norm, kind: str) -> None:
    """x may be a broadcast view or overlapping windows; y has memory of its own."""
    case = make_case(norm, "float32")
    view = REPEATING[kind](case.arrays["x"])
    arrays = library.make_all(case.arrays)
    x = arrays["x"]
    if library.name == "numpy":
        arrays["x"] = view
    else:
        arrays["x"] = x.as_strided(view.shape, [stride // 4 for stride in view.strides])
    y = case.function()(arrays)
    verify(library.to_numpy(y), view, case.with_x(view).reference())
    assert 0 not in _strides(y)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@each_norm
@each_library(["numpy"])
def test_other_byte_order(library: ArrayLibrary, norm: Norm, dtype: str) -> None:
    """NumPy arrays of the other byte order are normalized and stay so."""
    case = make_case(norm, dtype)
    swapped = {name: a.astype(numpy_dtype(dtype).newbyteorder()) for name, a in case.arrays.items()}
    y = Case(norm, swapped).run(library)
    assert y.dtype == swapped["x"].dtype
    verify(y.astype(dtype), case.arrays["x"], case.reference())
