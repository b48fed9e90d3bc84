"""Lengths that jax.export leaves open: one program for all of them, and the contract at each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gradients import cotangent, exact_gradients, verify_gradients
from inputs import Case, Norm, verify

import anynorm as an
from anynorm import layers

jax: Any = pytest.importorskip("jax", reason="jax is not installed")
jnp: Any = jax.numpy
export: Any = pytest.importorskip("jax.export")

# Norms of (b, 6, h, w), of which only the channels' length is settled, with the shapes of their parameters.
Symbols = tuple[Any, ...]
NORMS: tuple[tuple[Norm, Callable[..., Symbols]], ...] = (
    (Norm("batch", "batch_norm"), lambda *arguments: (arguments[1],)),
    (Norm("batch-last", "batch_norm", {"channel_axis": -1}), lambda *arguments: (arguments[3],)),
    (Norm("group", "group_norm", groups=(3,)), lambda *arguments: (arguments[1],)),
    (Norm("instance", "instance_norm"), lambda *arguments: (arguments[1],)),
    (Norm("layer-images", "layer_norm", {"axis": (2, 3)}), lambda *arguments: (arguments[2], arguments[3])),
    (
        Norm("layer-all", "layer_norm", {"axis": None}),
        lambda *arguments: (arguments[0], arguments[1], arguments[2], arguments[3]),
    ),
    (Norm("rms-apart", "rms_norm", {"axis": (0, 3)}), lambda *arguments: (arguments[0], 1, arguments[2], 1)),
)
SIZES = ((4, 6, 5, 3), (1, 6, 2, 7))
LONG = (2, 6, 3, 20000)  # where XLA on CPU once failed on the gradient of batch norm of channels last

each_norm = pytest.mark.parametrize(("norm", "parameter"), NORMS, ids=[norm.name for norm, _ in NORMS])


def _symbols() -> Symbols:
    b, h, w = export.symbolic_shape("b, h, w")
    return b, 6, h, w


def _case(norm: Norm, parameter: Callable[..., Symbols], shape: tuple[int, ...]) -> Case:
    random = np.random.default_rng(5)
    arrays = {"x": random.normal(300, 2, size=shape)}
    arrays |= {name: random.normal(size=parameter(*shape)) for name in ("weight", "bias")}
    return Case(norm, {name: array.astype(np.float32) for name, array in arrays.items()})


def _exported(function: Callable[..., Any], *shapes: Symbols) -> Any:
    return export.export(jax.jit(function))(*[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])


@pytest.mark.feature("compiled")
@each_norm
def test_export(norm: Norm, parameter: Callable[..., Symbols]) -> None:
    """An exported norm and its gradients keep the contract at every length, 1 and long ones too."""
    symbols = _symbols()

    def step(x: Any, weight: Any, bias: Any, dy: Any) -> Any:
        def function(*arrays: Any) -> Any:
            return case.function()(dict(zip(("x", "weight", "bias"), arrays, strict=True)))

        y, pullback = jax.vjp(function, x, weight, bias)
        return y, pullback(dy)

    case = _case(norm, parameter, SIZES[0])
    program = _exported(step, symbols, parameter(*symbols), parameter(*symbols), symbols)
    for shape in (*SIZES, LONG):
        case = _case(norm, parameter, shape)
        dy = cotangent(case)
        y, gradients = program.call(*case.arrays.values(), dy)
        verify(np.asarray(y), case.arrays["x"], case.reference())
        verify_gradients(an.Gradients(*map(np.asarray, gradients)), case, exact_gradients(case, dy))


def test_export_of_moments() -> None:
    """n is the length that is open: variance, merging and running statistics take it, whatever the sizes."""

    def step(x: Any, mean: Any, var: Any) -> Any:
        y, batch = an.batch_norm(x, return_moments=True)
        both = batch + an.moments(x, axis=(0, 2, 3))
        return y, both, both.var(correction=1), an.update_running(mean, var, both)

    program = _exported(step, _symbols(), (6,), (6,))
    for shape in SIZES:
        x = np.random.default_rng(5).normal(3, 2, size=shape).astype(np.float32)
        twice = np.concatenate([x, x]).astype(np.float64)
        _, both, unbiased, (mean, var) = program.call(x, jnp.zeros(6), jnp.ones(6))
        assert int(both[0]) == twice.size // 6
        exact = twice.mean(axis=(0, 2, 3)), twice.var(axis=(0, 2, 3), ddof=1)
        np.testing.assert_allclose(both[1], exact[0], rtol=1e-6)
        np.testing.assert_allclose(unbiased, exact[1], rtol=1e-5)
        np.testing.assert_allclose(mean, 0.1 * exact[0], rtol=1e-5)
        np.testing.assert_allclose(var, 0.9 + 0.1 * exact[1], rtol=1e-5)
        assert {array.dtype for array in (both[1], unbiased, mean, var)} == {np.dtype(np.float32)}


def test_symbolic_counts_keep_the_dtype() -> None:
    """Where JAX has float64, an open count makes no float32 statistic one."""
    with jax.enable_x64(True):
        program = _exported(
            lambda x: (an.moments(x, axis=(0, 2)) + an.moments(x, axis=(0, 2))).var(), (*_symbols()[:3],)
        )
        assert program.out_avals[0].dtype == jnp.float32


@pytest.mark.feature("compiled")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: layers.BatchNorm(6, xp=jnp), id="batch"),
        pytest.param(lambda: layers.BatchNorm(6, xp=jnp).eval(), id="batch-eval"),
        pytest.param(lambda: layers.InstanceNorm(6, xp=jnp, track_running_stats=True), id="instance"),
        pytest.param(lambda: layers.GroupNorm(2, 6, xp=jnp), id="group"),
        pytest.param(lambda: layers.LayerNorm(6, axis=1, xp=jnp), id="layer"),
    ],
)
def test_export_of_layers(make: Callable[[], Any]) -> None:
    """A layer is exported as it is called, with its pullback, and gives what it gives."""
    layer = make()

    def step(x: Any) -> Any:
        y, pullback = layer.vjp(x, update=False)
        return y, pullback(x)

    program = _exported(step, _symbols())
    for shape in SIZES:
        x = jnp.asarray(np.random.default_rng(5).normal(3, 2, size=shape).astype(np.float32))
        got, expected = [jax.tree.leaves(value) for value in (program.call(x), step(x))]
        for value, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("axis", [0, 2], ids=["batch", "height"])
def test_vmap_over_an_open_length(axis: int) -> None:
    """jax.vmap may map over an axis whose length is open."""
    function = jax.vmap(lambda x: an.layer_norm(x, axis=(0, 2)), in_axes=axis, out_axes=axis)
    program = _exported(function, _symbols())
    for shape in SIZES:
        x = np.random.default_rng(5).normal(3, 2, size=shape).astype(np.float32)
        axes = tuple([other for other in (0, 1, 2, 3) if other != axis][::2])
        case = Case(Norm("layer", "layer_norm", {"axis": axes}), {"x": x})
        verify(np.asarray(program.call(x)), x, case.reference())


def test_eval_shape_with_symbols() -> None:
    """jax.eval_shape of a jitted norm returns the symbols; so it does for those of another program."""
    for _ in range(2):
        symbols = _symbols()
        x = jax.ShapeDtypeStruct(symbols, jnp.float32)
        assert jax.eval_shape(jax.jit(lambda x: an.group_norm(x, 3)), x).shape == symbols
        means = jax.eval_shape(lambda x: an.moments(x, axis=(0, 1)).mean, x)
        assert means.shape == symbols[2:]


@pytest.mark.parametrize(
    ("function", "needed"),
    [
        pytest.param(lambda x: an.group_norm(x, 4), "x has 6 channels", id="groups"),
        pytest.param(lambda x: an.layer_norm(x, jnp.ones(3)), "does not fit x of shape (b, 6, h, w)", id="weight"),
        pytest.param(lambda x: layers.LayerNorm(6, xp=jnp)(x), "x of shape (b, 6, h, w) has w", id="layer"),
    ],
)
def test_errors_show_symbols(function: Callable[[Any], Any], needed: str) -> None:
    """What does not fit at every length is refused while the program is made, in the usual words."""
    with pytest.raises(ValueError, match=r"^(group_norm|layer_norm|LayerNorm): ") as caught:
        _exported(function, _symbols())
    assert needed in str(caught.value)
