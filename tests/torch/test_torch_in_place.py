"""What a norm returns may be changed in place: autograd does not keep it. The gradients are torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import anynorm as an

torch: Any = pytest.importorskip("torch")

functional = torch.nn.functional


def _plus(y: Any, bias: Any) -> Any:
    """Add a bias along the channels: torch's own norms with a bias but no weight have no second derivative."""
    return y if bias is None else y + bias[:, None]


# By name: ours, torch's own, and the length of weight and bias.
NORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {
    "layer": (an.layer_norm, lambda x, w, b: functional.layer_norm(x, (8,), w) + (0 if b is None else b), 8),
    "rms": (an.rms_norm, lambda x, w, b: functional.rms_norm(x, (8,), w, eps=1e-6) + (0 if b is None else b), 8),
    "group": (lambda x, w, b: an.group_norm(x, 3, w, b), lambda x, w, b: _plus(functional.group_norm(x, 3, w), b), 6),
    "instance": (
        lambda x, w, b: an.instance_norm(x, weight=w, bias=b),
        lambda x, w, b: _plus(functional.instance_norm(x, None, None, w), b),
        6,
    ),
    "batch": (
        lambda x, w, b: an.batch_norm(x, weight=w, bias=b),
        lambda x, w, b: _plus(functional.batch_norm(x, None, None, w, training=True), b),
        6,
    ),
    "batch, given": (
        lambda x, w, b: an.batch_norm(x, weight=w, bias=b, mean=torch.zeros(6), var=torch.ones(6)),
        lambda x, w, b: _plus(functional.batch_norm(x, torch.zeros(6), torch.ones(6), w), b),
        6,
    ),
}

each_norm = pytest.mark.parametrize("norm", NORMS)
each_path = pytest.mark.parametrize("fast", [True, False], ids=["fast", "formula"])
each_affine = pytest.mark.parametrize("affine", ["none", "weight", "bias", "both"])

# Ways to change a tensor.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "activation": lambda y: functional.leaky_relu(y, 0.1, inplace=True),
    "view": lambda y: (y[:, 1:].mul_(2), y)[1],
}


def _leaves(norm: str, affine: str, dtype: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(2)
    length = NORMS[norm][2]
    x, weight, bias = [torch.randn(shape, generator=generator).to(dtype) for shape in ((4, 6, 8), length, length)]
    wanted = [x, weight if affine in ("weight", "both") else None, bias if affine in ("bias", "both") else None]
    return [None if tensor is None else tensor.requires_grad_() for tensor in wanted]


def _gradients(function: Callable[..., Any], leaves: list[Any], change: Callable[[Any], Any]) -> list[Any]:
    """Return what becomes of y, the gradients, and those of the gradients' squares."""
    y = change(function(*leaves))
    present = [leaf for leaf in leaves if leaf is not None]
    first = torch.autograd.grad(y.sin().sum() + y.square().sum(), present, create_graph=True)
    second = torch.autograd.grad(
        sum([(gradient * gradient).sum() for gradient in first]), present, materialize_grads=True
    )
    return [y, *first, *second]


@pytest.mark.parametrize("change", CHANGES)
@each_affine
@each_path
@each_norm
def test_result_changed_in_place(norm: str, fast: bool, affine: str, change: str) -> None:
    """An operation in place may follow a norm; two orders of derivatives are those of torch's own norm with it."""
    ours, native, _ = NORMS[norm]
    expected = _gradients(native, _leaves(norm, affine, torch.float32), CHANGES[change])
    with an.fast_paths(fast):
        found = _gradients(ours, _leaves(norm, affine, torch.float32), CHANGES[change])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@each_affine
@each_path
@each_norm
def test_gradient_after_the_result_is_overwritten(norm: str, fast: bool, affine: str, dtype: str) -> None:
    """The gradient of y as it was does not depend on what is written over y."""
    leaves = _leaves(norm, affine, getattr(torch, dtype))
    present = [leaf for leaf in leaves if leaf is not None]
    dy = torch.linspace(-1, 1, 4 * 6 * 8).reshape(4, 6, 8).to(leaves[0].dtype)
    with an.fast_paths(fast):
        expected = torch.autograd.grad(NORMS[norm][0](*leaves), present, dy)
        y = NORMS[norm][0](*leaves)
    with torch.no_grad():  # of which autograd keeps no record but that the tensor has changed
        y.fill_(9.0)
    for one, other in zip(torch.autograd.grad(y, present, dy), expected, strict=True):
        assert torch.equal(one, other)
