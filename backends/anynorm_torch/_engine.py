"""torch's CPU tensors handed to the CPU engine: which may be, and with what. Computes nothing itself."""

from __future__ import annotations

from typing import Any

import torch

import anynorm_numba
from anynorm import _formula
from anynorm._dispatch import library_of
from anynorm._plan import Plan
from anynorm._prepare import Known
from anynorm_numba import engine
from anynorm_torch._autograd import recorded
from anynorm_torch._jobs import empty_like, job_of, parameter, planes_for, run
from anynorm_torch._memory import on_host, unreadable_itself, watched, watches


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
    return anynorm_numba.missing() or job_of(plan, x, *laid, x if plan.function == "moments" else out)


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
    wanted = out is None and _gradient_wanted(x, weight, bias)
    y = empty_like(x) if out is None else out
    planes = None
    if stats is not None:
        planes = _planes(plan, stats, eps, x)
    elif save or wanted or job.split:
        planes = planes_for(job, x)
    its = plan, job, *laid, eps, planes, stats is not None
    if wanted:
        y = recorded(x, weight, bias, y, its)
    else:
        run(x, y, its)
    if out is not None and not out.is_inference():
        torch.autograd.graph.increment_version(out)  # or autograd would not see that what it saved has changed
    return y, engine().learned.Learned(planes, plan, job, eps) if save and stats is None else None


def kind(x: Any, weight: Any, bias: Any) -> Any:
    """Return all that decides about a call but its values and numbers, or None where it is to be looked at anew."""
    if watches():
        return None
    its_x, its_weight, its_bias = _kind(x), weight, bias
    if weight is not None and (its_weight := _kind(weight)) is None:
        return None
    if bias is not None and (its_bias := _kind(bias)) is None:
        return None
    return None if its_x is None else (its_x, its_weight, its_bias)


def _kind(its: Any) -> Any:
    return (its.dtype, its.shape, its.stride()) if on_host(its) else None


def again(known: Known, x: Any, weight: Any, bias: Any, eps: float, save: bool) -> Any:
    """Return what `forward` does, for a call of a known kind, for which `kind` asked what `_found` asks."""
    plan = known.plan
    job, weight_lies, bias_lies = _known_job(known, x, weight, bias)
    if isinstance(job, str):
        return job
    laid_weight = weight if weight_lies else parameter(weight, x)
    laid_bias = bias if bias_lies else parameter(bias, x)
    wanted = _gradient_wanted(x, weight, bias)
    planes = planes_for(job, x, within=not save) if wanted or save or job.split else None
    its = plan, job, laid_weight, laid_bias, eps, planes, False
    y = empty_like(x, known.size)
    if wanted:
        y = recorded(x, weight, bias, y, its)
    else:
        run(x, y, its)
    return y, engine().learned.Learned(planes, plan, job, eps) if save else None


def _known_job(known: Known, x: Any, weight: Any, bias: Any) -> tuple[Any, bool, bool]:
    """Return the job for a call of a known kind, or why there is none; and whether weight and bias are read as is."""
    missing = anynorm_numba.missing()
    if missing is not None:
        return missing, True, True
    threads = engine().threads.threads_for(known.size)
    found: tuple[Any, bool, bool] | None = known.decided.get(threads)
    if found is None:
        laid = parameter(weight, x), parameter(bias, x)
        job = job_of(known.plan, x, *laid, None)
        found = known.decided[threads] = job, laid[0] is weight, laid[1] is bias
    return found


def moments(plan: Plan, x: Any) -> Any:
    """Return the statistics of each set."""
    job = job_of(plan, x, None, None, x)
    planes = planes_for(job, x)
    run(x, None, (plan, job, None, None, 0.0, planes, False))
    return engine().learned.Learned(planes, plan, job, 0.0)


def _planes(plan: Plan, stats: Any, eps: float, x: Any) -> Any:
    """Return given statistics as the engine reads what it learned."""
    given = _formula.given(plan, stats, eps, x, library=library_of("forward", "x", x))
    planes = [plane.expand(plan.statistic).reshape(-1) for plane in given[:4]]
    return torch.stack([*planes, torch.zeros_like(planes[0])])


def _gradient_wanted(x: Any, weight: Any, bias: Any) -> bool:
    """Say whether autograd is to record a call."""
    if not torch.is_grad_enabled():
        return False
    return bool(
        x.requires_grad or (weight is not None and weight.requires_grad) or (bias is not None and bias.requires_grad)
    )
