"""Automatic differentiation where the chain rule, or a library's own sums, would lose the gradient.

Ordinary inputs are in test_autodiff.py and test_autodiff_jax.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import anynorm as an
from anynorm._reference_gradients import Gradients, gradients

Derive = Callable[..., tuple[Any, ...]]


def _torch(function: Callable[..., Any], dy: Any, *arrays: Any) -> tuple[Any, ...]:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    leaves = [torch.tensor(tensor, requires_grad=True) for tensor in arrays]
    return tuple([value.numpy() for value in torch.autograd.grad(function(*leaves), leaves, torch.tensor(dy))])


def _jax(function: Callable[..., Any], dy: Any, *arrays: Any) -> tuple[Any, ...]:
    jax: Any = pytest.importorskip("jax", reason="jax is not installed")
    return tuple([np.asarray(value) for value in jax.vjp(function, *arrays)[1](dy)])


def _jax_jit(function: Callable[..., Any], dy: Any, *arrays: Any) -> tuple[Any, ...]:
    jax: Any = pytest.importorskip("jax", reason="jax is not installed")
    return tuple(
        [np.asarray(value) for value in jax.jit(lambda dy, *tensors: jax.vjp(function, *tensors)[1](dy))(dy, *arrays)]
    )


each_way = pytest.mark.parametrize("derive", [_torch, _jax, _jax_jit], ids=["torch", "jax", "jax-jit"])


def _verify(
    derive: Derive, name: str, dy: Any, x: Any, weight: Any, exact: Gradients | None = None, **options: Any
) -> None:
    def function(x: Any, weight: Any, bias: Any) -> Any:
        return getattr(an, name)(x, weight=weight, bias=bias, **options)

    exact = exact or gradients(name, dy, x, weight=weight, bias=weight, **options)
    for which, expected, found in zip(exact._fields, exact, derive(function, dy, x, weight, weight), strict=True):
        assert expected is not None
        units = expected.units(found)
        assert units <= 1, f"d{which} is off by {units:.3g} units"


@each_way
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(
    ("deviation", "size", "eps"),
    [
        (1e14, 1e-8, 1e-5),
        (1e14, 1e-10, 1e-5),
        (1e13, 1e-12, 1e-5),
        (1e14, 1e30, 1e-5),
        (1e-30, 1e-30, 0.0),
        (1e30, 1, 1e-5),
    ],
)
def test_sizes_of_x_and_dy(derive: Derive, name: str, deviation: float, size: float, eps: float) -> None:
    """No intermediate of the chain rule, such as dy divided by the variance, overflows or vanishes."""
    random = np.random.default_rng(0)
    x, dy = [(scale * random.normal(size=(4, 16))).astype("float32") for scale in (deviation, size)]
    _verify(derive, name, dy, x, random.normal(size=16).astype("float32"), eps=eps)


@each_way
@pytest.mark.parametrize("eps", [0.0, 2.0**-126, 1e-30, 1e-5])
def test_equal_values(derive: Derive, eps: float) -> None:
    """Large equal values have the slope 1/√eps, which scaled like them is no number; none at eps = 0."""
    dy = np.asarray([[1, 2, 3, 5]] * 2, "float32")
    _verify(derive, "layer_norm", dy, np.full((2, 4), 1e20, "float32"), np.ones(4, "float32"), eps=eps)


@functools.lru_cache(maxsize=1)
def _many_elements(shape: tuple[int, ...]) -> tuple[tuple[Any, Any, Any], Gradients]:
    """Return dy, x and a weight for batch norm, which nobody can write to, and the exact gradients, which are slow."""
    x = np.random.default_rng(0).normal(3, 1, shape).astype("float32")
    arrays = np.full(shape, 1 / 3, "float32"), x, np.ones(shape[1], "float32")
    exact = gradients("batch_norm", arrays[0], x, weight=arrays[2], bias=arrays[2])
    for tensor in arrays:
        tensor.flags.writeable = False
    return arrays, exact


@each_way
@pytest.mark.parametrize("shape", [(65536, 4, 2), (4,) * 10], ids=["long", "many axes"])
def test_gradients_summed_over_many_elements(derive: Derive, shape: tuple[int, ...]) -> None:
    """The gradient of a bias over several axes does not drift, as the libraries' own sums of equal elements do."""
    arrays, exact = _many_elements(shape)
    _verify(derive, "batch_norm", *arrays, exact=exact)


@pytest.mark.parametrize("transform", ["vmap of grad", "jacrev of grad"])
def test_transforms_inside_the_compiler(transform: str) -> None:
    """torch.compile takes a function that torch.func transforms, with the result it has outside."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    func: Any = torch.func

    def loss(x: Any, weight: Any) -> Any:
        return (an.layer_norm(x, weight) ** 3).sum()

    x, weight = torch.linspace(-1, 2, 24).reshape(2, 4, 3) ** 2, torch.tensor([1.0, -2.0, 0.5])
    if transform == "jacrev of grad":
        function, x = func.jacrev(func.grad(loss)), x[0]
    else:
        function = func.vmap(func.grad(loss), in_dims=(0, None))
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(x, weight)
    torch.testing.assert_close(found, function(x, weight), rtol=1e-4, atol=1e-4)
