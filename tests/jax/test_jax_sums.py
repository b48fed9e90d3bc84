"""Sums under XLA, which adds in an order of its own: sets in which the order decides about every digit of a bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradients import exact_gradients, to_numpy, verify_gradients
from inputs import Case, Norm, check, verify
from libraries import ArrayLibrary, NumPyArray, each_library

import anynorm as an

jax = pytest.importorskip("jax", reason="jax is not installed")

EPS = {"jax_xla": ("float32", 2.0**-23), "jax_xla_x64": ("float64", 2.0**-52)}

# (shape, reduced axes): runs shorter and longer than XLA's blocks of 16, several short axes, and leading ones.
SHAPES = {
    "run": ((3, 1000), (1,)),
    "runs of 9": ((2, 9, 9), (1, 2)),
    "leading": ((9, 9, 5), (0, 1)),
    "five axes": ((2, 3, 7, 5, 3), (1, 2, 3, 4)),
}


def _dominated(shape: tuple[int, ...], axes: tuple[int, ...], dtype: str, eps: float) -> NumPyArray:
    """Return squares' roots of which one a set is 1, and each of the others a little less than half an ulp of it.

    Added to the 1 one by one they are all lost, as are sums of 16, 256, ... of them.
    """
    x = np.full(shape, np.sqrt(7 / 15 * eps))
    x[tuple([0 if axis in axes else slice(None) for axis in range(len(shape))])] = 1.00003
    return x.astype(dtype)


@pytest.mark.feature("hostile inputs")
@pytest.mark.parametrize("shape", list(SHAPES))
@each_library(list(EPS))
def test_one_element_dominates_its_set(library: ArrayLibrary, shape: str) -> None:
    """The squares beside a dominant one count, in whatever order XLA would add them, in jax.jit and outside."""
    lengths, axes = SHAPES[shape]
    case = Case(Norm("", "rms_norm", {"axis": axes, "eps": 0.0}), {"x": _dominated(lengths, axes, *EPS[library.name])})
    check(case, library)
    y = jax.jit(case.function())(library.make_all(case.arrays))
    verify(library.to_numpy(y), case.arrays["x"], case.reference(library.flushes))


@pytest.mark.parametrize("way", ["_sum_by_halves", "_sum_in_float64"])
@pytest.mark.parametrize("shape", list(SHAPES))
@each_library(["jax_xla"])
def test_each_way_to_sum(library: ArrayLibrary, way: str, shape: str) -> None:
    """Each of the programs of a sum, on one device and on several, is right to two ulps; a plain one is 7 off."""
    from anynorm_jax import _sums

    lengths, axes = SHAPES[shape]
    x = _dominated(lengths, axes, "float32", 2.0**-23) ** 2
    found = jax.jit(lambda x: getattr(_sums, way)(x * 1.0, axes))(library.make(x))
    exact = x.astype(np.longdouble).sum(axes, keepdims=True)
    assert found.dtype == np.float32
    assert (abs(library.to_numpy(found) - exact) <= 2 * 2.0**-23).all()


@pytest.mark.feature("hostile inputs")
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@each_library(["jax_xla"])
def test_elements_over_sixty_decades(library: ArrayLibrary, jitted: bool) -> None:
    """Sets whose elements spread evenly over 60 decades keep the bound where XLA merges sums over two axes."""
    random = np.random.default_rng(2)
    shape = (4, 8, 9, 9)
    x = random.choice([-1, 1], size=shape) * 10.0 ** random.uniform(-30, 30, size=shape)
    case = Case(Norm("", "instance_norm"), {"x": x.astype("float32")})
    function = jax.jit(case.function()) if jitted else case.function()
    verify(library.to_numpy(function(library.make_all(case.arrays))), case.arrays["x"], case.reference(True))


def _derived(case: Case, arrays: dict[str, Any], dy: Any) -> an.Gradients:
    """Return what JAX derives by itself."""
    found = jax.jit(lambda arrays, dy: jax.vjp(case.function(), arrays)[1](dy)[0])(arrays, dy)
    return an.Gradients(found["x"], found["weight"], found["bias"])


def _by_vjp(case: Case, arrays: dict[str, Any], dy: Any) -> an.Gradients:
    others = {name: array for name, array in arrays.items() if name != "x"}
    return an.vjp(getattr(an, case.norm.function), arrays["x"], **others, **case.norm.options)[1](dy)


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize("derive", [_derived, _by_vjp])
@each_library(list(EPS))
def test_one_gradient_dominates_a_parameter(library: ArrayLibrary, derive: Any) -> None:
    """The gradients of weight and bias are summed as accurately: to a 16th of the bound, which a plain sum exceeds."""
    dtype, eps = EPS[library.name]
    shape = (64, 2, 64, 8)
    x = np.random.default_rng(5).choice([-1.0, 1.0], size=shape)
    dy = np.full(shape, 7 / 15 * eps)
    dy[0, :, 0, 0] = 1.00003
    arrays = {"x": x.astype(dtype), "weight": np.ones(2, dtype), "bias": np.ones(2, dtype)}
    case = Case(Norm("", "batch_norm", {}), arrays)
    dy = dy.astype(dtype)
    found = to_numpy(derive(case, library.make_all(arrays), library.make(dy)), library)
    exact = exact_gradients(case, dy, library.flushes)
    verify_gradients(found, case, exact)
    assert exact.bias is not None
    assert exact.bias._replace(bound=exact.bias.bound / 16).units(found.bias) <= 1


@pytest.mark.feature("autodiff")
@each_library(["jax_xla"])
def test_sums_in_every_transformation(library: ArrayLibrary) -> None:
    """Batched, linearized, transposed, twice differentiated, without jit: one value, whichever way it comes about."""
    random = np.random.default_rng(6)
    x, w, dy = [library.make(random.normal(size=shape).astype("float32")) for shape in ((3, 5, 7), (7,), (3, 5, 7))]

    def loss(x: Any, w: Any) -> Any:
        return (an.layer_norm(x, w) * dy).sum()

    expected = jax.jit(jax.grad(loss, (0, 1)))(x, w)
    _, linear = jax.linearize(jax.jit(loss), x, w)
    np.testing.assert_allclose(linear(x, w), (expected[0] * x).sum() + (expected[1] * w).sum(), rtol=1e-4, atol=1e-5)
    of_row = jax.grad(lambda x, dy: (an.layer_norm(x, w) * dy).sum())
    rows = jax.jit(jax.vmap(of_row, in_axes=1, out_axes=1))(x, dy)
    np.testing.assert_allclose(rows, expected[0], rtol=1e-5, atol=1e-6)
    hessian = jax.jit(jax.hessian(lambda w: (an.layer_norm(x, w) ** 2).sum()))(w)
    np.testing.assert_allclose(hessian, np.diag(2 * (an.layer_norm(x) ** 2).sum((0, 1))), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sharded_axis", [0, 2])
@each_library(["jax_xla"])
def test_explicit_sharding(library: ArrayLibrary, sharded_axis: int) -> None:
    """On a mesh whose axes are part of the type, gradients have the types of their arguments, batched or not."""
    if not hasattr(jax.sharding, "AxisType") or not hasattr(jax, "set_mesh"):
        pytest.skip("this version of JAX has no explicit axes")
    spec = jax.sharding.PartitionSpec(*["d" if axis == sharded_axis else None for axis in range(3)])
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    random = np.random.default_rng(8)
    x, w = [library.make(random.normal(size=shape).astype("float32")) for shape in ((2, 3, 4), (3,))]

    def loss(x: Any, w: Any) -> Any:
        return (an.batch_norm(x, weight=w, bias=w) ** 3).sum()

    expected = jax.jit(jax.grad(loss, (0, 1)))(x, w)
    with jax.set_mesh(mesh):
        laid = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        plain = jax.device_put(w, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        found = jax.jit(jax.grad(loss, (0, 1)))(laid, plain)
        assert jax.typeof(found[0]).sharding.spec == spec
        rows = jax.jit(jax.vmap(jax.grad(loss), in_axes=(1, None)))(laid[:, None], plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    np.testing.assert_allclose(rows[0], expected[0], rtol=1e-4, atol=1e-4)


@each_library(["jax_xla"])
def test_norms_without_jit(library: ArrayLibrary) -> None:
    """`jax.disable_jit`, for debugging, changes nothing but the time."""
    x = library.make(np.random.default_rng(6).normal(size=(2, 3)).astype("float32"))
    with jax.disable_jit():
        y, pullback = an.vjp(an.layer_norm, x)
        dx = pullback(x).x
    np.testing.assert_allclose(y, an.layer_norm(x), rtol=1e-6)
    np.testing.assert_allclose(dx, an.vjp(an.layer_norm, x)[1](x).x, atol=1e-6)
