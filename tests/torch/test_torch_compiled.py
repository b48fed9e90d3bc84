"""Norms in programs that torch.compile makes for a CPU: float64 between registers, and the formula's own derivative."""

from __future__ import annotations

from typing import Any

import pytest
from torch_compiler import COMPILES

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402

import anynorm as an  # noqa: E402

pytestmark = [pytest.mark.feature("compiled"), *COMPILES]


def step(batch_norm: Any, x: Any, dy: Any, eps: float) -> tuple[Any, ...]:
    """Return y, dx, and the batch's mean and m2."""
    leaf = x.clone().requires_grad_()
    y, moments = batch_norm(leaf, eps=eps, return_moments=True)
    return y.detach(), torch.autograd.grad(y, leaf, dy)[0], moments.mean, moments.m2


def hostile_columns() -> Any:
    """Return columns of ordinary, large, small and subnormal numbers, far from 0, of both sizes, and equal ones."""
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(4))
    both = torch.cat([x[:32] * 1e30, x[32:] * 1e-30])
    columns = [x, x * 1e30, x * 1e-30, x * 1e-42, x + 1e5, x * 1e25 + 1e30, both, x * 1e38]
    return torch.cat([*columns, *[torch.full_like(x, value) for value in (0.0, 0.1, 3e30, -1e-30)]], dim=1)


@pytest.mark.parametrize("eps", [0.0, 2.0**-126, 1e-30, 1e-5])
def test_hostile_numbers(eps: float) -> None:
    """Results, moments and gradients of a compiled step are those of the same step in float64, up to rounding."""
    x = hostile_columns()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    compiled = torch.compile(an.batch_norm, fullgraph=True, backend="aot_eager")
    *found, m2 = step(compiled, x, dy, eps)
    *exact, exact_m2 = step(an.batch_norm, x.double(), dy.double(), eps)
    for value, expected in zip(found, exact, strict=True):
        value, expected = torch.atleast_2d(value), torch.atleast_2d(expected)
        largest = expected.abs().amax(0)
        representable = (largest < 3e38) & ((largest > 1e-37) | (largest == 0))
        assert representable.sum() >= 8
        error = (value.double() - expected).abs().amax(0)
        assert bool((error <= 2e-6 * largest)[representable].all())
    fits = (exact_m2 < 3e38) & (exact_m2 > 1e-37)
    torch.testing.assert_close(m2[fits].double(), exact_m2[fits], rtol=1e-5, atol=0)


def test_gradient_of_bias_is_summed_axis_by_axis() -> None:
    """The gradient of what is broadcast is as accurate as the contract says: torch's own sum is 1600 eps off here."""
    x = torch.randn(65536, 4, 2, generator=torch.Generator().manual_seed(6))
    weight, bias = torch.ones(4), torch.zeros(4, requires_grad=True)
    y = torch.compile(an.batch_norm, fullgraph=True, backend="aot_eager")(x, weight=weight, bias=bias)
    y.backward(torch.full_like(y, 0.1))
    assert bias.grad is not None
    exact = 65536 * 2 * float(torch.tensor(0.1))
    assert (bias.grad.double() - exact).abs().max() <= 16 * torch.finfo(torch.float32).eps * exact


def test_exported_programs_keep_to_float32() -> None:
    """What is exported of a float32 norm has no float64 in it, which devices that it is for may lack."""

    class Model(nn.Module):
        def forward(self, x: Any) -> Any:
            return an.layer_norm(x)

    program = torch.export.export(Model(), (torch.randn(3, 8),))
    dtypes = {node.meta["val"].dtype for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
    assert torch.float32 in dtypes
    assert torch.float64 not in dtypes


def test_transformed_within_a_program() -> None:
    """A program may map a norm by torch.func.vmap, and differentiate it by torch.func.grad."""
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(7))

    def loss(x: Any) -> Any:
        return (an.layer_norm(x) ** 3).sum()

    found = torch.compile(torch.func.vmap(torch.func.grad(loss)), fullgraph=True, backend="aot_eager")(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(loss(leaf), leaf)[0], rtol=1e-4, atol=1e-5)
