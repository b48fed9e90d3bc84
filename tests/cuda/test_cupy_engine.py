"""CuPy's arrays through the CUDA engine, without a GPU: which are served, with what, and that the numbers are right.

What the kernels compute is tested elsewhere, and so is what CuPy's own arithmetic does, which needs a device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cuda_host
import cupy_on_host
import numpy as np
import pytest
from cupy_on_host import FULL, LIBRARY, Host, close, explained, make, normal, on_host, to_numpy, viewed
from gradients import check_gradients, cotangent, exact_gradients, verify_gradients, vjp
from inputs import NORMS, check, make_case, verify
from layouts import LAYOUTS, STRIDED

import anynorm as an
from anynorm._core.dispatch import bound

if cupy_on_host.missing() is not None:
    pytest.skip(str(cupy_on_host.missing()), allow_module_level=True)
cupy: Any = importlib.import_module("cupy")

# Norms that no view holds, and those whose gradients no kernel computes: they need CuPy's own arithmetic.
DECLINED = ("layer-apart", "layer-modulated", "rms-heads", "group-two-batches")
FORWARD_ONLY = ("group-unbatched", "batch-given", "batch-given-last")
# Layouts in which no kernel reads x, by norm.
UNREAD = {
    "sliced": ("layer", "rms", "group", "instance", "batch"),
    "reversed": ("layer", "rms", "group", "instance", "batch"),
    "cropped": ("layer", "rms", "group", "batch"),
    "fortran": ("group", "instance"),
}
FEW = {norm.name: norm for norm in NORMS if norm.name in ("layer", "rms", "group", "instance", "batch")}


@pytest.fixture
def host(cuda_programs: Path) -> Iterator[Host]:
    """Let CuPy's arrays be served on the CPU."""
    with on_host(cuda_host.launcher(cuda_programs)) as device:
        yield device


@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in NORMS])
def test_every_norm(norm: Any, host: Host) -> None:
    """Every norm is served and within the bounds, y and gradients, or `explain` says why it is not."""
    case = make_case(norm, "float32")
    route = explained(case, LIBRARY.make_all(case.arrays))
    if norm.name in DECLINED:
        assert route.path == "formula"
        assert "for which the kernels have no loops" in str(route.reason)
        return
    assert route == ("anynorm_cuda", None)
    check(case, LIBRARY)
    if norm.name not in FORWARD_ONLY:
        before = len(host.launches)
        check_gradients(case, LIBRARY, cotangent(case))
        assert len(host.launches) > before
    assert host.streams == {cupy_on_host.STREAM}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", FEW)
def test_half_precision(name: str, dtype: str, host: Host) -> None:
    """float16 and bfloat16, of x and of its parameters, are read and written as they are."""
    case = make_case(FEW[name], dtype)
    assert explained(case, LIBRARY.make_all(case.arrays)).path == "anynorm_cuda"
    check(case, LIBRARY)
    check_gradients(case, LIBRARY, cotangent(case))
    assert {dict(launch.kernel.macros)["W"] for launch in host.launches if launch.kernel.name == "rows_forward"} <= {
        {"float16": "f16", "bfloat16": "bf16"}[dtype]
    }


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("layout", [*STRIDED, "reversed"])
@pytest.mark.usefixtures("host")
def test_layouts(layout: str, name: str) -> None:
    """x of any layout is served where it lies or declined for its strides; y is dense, its axes in x's order."""
    case = make_case(FEW[name], "float32")
    x = make(LAYOUTS[layout](case.arrays["x"]))
    assert x.strides == LAYOUTS[layout](case.arrays["x"]).strides
    route = explained(case, LIBRARY.make_all(case.arrays) | {"x": x})
    if name in UNREAD.get(layout, ()):
        assert route.path == "formula"
        assert any(words in str(route.reason) for words in ("backwards", "side by side", "without a gap", "no loops"))
        return
    assert route == ("anynorm_cuda", None)
    dy = make(LAYOUTS[layout](cotangent(case)))
    for _ in range(2):
        y, pullback = vjp(case, LIBRARY.make_all(case.arrays) | {"x": x})
        verify(to_numpy(y), case.arrays["x"], case.reference())
        like = np.empty_like(case.arrays["x"] if layout == "cropped" else viewed(x))
        assert y.strides == pullback(dy).x.strides == like.strides
        found = an.Gradients(*[None if array is None else to_numpy(array) for array in pullback(dy)])
        verify_gradients(found, case, exact_gradients(case, cotangent(case)))


def _shifted(array: Any) -> Any:
    memory = cupy.ndarray((array.size + 1,), array.dtype)
    moved = memory[1:].reshape(array.shape)
    viewed(moved)[...] = viewed(array)
    return moved


def _spaced(array: Any) -> Any:
    wide = np.full((*array.shape, 3), 7, array.dtype)
    wide[..., 0] = viewed(array)
    return make(wide)[..., 0]


def _broadcast(array: Any) -> Any:
    first = viewed(array).ravel()[0]
    viewed(array)[...] = first
    return cupy.broadcast_to(make(np.full((1,), first)), array.shape)


ODD: dict[str, Callable[[Any], Any]] = {
    "aligned to 4 bytes": _shifted,
    "spaced": _spaced,
    "reversed": lambda array: make(viewed(array)[..., ::-1].copy())[..., ::-1],
    "float64": lambda array: make(viewed(array).astype(np.float64)),
    "broadcast": _broadcast,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("which", ["weight", "bias"])
@pytest.mark.usefixtures("host")
def test_odd_parameters(which: str, odd: str) -> None:
    """A weight or bias that lies oddly or is wider is served as a plain one is, and so is its gradient."""
    layer: Any = an.layer_norm
    x, dy = normal(5, 24), normal(5, 24)
    plain = {"weight": normal(24), "bias": make(np.arange(24, dtype=np.float32))}
    arrays = plain | {which: ODD[odd](plain[which])}
    expected, pull = an.vjp(layer, x, **plain)
    for _ in range(3):
        assert an.explain(layer, x, **arrays).path == "anynorm_cuda"
        y, pullback = an.vjp(layer, x, **arrays)
        close(y, expected)
        for one, other in zip(pullback(dy), pull(dy), strict=True):
            close(one, other)
    assert getattr(pullback(dy), which).dtype == arrays[which].dtype


@pytest.mark.parametrize("call", [an.layer_norm, an.batch_norm, an.instance_norm])
def test_memory_aligned_to_an_element(call: Any, host: Host) -> None:
    """x, y and dy at any address that their elements can have are read and written there and nowhere else."""
    x, dy = normal(3, 8, 4), normal(3, 8, 4)
    y, pullback = an.vjp(call, x)
    for _ in range(2):
        moved, pull = an.vjp(call, _shifted(x))
        close(moved, y)
        close(pull(_shifted(dy)).x, pullback(dy).x)
        close(pullback(_shifted(dy)).x, pullback(dy).x)
    host.shift = 4  # as an allocator may that is not CuPy's
    for _ in range(2):
        moved, pull = an.vjp(call, x)
        assert moved.data.ptr % 16
        close(moved, y)
        close(pull(dy).x, pullback(dy).x)


@pytest.mark.parametrize("axis", [-1, 0, (1, 2), None])
def test_moments(axis: Any, host: Host) -> None:
    """The engine measures x where only its moments are asked for, and writes nothing else."""
    x = normal(4, 6, 16)
    call = bound(an.moments, (x,), {"axis": axis})
    assert an.explain(an.moments, x, axis=axis).path == "anynorm_cuda"
    measured = call.entry.executable.measure(x)
    exact = viewed(x).astype(np.float64)
    mean = exact.mean(axis=axis, keepdims=True)
    found = to_numpy(measured.mean) + to_numpy(measured.correction).astype(np.float64)
    np.testing.assert_allclose(found, mean, rtol=0, atol=4 * 2.0**-24 * np.abs(exact).max())
    np.testing.assert_allclose(to_numpy(measured.m2), ((exact - mean) ** 2).sum(axis=axis, keepdims=True), rtol=1e-6)
    assert (to_numpy(measured.scale) == 1).all()
    assert host.launches[0].kernel.name in ("rows_forward", "columns_forward")


def test_long_sets(host: Host) -> None:
    """A set that no thread group holds is taken in chunks, with a workspace, also where no residuals are kept."""
    for shape in ((2, 300_000), (1, 5, 8)):
        x = normal(*shape)
        for axis in ((-1,), (0, 1)):
            y = an.layer_norm(x, axis=axis)
            array = viewed(x).astype(np.float64)
            exact = (array - array.mean(axis, keepdims=True)) / np.sqrt(array.var(axis, keepdims=True) + 1e-5)
            np.testing.assert_allclose(to_numpy(y), exact, rtol=2e-6, atol=2e-6)
    assert {launch.kernel.name for launch in host.launches} >= {"rows_measure", "finalize_statistics", "rows_apply"}


def test_room_of_a_graph_is_kept(host: Host) -> None:
    """Memory that kernels of a captured graph work in is nobody else's for good; of other calls none is kept."""
    from anynorm_cupy import _memory

    x = normal(2, 300_000)
    kept = []
    for host.capturing in (False, True):
        before = len(_memory._of_graphs)
        _, pullback = an.vjp(an.layer_norm, x)
        pullback(x)
        an.layer_norm(x)
        kept.append(len(_memory._of_graphs) - before)
    host.capturing = False
    assert kept == [0, 3]


@pytest.mark.usefixtures("host")
def test_dx_is_put_into_out() -> None:
    """The kernel writes dx where the pullback is told to, also where that is aligned otherwise than x; nothing else."""
    x, dy, memory = normal(5, 24), normal(5, 24), make(np.full(5 * 24 + 4, 7, np.float32))
    _, pullback = an.vjp(an.layer_norm, x, normal(24))
    expected = pullback(dy)
    out = memory[1:121].reshape(5, 24)
    found = pullback(dy, out=out)
    assert found.x is out
    np.testing.assert_allclose(to_numpy(out), to_numpy(expected.x), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(to_numpy(found.weight), to_numpy(expected.weight))
    np.testing.assert_array_equal(to_numpy(memory)[[0, -3, -2, -1]], 7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.usefixtures("host")
def test_dtype_of_dy(dtype: str) -> None:
    """dy of fewer digits than x is served in x's dtype; one of more goes to the formula, which keeps them."""
    x, dy = normal(5, 24), normal(5, 24, dtype=dtype)
    _, pullback = an.vjp(an.layer_norm, x)
    with mock.patch("anynorm._core.formula.backward", return_value=(1, None, None)) as formula:
        found = pullback(dy).x
    if dtype == "float64":
        formula.assert_called_once()
    else:
        formula.assert_not_called()
        close(found, pullback(make(to_numpy(dy).astype(np.float32))).x)


@pytest.mark.usefixtures("host")
def test_gradient_in_another_order() -> None:
    """The gradient of a weight lies in C order: where x and weight do not, the formula computes it."""
    x, weight = [make(LAYOUTS["transposed"](viewed(array))) for array in (normal(3, 6, 8), normal(6, 8))]
    assert an.explain(an.layer_norm, x, weight, axis=(1, 2)).path == "anynorm_cuda"
    _, pullback = an.vjp(an.layer_norm, x, weight, axis=(1, 2))
    with mock.patch("anynorm._core.formula.backward", return_value=(x, weight, None)) as formula:
        pullback(x)
    formula.assert_called_once()


@pytest.mark.usefixtures("host")
def test_layout_of_dy() -> None:
    """dy that lies otherwise than x is copied, and not left to the formula."""
    x, dy = normal(5, 6, 8), normal(5, 6, 8)
    _, pullback = an.vjp(an.layer_norm, x)
    expected = pullback(dy).x
    for layout in ("transposed", "sliced", "reversed", "fortran"):
        close(pullback(make(LAYOUTS[layout](viewed(dy)))).x, expected)


def test_layout_of_dy_beside_out(host: Host) -> None:
    """A copy of dy has memory of its own layout where dx goes into an `out` with gaps: no byte beyond it is written."""
    x, dy = normal(5, 24), normal(5, 24)
    _, pullback = an.vjp(an.layer_norm, x)
    expected = pullback(dy).x
    out = make(np.zeros((5, 30), np.float32))[:, :24]
    blocks: list[Any] = []
    with mock.patch.object(host, "blocks", blocks):
        close(pullback(make(LAYOUTS["fortran"](viewed(dy))), out=out).x, expected)
    assert blocks
    assert all((block[end:] == FULL).all() for block, end in blocks)


TURNED = {"layer": (0,), "rms": (0, 1, 2), "instance": (0, 1), "group": (0,), "batch": (1,)}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", TURNED)
@pytest.mark.usefixtures("host")
def test_kept_axes_that_run_backwards(name: str, dtype: str) -> None:
    """x, dy and `out` that run backwards along axes that are kept are served, with the bits of those that do not."""
    case = make_case(FEW[name], dtype)
    if name == "batch":  # so large that channels lie as lines
        x = np.random.default_rng(1).normal(2, 3, (3, case.arrays["x"].shape[1], 10, 8)).astype(dtype)
        case = case.with_x(x)
    arrays, dy = LIBRARY.make_all(case.arrays), cotangent(case)
    axes = tuple([axis for axis in TURNED[name] if axis < case.arrays["x"].ndim - (name in ("layer", "rms"))])

    def turned(array: Any) -> Any:
        return make(np.flip(np.flip(array, axes).copy(), axes))

    backwards = arrays | {"x": turned(case.arrays["x"])}
    assert min(backwards["x"].strides) < 0
    assert explained(case, backwards) == ("anynorm_cuda", None)
    (y, pullback), (other, again) = vjp(case, arrays), vjp(case, backwards)
    assert to_numpy(other).tobytes() == to_numpy(y).tobytes()
    options: Any = {"out": turned(dy)}
    for array, right in zip(again(turned(dy), **options), pullback(make(dy)), strict=True):
        assert (array is None) == (right is None)
        if array is not None:
            assert to_numpy(array).tobytes() == to_numpy(right).tobytes()
    out = turned(dy)
    assert case.function(out=out)(backwards) is out
    assert to_numpy(out).tobytes() == to_numpy(y).tobytes()
