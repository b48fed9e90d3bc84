"""torch's tensors handed to the engine of the memory that they lie in: which may be, and with what. Computes nothing.

What differs from memory to memory is in `_host` and `_device`.
"""

from __future__ import annotations

from typing import Any

import torch

from anynorm import _formula
from anynorm._dispatch import library_of
from anynorm._learned import Learned
from anynorm._plan import Plan
from anynorm._prepare import Known
from anynorm_cuda._launcher import RefusedError
from anynorm_torch._autograd import recorded
from anynorm_torch._jobs import Jobs, forget
from anynorm_torch._memory import kind_of, unreadable_itself, watched, watches, written
from anynorm_torch._places import jobs_for


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
    found = _found(plan, x, weight, bias, stats, out)
    return found if isinstance(found, str) else None


def _found(plan: Plan, x: Any, weight: Any, bias: Any, stats: Any, out: Any) -> tuple[Any, ...] | str:
    """Return who serves a call, its job, weight and bias as the engine reads them; or why none does."""
    operands = [its for its in (x, weight, bias, *(stats or ()), out) if its is not None]
    reason = watched() or next((why for its in operands if (why := unreadable_itself(its)) is not None), None)
    if reason is not None:
        return reason
    if torch.is_grad_enabled():
        if stats is not None and any(its.requires_grad for its in stats):
            return "a gradient is wanted for mean or var"
        if plan.function == "moments" and x.requires_grad:
            return "a gradient is wanted for the moments"
    jobs = jobs_for(x)
    reason = jobs.unfit(x)
    if reason is not None:
        return reason
    laid = jobs.parameter(weight, x), jobs.parameter(bias, x)
    job = jobs.job_of(plan, x, *laid, x if plan.function == "moments" else out)
    return job if isinstance(job, str) else (jobs, job, *laid)


def path(plan: Plan, x: Any, weight: Any, bias: Any, **_: Any) -> tuple[str, None]:  # noqa: ARG001
    """Return which package serves a call that is not declined."""
    return jobs_for(x).package, None


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
    """Return y, and what was learned of the statistics if `save` asks for it; or why no engine can run."""
    found = _found(plan, x, weight, bias, stats, out)
    if isinstance(found, str):
        return found
    jobs, job, *laid = found
    wanted = out is None and _gradient_wanted(x, weight, bias)
    y = jobs.empty_like(x) if out is None else out
    planes = given = None
    if stats is not None:
        planes, given = jobs.given(plan, job, stats, eps, x)
    elif save or wanted or jobs.keeps(job):
        planes = jobs.planes_for(job, x)
    its = jobs, plan, job, *laid, eps, planes, given
    try:
        if wanted:
            y = recorded(x, weight, bias, y, its)
        else:
            jobs.run(x, y, its)
    except RefusedError as refused:  # by the launch itself: y is not written, which the last one does
        forget()
        return str(refused)
    written(out)
    return y, Learned(planes, plan, job, eps) if save and stats is None else None


def kind(x: Any, weight: Any, bias: Any) -> Any:
    """Return all that decides about a call but its values and numbers, or None where it is to be looked at anew."""
    if watches():
        return None
    its_x, its_weight, its_bias = kind_of(x), weight, bias
    if weight is not None and (its_weight := kind_of(weight)) is None:
        return None
    if bias is not None and (its_bias := kind_of(bias)) is None:
        return None
    return None if its_x is None else (its_x, its_weight, its_bias)


# Where `again` keeps who serves calls of a kind.
JOBS_KEPT = "jobs"


def again(known: Known, x: Any, weight: Any, bias: Any, eps: float, save: bool) -> Any:
    """Return what `forward` does, for a call of a known kind, for which `kind` asked what `_found` asks."""
    jobs = known.decided.get(JOBS_KEPT)
    if jobs is None:
        jobs = known.decided[JOBS_KEPT] = jobs_for(x)
    found = _known_job(jobs, known, x, weight, bias)
    if isinstance(found, str):
        return found
    job, weight_lies, bias_lies, keeps = found
    plan = known.plan
    laid_weight = weight if weight_lies else jobs.parameter(weight, x)
    laid_bias = bias if bias_lies else jobs.parameter(bias, x)
    wanted = _gradient_wanted(x, weight, bias)
    planes = jobs.planes_for(job, x, within=not save) if wanted or save or keeps else None
    its = jobs, plan, job, laid_weight, laid_bias, eps, planes, None
    y = jobs.empty_like(x, known.size)
    try:
        if wanted:
            y = recorded(x, weight, bias, y, its)
        else:
            jobs.run(x, y, its)
    except RefusedError as refused:
        forget()
        known.decided.clear()
        return str(refused)
    return y, Learned(planes, plan, job, eps) if save else None


def _known_job(jobs: Jobs, known: Known, x: Any, weight: Any, bias: Any) -> tuple[Any, bool, bool, bool] | str:
    """Return the job for a call of a known kind, whether weight and bias are read as is, and whether it needs planes.

    Or why there is no job.
    """
    missing = jobs.missing()
    if missing is not None:
        return missing
    setting = jobs.setting(known.size)
    found: tuple[Any, bool, bool, bool] | str | None = known.decided.get(setting)
    if found is None:
        found = jobs.unfit(x) or _decided(jobs, known.plan, x, weight, bias)
        known.decided[setting] = found
    return found


def _decided(jobs: Jobs, plan: Plan, x: Any, weight: Any, bias: Any) -> tuple[Any, bool, bool, bool] | str:
    laid = jobs.parameter(weight, x), jobs.parameter(bias, x)
    job = jobs.job_of(plan, x, *laid, None)
    return job if isinstance(job, str) else (job, laid[0] is weight, laid[1] is bias, jobs.keeps(job))


def moments(plan: Plan, x: Any) -> Any:
    """Return the statistics of each set."""
    jobs = jobs_for(x)
    job = jobs.job_of(plan, x, None, None, x)
    planes = jobs.planes_for(job, x)
    try:
        jobs.run(x, None, (jobs, plan, job, None, None, 0.0, planes, None))
    except RefusedError:
        forget()
        return _formula.moments(plan, x, library=library_of("moments", "x", x))
    return Learned(planes, plan, job, 0.0)


def _gradient_wanted(x: Any, weight: Any, bias: Any) -> bool:
    """Say whether autograd is to record a call."""
    if not torch.is_grad_enabled():
        return False
    return bool(
        x.requires_grad or (weight is not None and weight.requires_grad) or (bias is not None and bias.requires_grad)
    )
