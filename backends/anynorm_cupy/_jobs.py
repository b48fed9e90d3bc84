"""From CuPy's arrays to the engine's jobs: dtypes, strides and how far memory is aligned. Runs nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import cupy

from anynorm._plan import Plan
from anynorm._view import Ints, Layout
from anynorm_cuda import _jobs
from anynorm_cuda._jobs import WIDEST, Job, Kinds
from anynorm_cupy._launch import facts, launcher, unfit
from anynorm_cupy._memory import converted, dense, sum_of_bits

FLOAT32: Any = cupy.dtype(cupy.float32)
FLOAT64: Any = cupy.dtype(cupy.float64)

# Jobs met before, whose kernels are loaded, or why there is none; each with its plan. A plan is known by its address,
# because its hash takes longer than all the rest; that the plan is kept makes this safe.
_met: dict[tuple[Any, ...], tuple[Plan, Job | str]] = {}
MANY = 4096


def job_of(plan: Plan, x: Any, y: Any, weight: Any, bias: Any) -> Job | str:
    """Return the job for x and y, or half a sentence that says why there is none.

    y is x where it is only measured, and None where it is to be made as CuPy's own allocator would.
    """
    memory = (dense(x.shape, x.strides, x.itemsize), 0) if y is None else (y.strides, y.data.ptr)
    return _job_of(plan, x, (memory,), _laid(weight), _laid(bias))


def gradient_job_of(plan: Plan, x: Any, dy: Any, dx: Any, weight: Any) -> Job | str:
    """Return the job for x, dy and dx, or half a sentence that says why there is none."""
    # Bias is not read: it lies as its gradient is wanted.
    bias = None if plan.bias is None else _dense(cast(Ints, plan.bias))
    memory = (dy.strides, dy.data.ptr), (dx.strides, dx.data.ptr)
    return _job_of(plan, x, memory, _laid(weight), bias)


def parameter(its: Any, *, in_order: bool = False) -> Any:
    """Return weight or bias as the engine reads it: no wider than float32, some axis without gaps, no step back."""
    if its is None:
        return None
    if its.dtype == FLOAT64:
        return converted(its, FLOAT32)
    if its.flags.c_contiguous:
        return its
    steps = [step for step, length in zip(its.strides, its.shape, strict=True) if length > 1]
    return its if min(steps) == its.itemsize and not in_order else converted(its, its.dtype)


_Laid = tuple[Any, Ints, Ints, int]  # dtype, shape, strides in bytes, the address' last bits


def _laid(its: Any) -> _Laid | None:
    return None if its is None else (its.dtype, its.shape, its.strides, its.data.ptr % WIDEST)


@lru_cache(maxsize=4096)
def _dense(shape: Ints) -> _Laid:
    """Return how float32 of a shape lies in C order."""
    return FLOAT32, shape, dense(shape, tuple(range(len(shape), 0, -1)), 4), 0


def _job_of(
    plan: Plan, x: Any, others: tuple[tuple[Ints, int], ...], weight: _Laid | None, bias: _Laid | None
) -> Job | str:
    """Return the job for x and others of its shape, each given by its strides in bytes and its address."""
    memory, strides = x.data, (x.strides, *[steps for steps, _ in others])
    bits = memory.ptr | sum_of_bits(tuple([address for _, address in others]))
    key = (id(plan), memory.device_id, x.dtype, bits % WIDEST, strides, weight, bias)
    met = _met.get(key)
    if met is None:
        if len(_met) >= MANY:
            _met.clear()
        met = _met[key] = plan, _made(plan, x, strides, bits, weight, bias)
    return met[1]


def _made(
    plan: Plan, x: Any, strides: tuple[Ints, ...], bits: int, weight: _Laid | None, bias: _Laid | None
) -> Job | str:
    device, size = x.data.device_id, x.itemsize
    reason = unfit(device)
    if reason is not None:
        return reason
    in_elements = tuple([tuple([step // size for step in steps]) for steps in strides])
    layouts = _layout(weight), _layout(bias)
    kinds = Kinds(
        x.dtype.name,
        None if weight is None else weight[0].name,
        None if bias is None else bias[0].name,
        bits % WIDEST,
        sum_of_bits(tuple([own[3] for own in (weight, bias) if own is not None])),
    )
    if len(in_elements) == 2:
        job = _jobs.forward_job(plan, kinds, x.shape, in_elements, *layouts, facts(device))
    else:
        first, second, third = in_elements
        job = _jobs.gradient_job(plan, kinds, x.shape, (first, second, third), *layouts, facts(device))
    return job if isinstance(job, str) else launcher(device).why_not(job.launches) or job


def forget() -> None:
    """Have every job made anew when it is next asked for, because a device has refused to launch one.

    Its launcher remembers which kernel that was, so that there is no job with it again.
    """
    _met.clear()


def _layout(laid: _Laid | None) -> Layout | None:
    if laid is None:
        return None
    dtype, shape, strides, _ = laid
    return shape, tuple([step // dtype.itemsize for step in strides])
