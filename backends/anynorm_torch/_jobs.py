"""From tensors to the engine's jobs and addresses, and new tensors beside them. Knows nothing of autograd."""

from __future__ import annotations

from typing import Any

import torch

from anynorm._plan import Plan
from anynorm._view import Layout
from anynorm_numba import engine

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

# Fewer elements than these need not be measured in bytes.
SMALL = LARGE // 8

# Jobs met before, by what tells layouts apart in torch's own terms: see `anynorm_numba._jobs`.
_met: dict[tuple[Any, ...], tuple[Plan, Any]] = {}
MANY = 4096


# A forward pass that is decided, but for x and y: its plan, its job, weight and bias as the engine reads them, eps,
# where what is learned goes or what is given comes from, and whether it is given. As a tuple it is made in no time.
Run = tuple[Plan, Any, Any, Any, float, Any, bool]


def run(x: Any, y: Any, its: Run) -> None:
    """Write y, unless it is None, and what is learned."""
    _, job, weight, bias, eps, planes, given = its
    begins = (
        x.data_ptr(),
        job.absent_weight if weight is None else weight.data_ptr(),
        job.absent_bias if bias is None else bias.data_ptr(),
    )
    check_memory(begins)
    at_x, at_weight, at_bias = begins
    at_y = 0 if y is None else y.data_ptr()
    engine().run.forward(job, at_x, at_y, at_weight, at_bias, begin(planes), eps, given=given)


def check_memory(begins: tuple[int, ...]) -> None:
    """Raise a ValueError if a tensor that is to be read has no memory."""
    if 0 in begins:
        msg = "anynorm: the storage of a tensor was freed (resize_(0), as sharding does), so there is nothing to read."
        raise ValueError(msg)


def begin(planes: Any) -> int:
    """Return the address of what was learned, in a tensor or an array of NumPy; 0 where there is none."""
    if planes is None:
        return 0
    return planes.data_ptr() if isinstance(planes, torch.Tensor) else engine().address(planes)


def planes_for(job: Any, x: Any, *, within: bool = False) -> Any:
    """Return room for what is learned of the sets of x: a tensor, or what is faster made where it stays `within`."""
    compute = KINDS[x.dtype][1]
    if within and job.threads == 1:
        return engine().learned.planes(job)
    if x.dtype is compute:  # a dtype takes half a microsecond to pass
        return x.new_empty(5, job.sets)
    return x.new_empty(5, job.sets, dtype=compute)


def job_of(plan: Plan, x: Any, weight: Any, bias: Any, out: Any) -> Any:
    """Return the job for x and its y, or half a sentence that says why there is none."""
    threads = engine().threads.threads_for(x.numel())
    # A plan is one object for each set of shapes, so these need not be told apart.
    beside = [None if its is None else its.stride() for its in (weight, bias, out)]
    key = (id(plan), x.dtype, x.stride(), *beside, threads)
    met = _met.get(key)
    if met is None:
        y = torch.empty_like(x, device="meta") if out is None else out
        met = _meet(key, plan, x, (y,), _layout(weight), _layout(bias), threads)
    return met[1]


def gradient_job_of(plan: Plan, x: Any, weight: Any, dy: Any, dx: Any) -> Any:
    """Return the job for x, dy and dx, or half a sentence that says why there is none."""
    threads = engine().threads.threads_for(x.numel())
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


def empty_like(x: Any, elements: int = LARGE) -> Any:
    """Return a new tensor that lies as x does, its axes in the same order; `elements` of x, if that is known."""
    if elements < SMALL:
        return torch.empty_like(x)
    size = x.numel() * x.element_size()
    if size < LARGE:
        return torch.empty_like(x)
    import numpy as np

    storage = torch.from_numpy(np.empty(size, dtype=np.uint8)).untyped_storage()
    # Not a view of it: autograd forbids what is a view to be changed in place.
    like = torch.empty_like(x, device="meta").stride()
    return x.new_empty(0).set_(storage, 0, x.shape, like)
