"""Gradients of CuPy's arrays by the CUDA engine, or by the formula where it cannot compute them."""

from __future__ import annotations

from typing import Any

from anynorm import _formula
from anynorm._dispatch import library_of
from anynorm._formula import Saved
from anynorm._learned import Learned
from anynorm._plan import Plan
from anynorm_cuda import _engine
from anynorm_cuda._launcher import RefusedError
from anynorm_cupy._jobs import FLOAT32, forget, gradient_job_of, parameter
from anynorm_cupy._launch import launcher, on_current_stream
from anynorm_cupy._memory import converted, copied, empty_like, ndarray, room, there, unreadable


def backward(plan: Plan, dy: Any, x: Any, weight: Any, saved: Any, *, out: Any = None) -> tuple[Any, Any, Any]:
    """Return dx like x, or in `out`, and dweight and dbias in the compute dtype and in the plan's shapes for them."""
    return there(x, _backward, plan, dy, x, weight, saved, out)  # type: ignore[no-any-return]


def _backward(plan: Plan, dy: Any, x: Any, weight: Any, saved: Any, out: Any) -> tuple[Any, Any, Any]:
    if isinstance(saved, Learned):
        found = _by_engine(plan, dy, x, weight, saved, out)
        if found is not None:
            return found
        saved = Saved(*[getattr(saved, field) for field in Saved._fields])
    return _formula.backward(plan, dy, x, weight, saved, out=out, library=library_of("backward", "x", x))


def _by_engine(plan: Plan, dy: Any, x: Any, weight: Any, saved: Learned, out: Any) -> tuple[Any, Any, Any] | None:
    """Return the gradients by the engine, or None where it cannot run."""
    if unreadable(dy, weight, out) is not None:
        return None
    if dy.dtype != x.dtype:
        if x.dtype != FLOAT32 or dy.itemsize > x.itemsize:
            return None  # dy has digits that x's dtype has not
        dy = converted(dy, FLOAT32)
    dx, weight = empty_like(x) if out is None else out, parameter(weight, in_order=True)
    job = gradient_job_of(plan, x, dy, dx, weight)
    if isinstance(job, str) and dy.strides != dx.strides:
        dy = copied(dy, dx)  # costs one pass over it, the formula about ten
        job = gradient_job_of(plan, x, dy, dx, weight)
    if isinstance(job, str):
        return None
    dweight, dbias = [None if lies is None else ndarray(lies, FLOAT32) for lies in (plan.weight, plan.bias)]
    device = x.data.device_id
    work = room(job.work, device)
    try:
        _engine.backward(
            job,
            on_current_stream(launcher(device), device),
            x=x.data.ptr,
            dy=dy.data.ptr,
            dx=dx.data.ptr,
            weight=0 if weight is None else weight.data.ptr,
            saved=saved.planes.data.ptr,
            work=work.ptr,
            dweight=0 if dweight is None else dweight.data.ptr,
            dbias=0 if dbias is None else dbias.data.ptr,
        )
    except RefusedError:
        forget()
        return None
    return dx, dweight, dbias
