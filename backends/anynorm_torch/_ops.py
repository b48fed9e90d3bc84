"""What the formula asks of torch beyond the array API standard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from anynorm.backend import ArrayOps, Plan, Shape
from anynorm_torch import _derivatives
from anynorm_torch._memory import has_addresses, jit
from anynorm_torch._sums import TELLS_OPEN_LENGTHS, accurate_sum


class TorchOps(ArrayOps[Tensor]):
    """torch's operations."""

    def __init__(self) -> None:
        super().__init__("torch", xp)

    def sum(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        return accurate_sum(x, axes)

    def broadcast(self, x: Tensor, shape: Shape) -> Tensor:
        return _derivatives.broadcast(x, cast("tuple[int, ...]", shape))

    def normalize(self, normalize: Callable[..., Any], plan: Plan, z: Tensor, eps: float) -> Any:  # noqa: ARG002
        return _derivatives.normalize(plan, z, eps, ops=self)

    def with_layout_of(self, y: Tensor, x: Tensor) -> Tensor:
        # With other operands beside x, arithmetic follows the first. A fake y is told of no other strides than the
        # real one has.
        if not (_has_strides(x) and _has_strides(y)):
            return y
        strides = strides_like(x)
        if strides == y.stride():
            return y
        return x.new_empty_strided(x.shape, strides).copy_(y)

    def constant(self, x: Tensor) -> Tensor:
        return x.detach()

    def compiling(self) -> bool:
        # There ContextVars break the graph and caches warn.
        return torch.compiler.is_compiling()

    def traced(self, x: Tensor) -> bool:
        # By torch.func.
        return not torch.compiler.is_compiling() and bool(torch._C._functorch.is_functorch_wrapped_tensor(x))

    def holds(self, comparison: Any) -> bool:
        # No where the compiler cannot know, as of what a mask takes. What it does know from the lengths that are traced
        # it makes a condition of the program.
        if type(comparison) is bool and not torch.compiler.is_compiling():
            return comparison
        if not TELLS_OPEN_LENGTHS or isinstance(comparison, torch.Tensor):
            return bool(comparison)
        from torch.fx.experimental.symbolic_shapes import guard_or_false  # here, because it imports sympy

        return bool(guard_or_false(comparison))

    def is_empty(self, shape: Shape) -> bool:
        return [self.holds(length == 0) for length in shape].count(True) > 0


OPS = TorchOps()


def strides_like(x: Tensor) -> tuple[int, ...]:
    """Return the strides of `empty_like(x)`.

    Of a fake x torch itself gets those along axes of length 1, and of tensors without elements, wrong.
    """
    lengths, strides, step = x.shape, x.stride(), 1
    if 0 in lengths:
        return strides
    for stride, length in sorted(zip(strides, lengths, strict=True)):
        if length > 1:
            if stride != step:
                return torch.empty_like(x).stride()
            step *= length
    return strides  # dense: as they are


# Of fake tensors, and of those that are traced without side effects, strides are right, though there is no memory.
_WITH_STRIDES = (FakeTensor, FunctionalTensor)


def _has_strides(x: Tensor) -> bool:
    """Say whether a tensor's strides are those of memory, or are to be, and are numbers.

    Under torch.compile none are asked for: its own arithmetic follows x but along axes of length 1 and in tensors
    without elements, and there its copies do not follow either.
    """
    if torch.compiler.is_compiling() or jit.is_tracing():
        return False
    if type(x) not in _WITH_STRIDES and not has_addresses(x):
        return False
    return [isinstance(length, torch.SymInt) for length in (*x.shape, *x.stride())].count(True) == 0
