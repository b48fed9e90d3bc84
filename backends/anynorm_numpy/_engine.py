"""NumPy arrays handed to the CPU engine: which may be, and with which addresses. Computes nothing itself."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

import anynorm_numba
from anynorm import _memory
from anynorm._plan import Plan
from anynorm._prepare import Known
from anynorm._view import Ints, Layout
from anynorm_numba import engine
from anynorm_numba._address import address

COMPUTE = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}

# Types whose memory is their value and whose arithmetic is NumPy's own.
PLAIN = (np.ndarray, np.memmap)

# By dtype, of which only those in the machine's own byte order: its name and what is computed in. bfloat16, another
# package's dtype, is met by name.
_kinds = {np.dtype(name): (name, np.dtype(COMPUTE[name])) for name in ("float16", "float32", "float64")}


def kind_of(x: Any) -> tuple[str, Any]:
    """Return the name of x's dtype, and the dtype it is computed in; for another byte order no name."""
    try:
        return _kinds[x.dtype]
    except KeyError:
        name = x.dtype.name if x.dtype.isnative else ""
        found = _kinds[x.dtype] = (name, np.dtype(COMPUTE[x.dtype.name]))
        return found


def job_of(plan: Plan, x: Any, weight: Layout | None, bias: Layout | None, others: tuple[Any, ...]) -> Any:
    """Return the job for x and arrays of its shape beside it, or half a sentence that says why there is none."""
    reason = anynorm_numba.missing()
    if reason is not None:
        return reason
    kind, _ = kind_of(x)
    if not kind or any(not array.flags.aligned for array in (x, *others)):
        return "an array is not aligned, or of another byte order"
    its = engine()
    strides = (x.strides, *[other.strides for other in others])
    threads = its.threads.threads_for(x.size)
    return its.jobs.job_for(plan, kind, x.shape, strides, weight, bias, threads)


def known_job(known: Known, x: Any, y: Any, weight: Any, bias: Any) -> tuple[Any, bool, bool]:
    """Return the job for a call of a known kind, or None; and whether weight and bias are read as they lie."""
    if anynorm_numba.missing() is not None:
        return None, True, True
    threads = engine().threads.threads_for(known.size)
    found: tuple[Any, bool, bool] | None = known.decided.get(threads)
    if found is None:
        laid = parameter(weight, x), parameter(bias, x)
        job = job_of(known.plan, x, layout(laid[0]), layout(laid[1]), (y,))
        found = None if isinstance(job, str) else job, laid[0] is weight, laid[1] is bias
        known.decided[threads] = found
    return found


def parameter(its: Any, x: Any) -> Any:
    """Return weight or bias in the compute dtype, as the engine reads it: some axis without gaps, no step back."""
    if its is None:
        return None
    _, compute = kind_of(x)
    flags = its.flags
    if its.dtype is not compute or not flags.aligned:
        with np.errstate(all="ignore"):
            its = its.astype(compute)
    return its if flags.c_contiguous or _dense(its.shape, its.strides, its.itemsize) else its.copy()


def _dense(shape: Ints, strides: Ints, size: int) -> bool:
    return min((step for step, length in zip(strides, shape, strict=True) if length > 1), default=size) == size


def apart(out: Any, x: Any, others: tuple[Any, ...]) -> bool:
    """Say whether `out` is x or lies outside of it, and outside of the others; False is no answer."""
    beside = others if out is x else (x, *others)
    return _memory.apart(_span(out), [_span(its) for its in beside if its is not None])


def _span(its: Any) -> tuple[int, int]:
    """Return between which addresses an array lies."""
    begin, flags = address(its), its.flags
    if flags.c_contiguous or flags.f_contiguous:
        return begin, begin + its.nbytes
    first, last = _memory.reach(its.shape, its.strides)
    return begin + first, begin + last + its.itemsize


def layout(its: Any) -> Layout | None:
    """Return how a parameter lies in memory."""
    return None if its is None else (its.shape, its.strides)


def forward(plan: Plan, job: Any, x: Any, y: Any, weight: Any, bias: Any, eps: float, stats: Any, save: bool) -> Any:
    """Write y, unless it is None; return what was learned of the statistics if `save` asks for it."""
    its = engine()
    saved = None
    if stats is not None:
        saved = its.learned.planes(job)
        mean, var = [parameter(each, x) for each in stats]
        its.given.take(job.kind, job.sets, address(mean), address(var), address(saved), eps)
    elif save or job.split:
        saved = its.learned.planes(job)
    its.run.forward(
        job,
        address(x),
        0 if y is None else address(y),
        job.absent_weight if weight is None else address(weight),
        job.absent_bias if bias is None else address(bias),
        0 if saved is None else address(saved),
        eps,
        given=stats is not None,
    )
    return its.learned.Learned(saved, plan, job, eps) if save else None


def backward(plan: Plan, job: Any, x: Any, dy: Any, dx: Any, weight: Any, planes: Any) -> tuple[Any, Any]:
    """Write dx; return the gradients of weight and bias, None where there is no such parameter."""
    its = engine()
    begins = job.absent_weight if weight is None else address(weight)
    compute = its.learned.COMPUTE[job.kind]
    dweight = None if plan.weight is None else np.empty(cast(Ints, plan.weight), compute)
    dbias = None if plan.bias is None else np.empty(cast(Ints, plan.bias), compute)
    targets = [0 if target is None else address(target) for target in (dweight, dbias)]
    its.run.backward(job, address(x), address(dy), address(dx), begins, address(planes), *targets)
    return dweight, dbias


def learned(saved: Any) -> bool:
    """Say whether these statistics were left by the engine: only then do they lie as it reads them."""
    return anynorm_numba.missing() is None and isinstance(saved, engine().learned.Learned)
