"""Subclasses of torch.Tensor: DTensor and wrappers that no plain tensor may meet. The gradients are torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import anynorm as an

torch: Any = pytest.importorskip("torch")

import anynorm_torch.nn  # noqa: E402  needs torch

functional = torch.nn.functional

# By name: ours, torch's own, and the length of weight and bias.
NORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[int, ...]]] = {
    "layer": (an.layer_norm, lambda x, w, b: functional.layer_norm(x, (8,), w, b), (8,)),
    "layer over two": (
        lambda x, w, b: an.layer_norm(x, w, b, axis=(1, 2)),
        lambda x, w, b: functional.layer_norm(x, (6, 8), w, b),
        (6, 8),
    ),
    "rms": (
        lambda x, w, _: an.rms_norm(x, w),
        lambda x, w, _: functional.rms_norm(x, (8,), w, eps=1e-6),
        (8,),
    ),
    "group": (lambda x, w, b: an.group_norm(x, 3, w, b), lambda x, w, b: functional.group_norm(x, 3, w, b), (6,)),
    "instance": (
        lambda x, w, b: an.instance_norm(x, weight=w, bias=b),
        lambda x, w, b: functional.instance_norm(x, None, None, w, b),
        (6,),
    ),
    "batch": (
        lambda x, w, b: an.batch_norm(x, weight=w, bias=b),
        lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True),
        (6,),
    ),
}

each_norm = pytest.mark.parametrize("norm", NORMS)
each_affine = pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])


class Wrapper(torch.Tensor):  # type: ignore[misc]
    """A tensor around another, which does no arithmetic beside a plain tensor, as DTensor does none."""

    inner: Any

    @staticmethod
    def __new__(cls, inner: Any) -> Any:
        options = {"strides": inner.stride(), "dtype": inner.dtype, "device": inner.device}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **options)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"Wrapper({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        def unwrapped(value: Any) -> Any:
            if isinstance(value, cls):
                return value.inner
            assert not isinstance(value, torch.Tensor) or value.ndim == 0, f"{function} meets a plain tensor"
            return value

        tree_map = torch.utils._pytree.tree_map
        found = function(*tree_map(unwrapped, arguments), **tree_map(unwrapped, options or {}))
        return tree_map(lambda value: cls(value) if isinstance(value, torch.Tensor) else value, found)


def _leaves(norm: str, affine: bool, wrap: Callable[[Any, bool], Any]) -> list[Any]:
    """Return x, weight and bias, each wrapped; wrap's second argument says whether it is x."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 6, 8), *[NORMS[norm][2]] * (1 if norm == "rms" else 2)][: None if affine else 1]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [wrap(tensor, which == 0).requires_grad_() for which, tensor in enumerate(drawn)]


def _derivatives(function: Callable[..., Any], leaves: list[Any], dy: Any) -> list[Any]:
    """Return y, the gradients, and those of the gradients' squares."""
    y = function(*leaves, *[None] * (3 - len(leaves)))
    first = torch.autograd.grad(y, leaves, dy, create_graph=True)
    total = sum([(gradient * gradient).sum() for gradient in first])
    return [y, *first, *torch.autograd.grad(total, leaves, allow_unused=True)]


def _check(norm: str, affine: bool, wrap: Callable[[Any, bool], Any], plain: Callable[[Any], Any]) -> list[Any]:
    """Raise unless y and two orders of derivatives are those of torch's own norm on plain tensors; return them."""
    ours, native, _ = NORMS[norm]
    dy = torch.linspace(-1, 2, 4 * 6 * 8, dtype=torch.float64).sin().reshape(4, 6, 8)
    expected = _derivatives(native, _leaves(norm, affine, lambda tensor, _: tensor), dy)
    found = _derivatives(ours, _leaves(norm, affine, wrap), wrap(dy, True))
    for one, other in zip(found, expected, strict=True):
        if other is None:  # the gradients do not depend on bias
            assert one is None or not plain(one).any()
        else:
            torch.testing.assert_close(plain(one.detach()), other.detach(), rtol=1e-9, atol=1e-9)
    return found


@each_affine
@each_norm
def test_wrapper(norm: str, affine: bool) -> None:
    """Under autograd a subclass meets only its own kind, gradients included, and has torch's values."""
    found = _check(norm, affine, lambda tensor, _: Wrapper(tensor), lambda tensor: tensor.inner)
    assert {type(result) for result in found if result is not None} == {Wrapper}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    """Yield a mesh of this process alone."""
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    pytest.importorskip("torch.distributed.tensor", reason="this torch has no public DTensor")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        yield torch.distributed.init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("place", ["replicated", 0, 1, 2])
@each_affine
@each_norm
def test_dtensor(norm: str, affine: bool, place: Any, mesh: Any) -> None:
    """A DTensor has gradients of two orders, with torch's values, and y and dx are placed as x is."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    placed = Replicate() if place == "replicated" else Shard(place)

    def wrap(tensor: Any, is_x: bool) -> Any:
        return distribute_tensor(tensor, mesh, [placed if is_x else Replicate()])

    y, dx, *_ = _check(norm, affine, wrap, lambda tensor: tensor.full_tensor())
    assert y.placements == dx.placements == (placed,)


@pytest.mark.parametrize("make", [lambda: torch.nn.BatchNorm1d(6), lambda: torch.nn.RMSNorm(8)], ids=["batch", "rms"])
def test_distributed_layer(make: Callable[[], Any], mesh: Any) -> None:
    """A distributed layer that was accelerated has the gradients, and moves the statistics, of the layer it was."""
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    native = make()
    layer = copy.deepcopy(native)
    anynorm_torch.nn.accelerate(layer)
    distribute_module(layer, mesh)
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(4))
    here: Any = x.clone().requires_grad_()
    there: Any = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_()
    layer(there).square().sum().backward()
    native(here).square().sum().backward()
    torch.testing.assert_close(there.grad.full_tensor(), here.grad, rtol=1e-4, atol=1e-4)
    for one, other in zip(layer.parameters(), native.parameters(), strict=True):
        torch.testing.assert_close(one.grad.full_tensor(), other.grad, rtol=1e-4, atol=1e-4)
    for one, other in zip(layer.buffers(), native.buffers(), strict=True):
        torch.testing.assert_close(one.full_tensor(), other, rtol=1e-5, atol=1e-5)
