"""Gradients of weight and bias through the CPU engine, which writes some itself: the same whichever way they come."""

from __future__ import annotations

import warnings
from typing import Any
from unittest import mock

import pytest

import anynorm as an

torch: Any = pytest.importorskip("torch")
pytest.importorskip("numba")

# A few long rows are summed piece by piece, whose gradients the engine leaves to be added up.
SHAPES = {"layer": (8, 64), "one row": (1, 64), "many rows": (300, 33), "long rows": (3, 5000)}


def _leaves(shape: tuple[int, ...]) -> list[Any]:
    generator = torch.Generator().manual_seed(sum(shape))
    lengths = (shape, shape[-1:], shape[-1:])
    return [torch.randn(length, generator=generator).requires_grad_() for length in lengths]


def _gradients(shape: tuple[int, ...], needs: tuple[bool, ...]) -> list[Any]:
    leaves = _leaves(shape)
    for leaf, need in zip(leaves, needs, strict=True):
        leaf.requires_grad_(need)
    y = an.layer_norm(*leaves)
    y.backward(torch.linspace(-1, 2, y.numel()).reshape(shape))
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (False, False, True), (True, True, False)])
def test_written_and_summed_alike(shape: tuple[int, ...], needs: tuple[bool, ...]) -> None:
    """Gradients that the engine writes as float32 have the bits of those summed in float64 and rounded."""
    from anynorm_numba import _engine, _learned

    with mock.patch.object(_engine, "backward_into", wraps=_engine.backward_into) as writes:
        found = _gradients(shape, needs)
    assert bool(writes.called) == ((needs[1] or needs[2]) and shape[1] < 5000)
    with mock.patch.object(_learned, "written", return_value=False):
        summed = _gradients(shape, needs)

    for one, other, need in zip(found, summed, needs, strict=True):
        assert (one is not None) == (other is not None) == need
        assert one is None or torch.equal(one, other)


def test_gradient_of_infinite_size_warns_of_nothing() -> None:
    """A gradient beyond float32 is infinite, silently, whether the engine writes it or NumPy rounds it."""
    from anynorm_numba import _learned

    for written in (True, False):
        x, weight, bias = _leaves((8, 64))
        with mock.patch.object(_learned, "written", return_value=written), warnings.catch_warnings():
            warnings.simplefilter("error")
            y = an.layer_norm(x, weight, bias)
            y.backward(torch.full_like(y, 3e38))
        assert bias.grad.tolist() == [torch.inf] * 64


@pytest.mark.parametrize("pack", [lambda its: its.clone(memory_format=torch.contiguous_format), lambda its: its])
def test_tensors_that_hooks_bring_back_otherwise(pack: Any) -> None:
    """Saved tensors that a hook lays out anew are read as they lie then."""
    x, weight, bias = _leaves((16, 64))
    expected = _gradients((16, 64), (True, True, True))
    turned = x.detach().t().contiguous().t().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda its: its):
        y = an.layer_norm(turned, weight, bias)
    y.backward(torch.linspace(-1, 2, y.numel()).reshape(16, 64))
    for one, other in zip((turned.grad, weight.grad, bias.grad), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_do_not_share_memory() -> None:
    """Gradients of weight and bias may be changed in place one by one."""
    x, weight, bias = _leaves((8, 64))
    y = an.layer_norm(x, weight, bias)
    y.sum().backward()
    kept = bias.grad.clone()
    weight.grad.zero_()
    assert torch.equal(bias.grad, kept)


def test_result_is_no_view() -> None:
    """A small result is no view of anything, so that an activation in place may follow."""
    x, weight, bias = _leaves((8, 64))
    for _ in range(3):
        y = an.layer_norm(x, weight, bias)
        assert not y._is_view()
        y.relu_().sum().backward()
