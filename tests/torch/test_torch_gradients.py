"""Gradients of weight and bias through the CPU engine, which writes some itself: the same whichever way they come."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
from libraries import nothing_known

import anynorm as an

torch: Any = pytest.importorskip("torch")
pytest.importorskip("numba")
from anynorm_numba import _threads  # noqa: E402

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


@contextmanager
def _summed_by_numpy() -> Iterator[None]:
    """Let NumPy sum every gradient of a parameter, as it does where no kernel can."""
    from anynorm_numba import _parameters

    with (
        mock.patch.object(_parameters, "_three", return_value=None),
        nothing_known(),
    ):
        yield


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (False, False, True), (True, True, False)])
def test_whoever_sums(shape: tuple[int, ...], needs: tuple[bool, ...]) -> None:
    """Gradients that a kernel sums have the bits of those that NumPy sums."""
    found = _gradients(shape, needs)
    with _summed_by_numpy():
        summed = _gradients(shape, needs)

    for one, other, need in zip(found, summed, needs, strict=True):
        assert (one is not None) == (other is not None) == need
        assert one is None or torch.equal(one, other)


# Each with weights along its channels, which lie in front of, behind or amid what they are summed over.
CALLS: dict[str, Any] = {
    "batch, as an image": (lambda x, weight, bias: an.batch_norm(x, weight=weight, bias=bias), (6, 8, 9, 9), False),
    "batch, channels last": (lambda x, weight, bias: an.batch_norm(x, weight=weight, bias=bias), (6, 8, 3, 3), True),
    "group, as an image": (lambda x, weight, bias: an.group_norm(x, 4, weight, bias), (6, 8, 9, 9), False),
    "group, short images": (lambda x, weight, bias: an.group_norm(x, 4, weight, bias), (6, 8, 2, 2), False),
    "group, channels last": (lambda x, weight, bias: an.group_norm(x, 4, weight, bias), (6, 8, 9, 9), True),
    "rms over rows of heads": (lambda x, weight, bias: an.rms_norm(x, weight, bias, axis=(1, 2)), (6, 8, 4), False),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_whoever_sums_over_images(call: Any) -> None:
    """So have those of channels, wherever these lie."""
    function, shape, last = call
    generator = torch.Generator().manual_seed(7)
    x, dy = [torch.randn(shape, generator=generator) for _ in range(2)]
    if last:
        x, dy = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, dy)]
    lengths = shape[1:2] if len(shape) == 4 else shape[1:]
    leaves = [x, *[torch.randn(lengths, generator=generator) for _ in range(2)]]

    def gradients() -> list[Any]:
        array = [leaf.detach().requires_grad_() for leaf in leaves]
        return list(torch.autograd.grad(function(*array), array, dy))

    found = gradients()
    with _summed_by_numpy():
        summed = gradients()
    assert all(torch.equal(one, other) for one, other in zip(found, summed, strict=True))


@pytest.mark.parametrize("by_numpy", [False, True])
def test_gradient_of_infinite_size_warns_of_nothing(by_numpy: bool) -> None:
    """A gradient beyond float32 is infinite, silently, whoever rounds it."""
    x, weight, bias = _leaves((8, 64))
    with _summed_by_numpy() if by_numpy else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("error")
        y = an.layer_norm(x, weight, bias)
        y.backward(torch.full_like(y, 3e38))
    assert bias.grad.tolist() == [torch.inf] * 64


@pytest.mark.parametrize(
    "pack", [lambda tensor: tensor.clone(memory_format=torch.contiguous_format), lambda tensor: tensor]
)
def test_tensors_that_hooks_bring_back_otherwise(pack: Any) -> None:
    """Saved tensors that a hook lays out anew are read as they lie then."""
    x, weight, bias = _leaves((16, 64))
    expected = _gradients((16, 64), (True, True, True))
    turned = x.detach().t().contiguous().t().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
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


def test_saved_tensors_that_may_not_be_read() -> None:
    """What a hook brings back is looked at like any other tensor: one that negates lazily is not read as it lies."""
    x, weight, bias = _leaves((16, 64))
    expected = _gradients((16, 64), (True, True, True))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: torch._neg_view(tensor.neg())):
        y = an.layer_norm(x, weight, bias)
    y.backward(torch.linspace(-1, 2, y.numel()).reshape(16, 64))
    for one, other in zip((x.grad, weight.grad, bias.grad), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", ["x", "weight", "statistics"])
def test_saved_tensors_of_another_shape(which: str) -> None:
    """What a hook brings back with other lengths is not read as if it had those that were saved."""
    x, weight, bias = _leaves((16, 64))
    shape = {"x": (16, 64), "weight": (64,), "statistics": (5, 16)}[which]
    brought = []

    def unpack(saved: Any) -> Any:
        if saved.shape != shape:
            return saved
        brought.append(saved[..., :3].clone())
        return brought[-1]

    # Several threads' statistics are a tensor, which hooks see; one thread's are an array.
    with (
        nothing_known(),
        torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, unpack),
        mock.patch.object(_threads, "always_serial", return_value=False),
        mock.patch.object(_threads, "threads_for", return_value=2),
    ):
        y = an.layer_norm(x, weight, bias)
    with pytest.raises(RuntimeError, match=r"size|shape"):
        y.backward(torch.ones_like(y))
    assert brought


@pytest.mark.parametrize("parameters", [0, 2])
@pytest.mark.parametrize(
    "unpack",
    [lambda saved: saved.contiguous(), lambda saved: saved.transpose(0, -1).contiguous().transpose(0, -1)],
    ids=["contiguous", "reversed"],
)
def test_saved_tensors_in_another_order(unpack: Any, parameters: int) -> None:
    """Where hooks bring x back with its axes in another order, each set keeps its own statistics."""
    scales = torch.arange(1.0, 5)[:, None, None]
    x = torch.randn(5, 4, 16).transpose(0, 1).mul_(scales).requires_grad_()
    leaves = [x, *[torch.randn(16, requires_grad=True) for _ in range(parameters)]]
    dy = torch.randn(4, 5, 16)
    expected = torch.autograd.grad(an.layer_norm(*leaves), leaves, dy)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, unpack):
        y = an.layer_norm(*leaves)
    for found, other in zip(torch.autograd.grad(y, leaves, dy), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 33), (3, 5000), (2, 64)])
def test_gradient_of_infinite_size_in_float64(shape: tuple[int, int]) -> None:
    """A sum beyond float64 is infinite, as the formula has it, not NaN; without a warning."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in _leaves(shape)]
    dy = torch.full(shape, 1.7e308, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = torch.autograd.grad(an.layer_norm(*leaves), leaves[2:], dy)
    assert found.tolist() == [torch.inf] * shape[1]


@pytest.mark.parametrize("warm", [False, True], ids=["first", "known"])
def test_batched_backward(warm: bool) -> None:
    """Where torch batches the backward pass itself, dy has no memory of its own: the formula serves it."""
    x, w, b = _leaves((6, 5))
    dy = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(4))
    if warm:
        torch.autograd.grad(an.layer_norm(x, w, b), (x, w, b), dy[0])
    found = torch.autograd.grad(an.layer_norm(x, w, b), (x, w, b), dy, is_grads_batched=True)
    native = torch.nn.functional.layer_norm(x, (5,), w, b)
    expected = torch.autograd.grad(native, (x, w, b), dy, is_grads_batched=True)
    for result, other in zip(found, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-5, atol=1e-5)
    # A tensor of that kind must not be what later ones are told to be.
    torch.testing.assert_close(
        torch.autograd.grad(an.layer_norm(x, w, b), x, dy[1])[0], expected[0][1], rtol=1e-5, atol=1e-5
    )
