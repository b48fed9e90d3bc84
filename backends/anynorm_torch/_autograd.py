"""The engines' gradients, for autograd and for `anynorm.vjp`; where they are differentiated again, the formula's."""

from __future__ import annotations

from typing import Any

import torch

from anynorm import _formula
from anynorm._dispatch import library_of
from anynorm._learned import Learned
from anynorm._plan import Plan
from anynorm_cuda._launcher import RefusedError
from anynorm_torch._jobs import FEW, Jobs, Run, UnalignedError, empty, forget, room
from anynorm_torch._memory import check_storage, unreadable, written
from anynorm_torch._places import jobs_for


def recorded(x: Any, weight: Any, bias: Any, y: Any, its: Run) -> Any:
    """Return y by an engine, recorded for a gradient."""
    # What `apply` does before is for the tensors of torch.func's transforms, which do not come here, and takes 2 µs.
    apply = _Normalized.apply if torch._C._are_functorch_transforms_active() else _apply
    # y in a tuple: of a tensor that is passed as it is, autograd would return a view.
    return apply(x, weight, bias, (y, its))


def backward(plan: Plan, dy: Any, x: Any, weight: Any, saved: Any, *, out: Any = None) -> tuple[Any, Any, Any]:
    """Return dx, in `out` if given, and dweight and dbias in the compute dtype and in the plan's shapes, or None."""
    library = library_of("backward", "x", x)
    if torch.is_grad_enabled() and any(its is not None and its.requires_grad for its in (x, dy, weight)):
        # To be differentiated again: the statistics must be differentiable too.
        if not plan.given:
            saved = _formula.forward(plan, x, None, None, saved.eps, library=library)[1]
        return _formula.backward(plan, dy, x, weight, saved, library=library)
    if isinstance(saved, Learned) and unreadable(dy) is None and (out is None or unreadable(out) is None):
        check_storage(dy, x, weight, out)
        dweight, dbias = [None if lies is None else room(lies, x) for lies in (plan.weight, plan.bias)]
        jobs = jobs_for(x)
        jobs.used_now(saved.planes)
        dx = _gradient(jobs, plan, dy, x, weight, saved.planes, dweight, dbias, out)
        if dx is not None:
            written(out)
            return dx, dweight, dbias
    return _formula.backward(plan, dy, x, weight, saved, out=out, library=library)


class _Normalized(torch.autograd.Function):
    """x, weight, bias -> y by an engine. Its gradient has a gradient by the formula."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, wrapped: tuple[Any, Run]) -> Any:
        y, its = wrapped
        jobs, plan, job, laid, _, eps, planes, given = its
        # Of bias not its values, which may change meanwhile.
        described = None if bias is None else (bias.shape, bias.dtype)
        # Room of NumPy's, which a small call on the host has, is kept as it is: autograd saves tensors alone.
        own = None if isinstance(planes, torch.Tensor) else planes
        # Autograd sees that weight is not written to meanwhile, so what was cast is right later too.
        laid = None if laid is weight or laid.numel() > FEW else laid
        ctx.kept = jobs, plan, job, eps, given is not None, described, own, laid
        ctx.save_for_backward(x, weight, planes if own is None else None)
        jobs.run(x, y, its)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, weight, planes = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return *_differentiable(ctx.kept, dy, x, weight, planes, needs), None
        jobs, plan, job, eps, _, bias, own, laid = ctx.kept
        pull = jobs.pull_of(plan, x, dy, weight, laid, planes, bias)
        if pull is not None:
            job, lies, weight_lies, bias_lies = pull
            dx = jobs.empty_like(x) if lies is None else empty(*lies)
            dweight = empty(*weight_lies) if needs[1] else None
            dbias = empty(*bias_lies) if needs[2] else None
            laid = weight if laid is None else laid
            try:
                jobs.run_gradient(job, x, dy, dx, laid, planes if own is None else own, dweight, dbias)
            except UnalignedError:
                pass  # the next looks at each tensor, and the formula takes any
            else:
                return dx, dweight, dbias, None  # cast, and left out where it is not needed, by autograd itself
        # Hooks may have brought back tensors of another kind than those that were saved.
        if jobs.may_read(x, dy, weight, planes):
            dweight = jobs.room_for_gradient(weight.shape, weight.dtype, x) if needs[1] else None
            dbias = jobs.room_for_gradient(*bias, x) if needs[2] else None
            dx = _gradient(jobs, plan, dy, x, weight, planes if own is None else own, dweight, dbias)
            if dx is not None:
                return dx, dweight, dbias, None
        saved: Any = Learned(planes if own is None else torch.from_numpy(own), plan, job, eps)
        found = _formula.backward(plan, dy, x, weight, saved, library=library_of("backward", "x", x))
        return *_like(found, weight, bias, needs), None


_apply: Any = super(torch.autograd.Function, _Normalized).apply


def _like(gradients: Any, weight: Any, bias: Any, needs: Any) -> list[Any]:
    """Return the gradients that are needed, those of weight and bias in their own dtype and shape."""
    dx, dweight, dbias = gradients
    return [
        dx if needs[0] else None,
        dweight.to(weight.dtype).reshape(weight.shape) if needs[1] else None,
        dbias.to(bias[1]).reshape(bias[0]) if needs[2] else None,
    ]


def _differentiable(kept: Any, dy: Any, x: Any, weight: Any, planes: Any, needs: Any) -> list[Any]:
    """Return the gradients as the formula has them, recorded for a gradient of their own."""
    _, plan, job, eps, given, described, *_ = kept
    library = library_of("backward", "x", x)
    if given:
        saved: Any = Learned(planes, plan, job, eps)
        found = _formula.backward(plan, dy, x, weight, saved, library=library)
        return _like(found, weight, described, needs)
    # Aliases, because one input may be made of another, or be the same tensor: their gradients must not mix here.
    # Nothing depends on the values of bias.
    shape, dtype = described or ((), None)
    bias = None if described is None else x.new_zeros(shape, dtype=dtype, requires_grad=needs[2])
    aliases: list[Any] = [None if its is None else its.view_as(its) for its in (x, weight, bias)]
    y, _ = _formula.forward(plan, aliases[0], aliases[1], aliases[2], eps, library=library)
    wanted = [its for its, need in zip(aliases, needs, strict=False) if need]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(gradients) if need else None for need in needs[:3]]


def _gradient(
    jobs: Jobs,
    plan: Plan,
    dy: Any,
    x: Any,
    weight: Any,
    planes: Any,
    dweight: Any,
    dbias: Any,
    out: Any = None,
) -> Any:
    """Return dx by an engine, and write the gradients of weight and bias where tensors for them are given.

    None where the engine cannot run.
    """
    if dy.dtype != x.dtype or (plan.given and not jobs.pulls_given):
        return None
    dx, weight = jobs.empty_like(x) if out is None else out, jobs.parameter(weight, x)
    job = jobs.gradient_job_of(plan, x, weight, dy, dx, dweight, dbias)
    if isinstance(job, str) and dy.stride() != dx.stride():
        dy = jobs.empty_like(x).copy_(dy)  # a copy costs one pass over it, the formula about ten
        job = jobs.gradient_job_of(plan, x, weight, dy, dx, dweight, dbias)
    if isinstance(job, str):
        return None
    try:
        jobs.run_gradient(job, x, dy, dx, weight, planes, dweight, dbias)
    except RefusedError:
        forget()
        return None
    except UnalignedError:
        return None
    return dx
