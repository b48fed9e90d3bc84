"""torch's CPU tensors handed to the CPU engine, and its results to autograd. Computes nothing itself."""

from __future__ import annotations

from typing import Any

import torch

import anynorm_numba
from anynorm import _formula
from anynorm._dispatch import library_of
from anynorm._plan import Plan
from anynorm._view import Layout
from anynorm_numba import engine
from anynorm_torch._memory import unreadable, unreadable_itself, watched

# By dtype: its name and what is computed in.
KINDS = {
    torch.float16: ("float16", torch.float32),
    torch.bfloat16: ("bfloat16", torch.float32),
    torch.float32: ("float32", torch.float32),
    torch.float64: ("float64", torch.float64),
}

# From this many bytes on, the memory of an output is NumPy's, which asks the system for large pages: instance norm of
# 32 MiB takes a sixth of the time. Below, torch's allocator reuses what it had.
LARGE = 2**25


def declines(
    plan: Plan,
    x: Any,
    weight: Any,
    bias: Any,
    *,
    stats: tuple[Any, Any] | None,
    out: Any,
) -> str | None:
    """Return why no engine may or can serve the call, or None."""
    job = _found(plan, x, (parameter(weight, x), parameter(bias, x)), (weight, bias), stats, out)
    return job if isinstance(job, str) else None


def _found(plan: Plan, x: Any, laid: tuple[Any, Any], own: tuple[Any, Any], stats: Any, out: Any) -> Any:
    """Return the job for a call, or why there is none; weight and bias as `parameter` returns them."""
    operands = [its for its in (x, *own, *(stats or ()), out) if its is not None]
    reason = watched() or next((why for its in operands if (why := unreadable_itself(its)) is not None), None)
    if reason is not None:
        return reason
    if x.device.type != "cpu":
        return f"anynorm has no engine for {x.device.type} tensors yet"
    if torch.is_grad_enabled():
        if stats is not None and any(its.requires_grad for its in stats):
            return "a gradient is wanted for mean or var"
        if plan.function == "moments" and x.requires_grad:
            return "a gradient is wanted for the moments"
    return anynorm_numba.missing() or _job_of(plan, x, *laid, x if plan.function == "moments" else out)


def path(*_: Any, **__: Any) -> tuple[str, None]:
    """Return which package serves a call that is not declined."""
    return "anynorm_numba", None


def forward(
    plan: Plan,
    x: Any,
    weight: Any,
    bias: Any,
    eps: float,
    *,
    stats: tuple[Any, Any] | None,
    out: Any,
    save: bool,
) -> Any:
    """Return y, and what was learned of the statistics if `save` asks for it; or why the engine cannot run."""
    laid = parameter(weight, x), parameter(bias, x)
    job = _found(plan, x, laid, (weight, bias), stats, out)
    if isinstance(job, str):
        return job
    wanted = out is None and torch.is_grad_enabled() and any(_requires_grad(its) for its in (x, weight, bias))
    y = _empty_like(x) if out is None else out
    if stats is not None:
        planes = _planes(plan, stats, eps, x)
    elif save or wanted or job.split:
        planes = x.new_empty(
            (5, job.view.lengths[0] * job.view.lengths[2]), dtype=KINDS[x.dtype][1], requires_grad=False
        )
    else:
        planes = None
    run = (plan, job, y, laid, eps, planes, stats is not None)
    if wanted:
        y = _Normalized.apply(x, weight, bias, run)  # type: ignore[no-untyped-call]
    else:
        _run(x, run)
    return y, engine().learned.Learned(planes, plan, job, eps) if save and stats is None else None


def moments(plan: Plan, x: Any) -> Any:
    """Return the statistics of each set."""
    job = _job_of(plan, x, None, None, x)
    planes = x.new_empty((5, job.view.lengths[0] * job.view.lengths[2]), dtype=KINDS[x.dtype][1])
    _run(x, (plan, job, None, (None, None), 0.0, planes, False))
    return engine().learned.Learned(planes, plan, job, 0.0)


def backward(plan: Plan, dy: Any, x: Any, weight: Any, saved: Any) -> tuple[Any, Any, Any]:
    """Return dx, and dweight and dbias in the compute dtype and in the plan's shapes for them, or None."""
    library = library_of("backward", "x", x)
    if torch.is_grad_enabled() and any(_requires_grad(its) for its in (x, dy, weight)):
        # To be differentiated again: the statistics must be differentiable too.
        if not plan.given:
            saved = _formula.forward(plan, x, None, None, saved.eps, library=library)[1]
        return _formula.backward(plan, dy, x, weight, saved, library=library)
    needs = (True, plan.weight is not None, plan.bias is not None)
    found = None if unreadable(dy) is not None else _gradients(plan, dy, x, weight, saved, needs)
    return _formula.backward(plan, dy, x, weight, saved, library=library) if found is None else found


class _Normalized(torch.autograd.Function):
    """x, weight, bias -> y by the engine. Its gradient has a gradient by the formula."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, run: tuple[Any, ...]) -> Any:
        plan, job, y, _, eps, planes, given = run
        ctx.plan, ctx.job, ctx.eps, ctx.given = plan, job, eps, given
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)  # not its values, which may change meanwhile
        ctx.save_for_backward(x, weight, planes)
        _run(x, run)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, weight, planes = ctx.saved_tensors
        plan, needs = ctx.plan, tuple([bool(its) for its in ctx.needs_input_grad[:3]])
        if torch.is_grad_enabled():
            return *_differentiable(ctx, dy, x, weight, planes, needs), None
        saved = engine().learned.Learned(planes, plan, ctx.job, ctx.eps)
        found = None if unreadable_itself(dy) is not None else _gradients(plan, dy, x, weight, saved, needs)
        if found is None:
            found = _formula.backward(plan, dy, x, weight, saved, library=library_of("backward", "x", x))
        return *_like(found, (x, weight, ctx.bias), needs), None


def _like(gradients: Any, inputs: tuple[Any, Any, Any], needs: tuple[bool, ...]) -> list[Any]:
    """Return the gradients that are needed, those of weight and bias in their own dtype and shape."""
    dx, dweight, dbias = gradients
    _, weight, bias = inputs
    return [
        dx if needs[0] else None,
        dweight.to(weight.dtype).reshape(weight.shape) if needs[1] else None,
        dbias.to(bias[1]).reshape(bias[0]) if needs[2] else None,
    ]


def _differentiable(ctx: Any, dy: Any, x: Any, weight: Any, planes: Any, needs: tuple[bool, ...]) -> list[Any]:
    """Return the gradients as the formula has them, recorded for a gradient of their own."""
    plan, library = ctx.plan, library_of("backward", "x", x)
    if ctx.given:
        saved = engine().learned.Learned(planes, plan, ctx.job, ctx.eps)
        found = _formula.backward(plan, dy, x, weight, saved, library=library)
        return _like(found, (x, weight, ctx.bias), needs)
    # Aliases, because one input may be made of another, or be the same tensor: their gradients must not mix here.
    # Nothing depends on the values of bias.
    shape, dtype = ctx.bias or ((), None)
    bias = None if ctx.bias is None else torch.zeros(shape, dtype=dtype, device=x.device, requires_grad=needs[2])
    aliases: list[Any] = [None if its is None else its.view_as(its) for its in (x, weight, bias)]
    y, _ = _formula.forward(plan, aliases[0], aliases[1], aliases[2], ctx.eps, library=library)
    wanted = [its for its, need in zip(aliases, needs, strict=True) if need]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(gradients) if need else None for need in needs]


def _gradients(plan: Plan, dy: Any, x: Any, weight: Any, saved: Any, needs: tuple[bool, ...]) -> Any:
    """Return the gradients by the engine, or None where it cannot run; of weight and bias in float64."""
    its = engine()
    if dy.dtype != x.dtype or not isinstance(saved, its.learned.Learned):
        return None
    dx, weight = _empty_like(x), parameter(weight, x)
    job = _gradient_job_of(plan, x, weight, dy, dx)
    if isinstance(job, str) and dy.stride() != dx.stride():
        dy = _empty_like(x).copy_(dy)  # a copy costs one pass over it, the formula about ten
        job = _gradient_job_of(plan, x, weight, dy, dx)
    if isinstance(job, str):
        return None
    wanted = any(needs[1:])
    begins = job.absent_weight if weight is None else weight.data_ptr()
    partial = its.run.backward(
        job, x.data_ptr(), dy.data_ptr(), dx.data_ptr(), begins, saved.planes.data_ptr(), parameters=wanted
    )
    if not wanted:
        return dx, None, None
    sums = its.learned.parameter_gradients(plan, job, partial)
    return dx, *[None if total is None else torch.from_numpy(total) for total in sums]


def _run(x: Any, run: tuple[Any, ...]) -> None:
    """Run the engine on addresses."""
    _, job, y, laid, eps, planes, given = run
    its = engine()
    begins = [
        absent if own is None else own.data_ptr()
        for own, absent in zip(laid, (job.absent_weight, job.absent_bias), strict=True)
    ]
    target = 0 if y is None else y.data_ptr()
    its.run.forward(job, x.data_ptr(), target, *begins, 0 if planes is None else planes.data_ptr(), eps, given=given)


# Jobs met before, by what tells layouts apart in torch's own terms: see `anynorm_numba._jobs`.
_met: dict[tuple[Any, ...], tuple[Plan, Any]] = {}
MANY = 4096


def _job_of(plan: Plan, x: Any, weight: Any, bias: Any, out: Any) -> Any:
    """Return the job for x and its y, or half a sentence that says why there is none."""
    threads = _threads(x)
    # A plan is one object for each set of shapes, so these need not be told apart.
    beside = [None if its is None else its.stride() for its in (weight, bias, out)]
    key = (id(plan), x.dtype, x.stride(), *beside, threads)
    met = _met.get(key)
    if met is None:
        y = torch.empty_like(x, device="meta") if out is None else out
        met = _meet(key, plan, x, (y,), _layout(weight), _layout(bias), threads)
    return met[1]


def _gradient_job_of(plan: Plan, x: Any, weight: Any, dy: Any, dx: Any) -> Any:
    """Return the job for x, dy and dx, or half a sentence that says why there is none."""
    threads = _threads(x)
    key = (id(plan), x.dtype, x.stride(), None if weight is None else weight.stride(), dy.stride(), True, threads)
    met = _met.get(key)
    if met is None:
        # Bias is not read: it lies as its gradient is wanted.
        bias = None if plan.bias is None else (plan.bias, _dense(plan.bias, KINDS[x.dtype][1].itemsize))
        met = _meet(key, plan, x, (dy, dx), _layout(weight), bias, threads)
    return met[1]


def _meet(
    key: Any, plan: Plan, x: Any, others: Any, weight: Layout | None, bias: Any, threads: int
) -> tuple[Plan, Any]:
    if len(_met) >= MANY:
        _met.clear()
    strides = tuple([_steps(array) for array in (x, *others)])
    job = engine().jobs.job_for(plan, KINDS[x.dtype][0], tuple(x.shape), strides, weight, bias, threads)
    _met[key] = plan, job
    return plan, job


def _layout(its: Any) -> Layout | None:
    return None if its is None else (tuple(its.shape), _steps(its))


def _threads(x: Any) -> int:
    its = engine().threads
    return its.threads() if x.numel() >= its.PARALLEL_ELEMENTS else 1


def _steps(array: Any) -> tuple[int, ...]:
    """Return a tensor's strides in bytes."""
    size = array.element_size()
    return tuple([step * size for step in array.stride()])


def parameter(its: Any, x: Any) -> Any:
    """Return weight or bias in the compute dtype, as the engine reads it: some axis without gaps, no step back."""
    if its is None:
        return None
    compute = KINDS[x.dtype][1]
    if its.dtype != compute:
        its = its.detach().to(compute)
    if its.is_contiguous():
        return its
    steps = [step for step, length in zip(its.stride(), its.shape, strict=True) if length > 1]
    return its if min(steps, default=1) == 1 else its.contiguous()


def _dense(shape: Any, size: int) -> tuple[int, ...]:
    """Return the strides of an array without gaps, in bytes."""
    strides = []
    for length in reversed(shape):
        strides.append(size)
        size *= length
    return tuple(reversed(strides))


def _empty_like(x: Any) -> Any:
    """Return a new tensor that lies as x does, its axes in the same order."""
    size = x.numel() * x.element_size()
    if size < LARGE:
        return torch.empty_like(x, requires_grad=False)
    import numpy as np

    storage = torch.from_numpy(np.empty(size, dtype=np.uint8)).untyped_storage()
    # Not a view of it: autograd forbids what is a view to be changed in place.
    like = torch.empty_like(x, device="meta").stride()
    return torch.empty(0, dtype=x.dtype).set_(storage, 0, x.shape, like)


def _planes(plan: Plan, stats: Any, eps: float, x: Any) -> Any:
    """Return given statistics as the engine reads what it learned."""
    given = _formula.given(plan, stats, eps, x, library=library_of("forward", "x", x))
    planes = [plane.expand(plan.statistic).reshape(-1) for plane in given[:4]]
    return torch.stack([*planes, torch.zeros_like(planes[0])])


def _requires_grad(its: Any) -> bool:
    return its is not None and its.requires_grad
