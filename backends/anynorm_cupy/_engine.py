"""CuPy's arrays handed to the CUDA engine: which may be, and with which addresses. Computes nothing itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from anynorm import _formula
from anynorm._dispatch import library_of
from anynorm._learned import Learned
from anynorm._plan import Plan
from anynorm._prepare import Known
from anynorm._view import Ints
from anynorm_cuda import _engine
from anynorm_cuda._jobs import WIDEST, Job
from anynorm_cuda._launcher import Launcher, RefusedError
from anynorm_cupy._jobs import FLOAT32, forget, job_of, parameter
from anynorm_cupy._launch import launcher, on_current_stream
from anynorm_cupy._memory import converted, dense, empty, empty_like, ndarray, room, there, unreadable

NUMBER = 4  # bytes of a float32


def path(
    plan: Plan, x: Any, weight: Any, bias: Any, *, stats: tuple[Any, Any] | None, out: Any
) -> tuple[str, str | None]:
    """Return whether the engine serves a call that is not declined, and why it does not."""
    y = x if plan.function == "moments" else out
    found = there(x, _found, plan, x, weight, bias, stats, y)
    return ("formula", found) if isinstance(found, str) else ("anynorm_cuda", None)


class _Found(NamedTuple):
    """What serves a call: the job, and weight and bias as it reads them."""

    job: Job
    weight: Any
    bias: Any


def _found(plan: Plan, x: Any, weight: Any, bias: Any, stats: Any, y: Any) -> _Found | str:
    """Return what serves a call, or why nothing but the formula does; y may be None, to be made."""
    reason = unreadable(x, weight, bias, *(stats or ()), y)
    if reason is not None:
        return reason
    weight, bias = parameter(weight), parameter(bias)
    job = job_of(plan, x, y, weight, bias)
    return job if isinstance(job, str) else _Found(job, weight, bias)


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
) -> tuple[Any, Any]:
    """Return y, and what was learned of the statistics if `save` asks for it."""
    return there(x, _forward, plan, x, weight, bias, eps, stats, out, save)  # type: ignore[no-any-return]


def _forward(plan: Plan, x: Any, weight: Any, bias: Any, eps: float, stats: Any, out: Any, save: bool) -> Any:
    found = _found(plan, x, weight, bias, stats, out)
    if isinstance(found, str):
        return _by_formula(plan, x, weight, bias, eps, stats, out)
    y = empty_like(x) if out is None else out
    if out is None and y.data.ptr % WIDEST:  # not CuPy's own allocator
        return _forward(plan, x, weight, bias, eps, stats, y, save)
    job, weight, bias = found
    planes = _planes(job) if save and stats is None else None
    given = [] if stats is None else [_in_sets(its, plan) for its in stats]
    if not _run(job, launcher(x.data.device_id), x, y.data.ptr, weight, bias, planes, eps, given):
        return _by_formula(plan, x, weight, bias, eps, stats, out)
    return y, None if planes is None else Learned(planes, plan, job, eps)


def _by_formula(plan: Plan, x: Any, weight: Any, bias: Any, eps: float, stats: Any, out: Any) -> Any:
    """Return what the formula does, while x's device is the current one."""
    library = library_of("forward", "x", x)
    return _formula.forward(plan, x, weight, bias, eps, stats=stats, out=out, library=library)


def kind(x: Any, weight: Any, bias: Any, mean: Any, var: Any, out: Any) -> Any:
    """Return all that decides about a call but its values and numbers, or None where it is to be looked at anew."""
    if type(x) is not ndarray or mean is not None or var is not None or out is not None:
        return None
    its_weight = its_bias = None
    if weight is not None:
        if type(weight) is not ndarray:
            return None
        memory = weight.data
        its_weight = weight.dtype, weight.shape, weight.strides, memory.ptr % WIDEST, memory.device_id
    if bias is not None:
        if type(bias) is not ndarray:
            return None
        memory = bias.data
        its_bias = bias.dtype, bias.shape, bias.strides, memory.ptr % WIDEST, memory.device_id
    memory = x.data
    return x.dtype, x.shape, x.strides, memory.ptr % WIDEST, memory.device_id, its_weight, its_bias


class _Decided(NamedTuple):
    """What is the same for all calls of a kind."""

    job: Job
    reads_weight: bool  # as it lies
    reads_bias: bool
    shape: Ints
    strides: Ints | None  # of y, in bytes; None for C order
    launcher: Launcher


def again(
    known: Known,
    x: Any,
    weight: Any,
    bias: Any,
    eps: float,
    stats: None,  # noqa: ARG001  of a call with statistics there is no kind,
    out: None,  # noqa: ARG001  nor of one with `out`
    save: bool,
) -> tuple[Any, Any]:
    """Return what `forward` does, for a call of a known kind."""
    return there(x, _again, known, x, weight, bias, eps, save)  # type: ignore[no-any-return]


def _again(known: Known, x: Any, weight: Any, bias: Any, eps: float, save: bool) -> Any:
    decided = known.decided.get("job")
    if decided is None:
        decided = known.decided["job"] = _decide(known.plan, x, weight, bias)
    if isinstance(decided, str):
        return _by_formula(known.plan, x, weight, bias, eps, None, None)
    job, reads_weight, reads_bias, shape, strides, its_launcher = decided
    y = ndarray(shape, x.dtype) if strides is None else empty(shape, x.dtype, strides)
    begin = y.data.ptr
    if begin % WIDEST:  # not CuPy's own allocator
        return _forward(known.plan, x, weight, bias, eps, None, y, save)
    planes = _planes(job) if save else None
    laid_weight, laid_bias = weight if reads_weight else parameter(weight), bias if reads_bias else parameter(bias)
    if not _run(job, its_launcher, x, begin, laid_weight, laid_bias, planes, eps, ()):
        known.decided.clear()
        return _by_formula(known.plan, x, weight, bias, eps, None, None)
    return y, None if planes is None else Learned(planes, known.plan, job, eps)


def _decide(plan: Plan, x: Any, weight: Any, bias: Any) -> _Decided | str:
    found = _found(plan, x, weight, bias, None, None)
    if isinstance(found, str):
        return found
    strides = dense(x.shape, x.strides, x.itemsize)
    in_c = ndarray(x.shape, x.dtype).strides == strides
    its = launcher(x.data.device_id)
    return _Decided(found.job, found.weight is weight, found.bias is bias, x.shape, None if in_c else strides, its)


def moments(plan: Plan, x: Any) -> Any:
    """Return the statistics of each set."""
    return there(x, _moments, plan, x)


def _moments(plan: Plan, x: Any) -> Any:
    found = _found(plan, x, None, None, None, x)
    if not isinstance(found, str):
        planes = _planes(found.job)
        if _run(found.job, launcher(x.data.device_id), x, 0, None, None, planes, 0.0, ()):
            return Learned(planes, plan, found.job, 0.0)
    return _formula.moments(plan, x, library=library_of("moments", "x", x))


def _planes(job: Job) -> Any:
    """Return room for what is learned of each set."""
    return ndarray((5, job.sets), FLOAT32)


def _run(job: Job, its: Launcher, x: Any, y: int, weight: Any, bias: Any, planes: Any, eps: float, given: Any) -> bool:
    """Write to address y, unless it is 0, and what is learned to `planes`, unless they are None.

    False where the device refuses to launch a kernel, the first time. Nothing is in y then, which the last one writes.
    """
    saved = 0 if planes is None else planes.data.ptr
    work = 0
    if job.partial or (job.keeps and not saved):
        memory = room(job.work + 5 * NUMBER * job.sets, x.data.device_id)
        work = memory.ptr
        saved = saved or work + job.work
    try:
        _engine.forward(
            job,
            on_current_stream(its, x.data.device_id),
            x=x.data.ptr,
            y=y,
            weight=0 if weight is None else weight.data.ptr,
            bias=0 if bias is None else bias.data.ptr,
            saved=saved,
            work=work,
            eps=eps,
            given=(given[0].data.ptr, given[1].data.ptr) if given else (0, 0),
        )
    except RefusedError:
        forget()
        return False
    return True


def _in_sets(its: Any, plan: Plan) -> Any:
    """Return a given statistic as the engine reads it: a float32 for each set."""
    assert len(plan.kept) <= 1  # so that no order of axes is to be kept
    return converted(its, FLOAT32)
