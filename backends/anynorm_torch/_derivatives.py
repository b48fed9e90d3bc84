"""Where torch differentiates the formula by itself: derivatives that keep its accuracy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anynorm.backend import ArrayOps, Plan, Residuals, formula
from anynorm_torch import _compiled
from anynorm_torch._memory import jit
from anynorm_torch._sums import accurate_sum

# Not annotated by torch.
functorch: Any = torch._C._functorch


def normalize(plan: Plan, z: Tensor, eps: float, *, ops: ArrayOps[Tensor]) -> tuple[Tensor, Residuals]:
    """Return the normalized z, x̂, and the residuals, with the formula's own derivative."""
    if not _differentiated(z):
        return _normalize(plan, z, eps, ops)
    function: Any = _Normalize if torch.compiler.is_compiling() else _NormalizeWithTangent
    xhat, *residuals = function.apply(z, plan, eps, ops)
    if plan.weight is None and plan.bias is None:
        # Without parameters it becomes y, which the caller may change in place, while the gradient still needs it.
        xhat = xhat.clone()
    return xhat, Residuals(*residuals)


def broadcast(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Broadcast x to a shape, so that its gradient is summed axis by axis.

    The gradient of torch's own broadcasting is a sum over all axes at once, in which the errors of long plain sums
    return: that of the bias of batch norm on (65536, 32, 2) float32 is 1600 eps off if the elements of dy are equal.
    """
    if jit.is_tracing():
        # A trace records no autograd.Function, and may be called later with tensors that require a gradient. That of
        # broadcasting along one axis is accurate; at once the bias's is 1.7 bounds off for batches of (20000, 6, 2, 2).
        for axis in [axis for axis, length in enumerate(x.shape) if length == 1]:
            x = x.expand([shape[axis] if other == axis else -1 for other in range(x.ndim)])
        return x
    if not _differentiated(x):
        return x
    function: Any = _Broadcast if torch.compiler.is_compiling() else _BroadcastWithTangent
    return function.apply(x, shape)  # type: ignore[no-any-return]


def _differentiated(x: Tensor) -> bool:
    """Say whether torch records x for a gradient, and can record an autograd.Function."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return False
    if torch.compiler.is_compiling():
        # Neither can its compiler within torch.func.
        return not _transformed()
    return not jit.is_tracing()


def _transformed() -> bool:
    """Say whether torch.func is transforming what torch.compile traces, to which an object stands for no transform."""
    return functorch.peek_interpreter_stack() is not None


# As `torch.compiler.assume_constant_result` marks it, which would import the compiler, and NumPy with it.
_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _plus(a: Tensor | None, b: Tensor) -> Any:
    """Return a + b, where a may be missing."""
    return b if a is None else a + b


def _normalize(plan: Plan, z: Tensor, eps: float, ops: ArrayOps[Tensor]) -> tuple[Tensor, Residuals]:
    if _compiled.fits(z) and not _transformed():
        return _compiled.normalize(plan, z, eps)
    return formula.normalize(plan, z, eps, ops=ops)


class _Normalize(torch.autograd.Function):
    """z -> x̂, mean, correction, rstd, scale, m2. The gradient is written in x̂ and rstd, so that it has one again.

    m2, which only returned moments have, counts as constant; what the mean owes goes to it, nothing to its correction.
    """

    @staticmethod
    def forward(z: Tensor, plan: Plan, eps: float, ops: ArrayOps[Tensor]) -> Any:
        xhat, residuals = _normalize(plan, z, eps, ops)
        return xhat, *residuals[:5]  # there is no bias yet

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, ctx.plan, _, ctx.ops = inputs
        xhat, _, correction, rstd, scale, m2 = output
        ctx.mark_non_differentiable(correction, scale, m2)
        # The zeros that autograd makes for outputs without a gradient are plain tensors, beside which DTensor and other
        # subclasses do no arithmetic.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(xhat, rstd, scale)
        ctx.save_for_forward(xhat, rstd, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        g, of_mean, of_rstd = gradients[0], gradients[1], gradients[3]
        xhat, rstd, scale = ctx.saved_tensors
        residuals, n = Residuals(None, None, rstd, scale, None), ctx.plan.n
        dz = None if g is None else formula.dz_of(ctx.plan, g, xhat, residuals, ops=ctx.ops)
        if of_rstd is not None:
            dz = _plus(dz, xhat * broadcast(of_rstd * formula.drstd(residuals) / n, xhat.shape))
        if of_mean is not None and ctx.plan.centres:
            dz = _plus(dz, broadcast(of_mean * scale / n, xhat.shape))
        return dz, None, None, None


class _NormalizeWithTangent(_Normalize):
    """The same, for torch.func and forward mode too, which torch.compile does not trace."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        xhat, rstd, scale = ctx.saved_tensors
        residuals, plan, ops = Residuals(None, None, rstd, scale, None), ctx.plan, ctx.ops
        change = formula.dz_of(plan, tangents[0], xhat, residuals, ops=ops)
        of_rstd = formula.drstd(residuals) * (ops.sum(xhat * tangents[0], plan.reduced) / plan.n)
        of_mean = ops.sum(tangents[0], plan.reduced) / plan.n * scale if plan.centres else torch.zeros_like(scale)
        return change, of_mean, None, of_rstd, None, None


class _Broadcast(torch.autograd.Function):
    """Broadcasting by views. Its gradient is differentiable as any sum is."""

    @staticmethod
    def forward(x: Tensor, shape: tuple[int, ...]) -> Any:
        return x.expand(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, ctx.shape = inputs
        ctx.set_materialize_grads(False)
        ctx.axes = tuple([axis for axis, length in enumerate(x.shape) if length == 1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return None if gradients[0] is None else accurate_sum(gradients[0], ctx.axes), None


class _BroadcastWithTangent(_Broadcast):
    """The same, for torch.func and forward mode too."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return tangents[0].expand(ctx.shape)
