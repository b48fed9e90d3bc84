"""Gradients through the CUDA engine, its kernels run on the CPU: what autograd and `anynorm.vjp` ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cuda_host
import pytest
import torch_on_device
from gradients import cotangent, exact_gradients, verify_gradients, vjp
from inputs import NORMS, make_case, verify
from torch_on_device import TORCH, Seen, on_device, recorded

import anynorm as an

torch: Any = pytest.importorskip("torch")

if torch_on_device.missing() is not None:
    pytest.skip(str(torch_on_device.missing()), allow_module_level=True)

BY_NAME = {norm.name: norm for norm in NORMS}
EACH = ("layer", "rms", "group", "instance", "batch")
CALLS: dict[str, Callable[..., Any]] = {
    "layer": lambda x, w, b: an.layer_norm(x, w, b),
    "rms": lambda x, w, b: an.rms_norm(x, w, b),
    "group": lambda x, w, b: an.group_norm(x, 2, w, b),
    "batch": lambda x, w, b: an.batch_norm(x, weight=w, bias=b),
    "given": lambda x, w, b: an.batch_norm(x, weight=w, bias=b, mean=torch.zeros(8), var=torch.ones(8)),
}


@pytest.fixture
def seen(cuda_programs: Path) -> Iterator[Seen]:
    """Let CPU tensors be served as if they lay on a device, and note what the engine is asked for."""
    with on_device(cuda_host.launcher(cuda_programs)) as noted:
        yield noted


def leaves(*needs: bool, rows: int = 6, dtype: Any = torch.float32) -> list[Any]:
    """Return x, weight and bias, each of which requires a gradient unless told otherwise."""
    generator = torch.Generator().manual_seed(2)
    own = [torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, 8), (8,), (8,))]
    return [tensor.requires_grad_(need) for tensor, need in zip(own, needs or (True,) * 3, strict=True)]


def slope(rows: int = 6) -> Any:
    """Return a gradient of y."""
    return torch.linspace(-1, 2, rows * 8).reshape(rows, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EACH)
def test_vjp(name: str, dtype: str, seen: Seen) -> None:
    """`anynorm.vjp` has the bits that autograd has; the allocator learns where its statistics are read."""
    case = make_case(BY_NAME[name], dtype)
    arrays, dy = TORCH.make_all(case.arrays), TORCH.make(cotangent(case))
    y, pullback = vjp(case, arrays)
    found = pullback(dy)
    assert [len(config.view.strides) for config in seen.configs] == [2, 3]
    assert len(seen.used) == 1
    expected_y, expected = recorded(case, arrays, dy)
    for one, other in zip((y, *found), (expected_y, *expected), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    again = pullback(dy)
    assert torch.equal(again.x, found.x)


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_gradients_that_are_wanted(norm: str, needs: tuple[bool, ...], seen: Seen) -> None:
    """What no gradient is wanted of gets none, and the others are as if all were wanted."""
    whole, own = leaves(), leaves(*needs)
    for tensors in (whole, own):
        CALLS[norm](*tensors).backward(slope())
    for one, other, need in zip(own, whole, needs, strict=True):
        assert (one.grad is not None) == need
        assert not need or torch.equal(one.grad, other.grad)
    assert len(seen.configs) == 4


@pytest.mark.parametrize("layout", ["expanded", "transposed", "shifted"])
def test_gradient_that_lies_otherwise(layout: str, seen: Seen) -> None:
    """A dy that no kernel can read beside x is copied once, and one at any address is read."""
    own = leaves()
    dy = {
        "expanded": lambda: torch.ones(()).expand(6, 8),
        "transposed": lambda: slope().t().contiguous().t(),
        "shifted": lambda: torch.cat([torch.zeros(1), slope().reshape(-1)])[1:].reshape(6, 8),
    }[layout]()
    expected = torch.autograd.grad(an.layer_norm(*own), own, dy.clone(memory_format=torch.contiguous_format))
    found = torch.autograd.grad(an.layer_norm(*own), own, dy)
    assert [len(config.view.strides) for config in seen.configs] == [2, 3, 2, 3]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_gradient_of_another_dtype(seen: Seen) -> None:
    """A dy of another dtype than x is the formula's."""
    x, weight, bias = [tensor.detach() for tensor in leaves(dtype=torch.bfloat16)]
    _, pullback = an.vjp(an.layer_norm, x, weight, bias)
    found = pullback(slope().double())
    assert [len(config.view.strides) for config in seen.configs] == [2]
    _, pullback = an.vjp(an.layer_norm, x.double(), weight.double(), bias.double())
    for one, other in zip(found, pullback(slope().double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-2, atol=1e-5)


def test_channels_last_beside_contiguous(seen: Seen) -> None:
    """A dy in one memory format beside an x in the other gives the gradients of one in the same."""
    generator = torch.Generator().manual_seed(3)
    x, dy = [torch.randn(2, 6, 5, 4, generator=generator) for _ in range(2)]
    last = x.contiguous(memory_format=torch.channels_last)
    norms: list[Callable[[Any], Any]] = [an.batch_norm, lambda tensor: an.group_norm(tensor, 3)]
    for norm in norms:
        own = last.clone().requires_grad_()
        (expected,) = torch.autograd.grad(norm(own), own, dy.contiguous(memory_format=torch.channels_last))
        (found,) = torch.autograd.grad(norm(own), own, dy)
        assert torch.equal(found, expected)
        assert found.stride() == last.stride()
    assert [len(config.view.strides) for config in seen.configs] == [2, 3] * 4


@pytest.mark.parametrize("call", CALLS)
def test_gradients_of_gradients(call: str, seen: Seen) -> None:
    """Gradients recorded for a gradient of their own, which the formula computes, are right, and so are theirs."""
    own = leaves()
    doubled = [tensor.detach().double().requires_grad_() for tensor in own]

    def second(tensors: list[Any]) -> list[Any]:
        y = CALLS[call](*tensors)
        first = torch.autograd.grad(y, tensors, slope().to(y.dtype).requires_grad_(), create_graph=True)
        total = sum(
            (gradient.sin() * torch.linspace(0, 1, gradient.numel()).reshape(gradient.shape)).sum()
            for gradient in first
        )
        return [*first, *torch.autograd.grad(total, tensors, allow_unused=True)]

    found = second(own)
    assert len(seen.configs) == 1
    for one, other in zip(found, second(doubled), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one.double(), other, rtol=2e-4, atol=2e-4)


@pytest.mark.filterwarnings("ignore:Input .* requires gradient and is not a double precision:UserWarning")
@pytest.mark.parametrize("call", CALLS)
def test_gradcheck(call: str, seen: Seen) -> None:
    """Gradients are those that differences of results show, as far as float32 can."""
    own = leaves(rows=3)
    assert torch.autograd.gradcheck(CALLS[call], own, eps=2e-2, atol=5e-3, rtol=5e-3)
    assert len(seen.configs) > 50


def test_tensors_that_hooks_bring_back(seen: Seen) -> None:
    """Saved tensors are read as they lie when they come back; one that may not be read is the formula's."""
    packs: list[Callable[[Any], Any]] = [
        lambda tensor: tensor.clone(),
        lambda tensor: torch.cat([tensor.reshape(-1)[:1], tensor.reshape(-1)])[1:].reshape(tensor.shape),
        lambda tensor: torch._neg_view(tensor.neg()),
    ]
    expected = leaves()
    an.layer_norm(*expected).backward(slope())
    for unpack in packs:
        own = leaves()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            y = an.layer_norm(*own)
        y.backward(slope())
        for one, other in zip(own, expected, strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)
    assert [len(config.view.strides) for config in seen.configs] == [2, 3, 2, 3, 2, 3, 2]


def test_parameters_of_other_dtypes(seen: Seen) -> None:
    """Gradients of weight and bias have their dtypes, each its own."""
    x, weight, bias = leaves(dtype=torch.bfloat16)
    weight = weight.detach().double().requires_grad_()
    an.layer_norm(x, weight, bias).backward(slope().bfloat16())
    assert [tensor.grad.dtype for tensor in (x, weight, bias)] == [torch.bfloat16, torch.float64, torch.bfloat16]
    assert [len(config.view.strides) for config in seen.configs] == [2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_of_parameters_are_written_as_they_are(dtype: Any, seen: Seen) -> None:
    """The kernel writes the gradients of weight and bias in their dtypes, and nothing is cast after it."""
    x, weight, bias = leaves(dtype=dtype)
    wide = leaves(dtype=torch.float32)[2]
    with mock.patch.object(torch.Tensor, "to", side_effect=AssertionError("a cast")):
        an.layer_norm(x, weight, bias).backward(slope().type(dtype))
        an.layer_norm(x.detach(), weight.detach(), wide).backward(slope().type(dtype))
    written = [dict(run.kernel.macros) for run in seen.launches if run.kernel.name == "parameter_sums"]
    name = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}[dtype]
    assert [(run["DW"], run["DB"]) for run in written] == [(name, name), ("f32", "f32")]
    exact = leaves(dtype=dtype)
    an.layer_norm(*[tensor.double() for tensor in exact]).backward(slope().type(dtype).double())
    for parameter, other in zip((weight, bias), exact[1:], strict=True):
        assert parameter.grad.dtype is dtype
        rtol = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(parameter.grad.double(), other.grad.double(), rtol=rtol, atol=1e-5)


def test_results_may_be_changed(seen: Seen) -> None:
    """A result is no view, gradients share no memory, and a bias may change before the backward pass."""
    own = leaves()
    y = an.layer_norm(*own)
    assert not y._is_view()
    with torch.no_grad():
        own[2].add_(1)
    y.relu_().sum().backward()
    kept = own[2].grad.clone()
    own[1].grad.zero_()
    assert torch.equal(own[2].grad, kept)
    assert len(seen.configs) == 2


def test_modes(seen: Seen) -> None:
    """In inference mode, without gradients and with them the engine serves, with one result."""
    own = leaves()
    results = [an.layer_norm(*own).detach()]
    with torch.no_grad():
        results.append(an.layer_norm(*own))
    with torch.inference_mode():
        results.append(an.layer_norm(*own))
        assert results[-1].is_inference()
    assert len(seen.configs) == 3
    assert all(torch.equal(tensor, results[0]) for tensor in results)


def test_verified_against_exact_gradients(seen: Seen) -> None:
    """A long set, in several chunks, and sets that several teams take: y and all gradients are within the bounds."""
    case = make_case(BY_NAME["batch"], "float16")
    x = case.with_x(torch.randn(40, 6, 9, 9, generator=torch.Generator().manual_seed(9)).half().numpy())
    dy = cotangent(x)
    y, found = recorded(x, TORCH.make_all(x.arrays), TORCH.make(dy))
    verify(TORCH.to_numpy(y), x.arrays["x"], x.reference())
    gradients = an.Gradients(*[None if tensor is None else TORCH.to_numpy(tensor) for tensor in found])
    verify_gradients(gradients, x, exact_gradients(x, dy))
    assert len(seen.configs) == 2
