"""torch's tensors handed to the engine of the memory that they lie in: which may be, and with what. Computes nothing.

What differs from memory to memory is in `_host` and `_device`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from anynorm import _formula
from anynorm._dispatch import library_of
from anynorm._learned import Learned
from anynorm._memory import apart
from anynorm._plan import Plan
from anynorm._prepare import Known
from anynorm_cuda._launcher import RefusedError
from anynorm_torch._autograd import recorded
from anynorm_torch._jobs import KINDS, Jobs, Lies, UnalignedError, empty, forget
from anynorm_torch._kinds import kind_of_call
from anynorm_torch._memory import check_storage, length_of, unaligned, unreadable_itself, watched, watches, written
from anynorm_torch._places import jobs_for
from anynorm_torch._slow import say_if_slow


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
    if not isinstance(found, str):
        return None
    if plan.function == "moments":  # which asks here before it measures; the others, `forward`
        say_if_slow(found, x)
    return found


def _found(plan: Plan, x: Any, weight: Any, bias: Any, stats: Any, out: Any) -> tuple[Any, ...] | str:
    """Return who serves a call, its job, weight and bias as the engine reads them; or why none does."""
    operands = [its for its in (x, weight, bias, *(stats or ()), out) if its is not None]
    reason = watched() or next((why for its in operands if (why := unreadable_itself(its)) is not None), None)
    if reason is not None:
        return reason
    check_storage(*operands)
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
    # Statistics of another dtype, or with gaps, are copied.
    read = [its for its in stats or () if its.dtype == KINDS[x.dtype][1] and its.is_contiguous()]
    reason = unaligned(x, *laid, *read, out)
    if reason is not None:
        return reason
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
        say_if_slow(found, x)
        return found
    jobs, job, *laid = found
    wanted = out is None and _gradient_wanted(x, weight, bias)
    y = jobs.empty_like(x) if out is None else out
    planes = given = None
    try:
        if stats is not None:
            planes, given = jobs.given(job, stats, eps, x)
        elif save or wanted or jobs.keeps(job):
            planes = jobs.planes_for(job, x)
        its = jobs, plan, job, *laid, eps, planes, given
        if wanted:
            y = recorded(x, weight, bias, y, its)
        else:
            jobs.run(x, y, its)
    except RefusedError as refused:  # by the launch itself: y is not written, which the last one does
        forget()
        return str(refused)
    except UnalignedError as unfit:
        return str(unfit)
    written(out)
    return y, Learned(planes, plan, job, eps) if save else None


def kind(x: Any, weight: Any, bias: Any, mean: Any, var: Any, out: Any) -> Any:
    """Return all that decides about a call but its values and numbers, or None where it is to be looked at anew."""
    if watches():
        return None
    if mean is not None or out is not None:
        return _kind_beside(x, weight, bias, mean, var, out)
    if weight is None:
        return kind_of_call("x", x) if bias is None else kind_of_call("x, bias", x, bias)
    return kind_of_call("x, weight", x, weight) if bias is None else kind_of_call("x, weight, bias", x, weight, bias)


def _kind_beside(x: Any, weight: Any, bias: Any, mean: Any, var: Any, out: Any) -> Any:
    """Return the kind of a call with given statistics or `out`, or None."""
    named = {"x": x, "weight": weight, "bias": bias, "mean": mean, "var": var, "out": None if out is x else out}
    given = {name: its for name, its in named.items() if its is not None}
    tensors = [*given.values()]
    found = kind_of_call(", ".join([*given, "out is x"] if out is x else given), *tensors)
    constants = [mean, var] if out is None else tensors
    if found is None or (torch.is_grad_enabled() and any(its.requires_grad for its in constants)):
        return None
    if out is None:
        return found
    if out.is_inference() and not torch.is_inference_mode_enabled():
        return None
    if found.lengths is None:
        found.lengths = tuple([length_of(its) for its in tensors])
    spans = [(begin := its.data_ptr(), begin + length) for its, length in zip(tensors, found.lengths, strict=True)]
    target = spans.pop(0 if out is x else -1)  # x comes first, another `out` last
    return found if apart(target, spans) else None


# Where `again` keeps who serves calls of a kind.
JOBS_KEPT = "jobs"


class Decided(NamedTuple):
    """What is decided for calls of a kind in one setting."""

    job: Any
    weight_lies: bool  # as the engine reads it
    bias_lies: bool
    keeps: bool  # needs room for what is learned, wanted or not
    records: bool  # some tensor requires a gradient
    y: Lies | None  # None where whoever serves the call makes it
    wide: tuple[Lies | None, Lies | None] | None  # how weight and bias are to lie, where both are to be cast at once
    size: int  # of an element of x
    length: int  # from x's first byte to its end
    out_length: int


def again(known: Known, x: Any, weight: Any, bias: Any, eps: float, stats: Any, out: Any, save: bool) -> Any:
    """Return what `forward` does, for a call of a known kind, for which `kind` asked what `_found` asks."""
    jobs = known.decided.get(JOBS_KEPT)
    if jobs is None:
        jobs = known.decided[JOBS_KEPT] = jobs_for(x)
    found = _known_job(jobs, known, x, weight, bias, out)
    if isinstance(found, str):
        say_if_slow(found, x)
        return found
    job, weight_lies, bias_lies, keeps, records, lies, wide, size, length, out_length = found
    if x.untyped_storage().nbytes() < length + size * x.storage_offset():
        check_storage(x)
    if out is not None and out.untyped_storage().nbytes() < out_length + size * out.storage_offset():
        check_storage(out)
    plan = known.plan
    wanted = records and torch.is_grad_enabled()
    planes = given = None
    y = out
    if y is None:
        y = jobs.empty_like(x) if lies is None else empty(*lies)
    try:
        if wide is not None:
            laid_weight, laid_bias = jobs.widened(weight, bias, wide)
        else:
            laid_weight = weight if weight_lies else jobs.parameter(weight, x)
            laid_bias = bias if bias_lies else jobs.parameter(bias, x)
        if stats is not None:
            planes, given = jobs.given(job, stats, eps, x)
        elif wanted or save or keeps:
            planes = jobs.planes_for(job, x, within=not save)
        its = jobs, plan, job, laid_weight, laid_bias, eps, planes, given
        if wanted:
            y = recorded(x, weight, bias, y, its)
        else:
            jobs.run(x, y, its)
    except RefusedError as refused:
        forget()
        known.decided.clear()
        return str(refused)
    except UnalignedError as unfit:  # a call of its kind that is aligned goes on as before
        return str(unfit)
    written(out)
    return y, Learned(planes, plan, job, eps) if save else None


def _known_job(jobs: Jobs, known: Known, x: Any, weight: Any, bias: Any, out: Any) -> Decided | str:
    """Return what is decided for a call of a known kind, or why there is no job."""
    missing = jobs.missing()
    if missing is not None:
        return missing
    setting = jobs.setting(known.size)
    found: Decided | str | None = known.decided.get(setting)
    if found is None:
        found = jobs.unfit(x) or _decided(jobs, known.plan, x, weight, bias, out)
        known.decided[setting] = found
    return found


def _decided(jobs: Jobs, plan: Plan, x: Any, weight: Any, bias: Any, out: Any) -> Decided | str:
    # Of later calls `run` sees whether all of a storage was freed, and `again` whether that of x or out was cut: that
    # takes 2 % of a small call, and of weight and bias another 4.
    check_storage(x, weight, bias, out)
    laid = jobs.parameter(weight, x), jobs.parameter(bias, x)
    job = jobs.job_of(plan, x, *laid, out)
    if isinstance(job, str):
        return job
    records = any(its is not None and its.requires_grad for its in (x, weight, bias))
    keeps, lies, wide = jobs.keeps(job), jobs.lies_like(x), jobs.widens(x, weight, bias)
    sizes = x.element_size(), length_of(x), 0 if out is None else length_of(out)
    return Decided(job, laid[0] is weight, laid[1] is bias, keeps, records, lies, wide, *sizes)


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
