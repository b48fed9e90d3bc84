"""Tensors in the host's memory, handed to the CPU engine."""

from __future__ import annotations

from typing import Any

import torch

import anynorm_numba
from anynorm._plan import Plan
from anynorm_numba import engine
from anynorm_torch._jobs import (
    FEW,
    KINDS,
    Jobs,
    Lies,
    Pull,
    Run,
    UnalignedError,
    cast,
    check_memory,
    dense,
    empty,
    forward_ad,
    layout,
    like,
    may_be_read,
    met,
    remember,
    room,
    steps,
)
from anynorm_torch._kinds import kind_of_call
from anynorm_torch._memory import LOW, check_storage
from anynorm_torch._pages import LARGE, ask_for_large_pages


class _HostJobs(Jobs):
    """Hands tensors in the host's memory to numba's kernels. What depends on threads does so here alone."""

    memory = "cpu"
    package = "anynorm_numba"
    pulls_given = True

    def missing(self) -> str | None:
        return anynorm_numba.missing()

    def unfit(self, x: Any) -> str | None:  # noqa: ARG002  one host is as another
        return anynorm_numba.missing()

    def setting(self, elements: int) -> int:
        threads: int = engine().threads.threads_for(elements)
        return threads

    def lies_like(self, x: Any) -> Lies | None:
        return None if x.nbytes >= LARGE else _lies(torch.empty_like(x))

    def pull_of(self, plan: Plan, x: Any, dy: Any, weight: Any, laid: Any, planes: Any, bias: Any) -> Pull | None:
        if forward_ad._current_level >= 0:
            return None
        # What was learned is a tensor only where several threads did, or statistics were given.
        if planes is None:
            kind = kind_of_call("x, dy", x, dy) if weight is None else kind_of_call("x, dy, weight", x, dy, weight)
        elif weight is None:
            kind = kind_of_call("x, dy, planes", x, dy, planes)
        else:
            kind = kind_of_call("x, dy, weight, planes", x, dy, weight, planes)
        if kind is None:
            return None
        key = id(plan), kind, laid is None, engine().threads.threads_for(x.numel())
        found = met(key)
        if found is None:
            found = remember(key, plan, self._pull(plan, x, dy, weight, laid, bias))
        pull: Pull | None = found[1]
        return pull

    def _pull(self, plan: Plan, x: Any, dy: Any, weight: Any, laid: Any, bias: Any) -> Pull | None:
        if dy.dtype != x.dtype or (laid is None and self.parameter(weight, x) is not weight):
            return None
        job = self.gradient_job_of(plan, x, weight if laid is None else laid, dy, torch.empty_like(x), None, None)
        if isinstance(job, str):
            return None
        compute = KINDS[x.dtype][1]
        shapes = None if weight is None else weight.shape, None if bias is None else bias[0]
        dweight, dbias = [None if shape is None else (*dense(shape), compute) for shape in shapes]
        return Pull(job, self.lies_like(x), dweight, dbias)

    def may_read(self, *tensors: Any) -> bool:
        return may_be_read("cpu", *tensors)

    def parameter(self, its: Any, x: Any) -> Any:
        """Return weight or bias in the compute dtype: some axis without gaps, no step back."""
        if its is None:
            return None
        compute = KINDS[x.dtype][1]
        if its.dtype != compute:
            its = cast(its.detach(), compute)
        if its.is_contiguous():
            return its
        along = [step for step, length in zip(its.stride(), its.shape, strict=True) if length > 1]
        return its if min(along, default=1) == 1 else its.contiguous()

    def widens(self, x: Any, weight: Any, bias: Any) -> tuple[Lies | None, Lies | None] | None:
        compute, given = KINDS[x.dtype][1], [its for its in (weight, bias) if its is not None]
        if x.dtype is compute or not given:
            return None
        if any(its.dtype is not x.dtype or not its.is_contiguous() or its.numel() > FEW for its in given):
            return None
        lies = [None if its is None else (tuple(its.shape), its.stride(), compute) for its in (weight, bias)]
        return lies[0], lies[1]

    def widened(self, weight: Any, bias: Any, lies: tuple[Lies | None, Lies | None]) -> tuple[Any, Any]:
        wide_weight, *of_weight = _widening(weight, lies[0])
        wide_bias, *of_bias = _widening(bias, lies[1])
        dtype = (bias if weight is None else weight).dtype
        engine().half.widen(KINDS[dtype][0], *of_weight, *of_bias)
        return wide_weight, wide_bias

    def empty_like(self, x: Any) -> Any:
        y = torch.empty_like(x)
        if y.nbytes >= LARGE:
            ask_for_large_pages(y.data_ptr(), y.nbytes)
        return y

    def planes_for(self, job: Any, x: Any, *, within: bool = False) -> Any:
        return engine().learned.planes(job) if within and job.threads == 1 else room((5, job.sets), x)

    def keeps(self, job: Any) -> bool:
        split: bool = job.split
        return split

    def given(self, job: Any, stats: Any, eps: float, x: Any) -> tuple[Any, Any]:
        planes = room((5, job.sets), x)
        mean, var = [self.parameter(its, x) for its in stats]
        begins = mean.data_ptr(), var.data_ptr()
        check_memory(begins, mean, var)
        if (begins[0] | begins[1]) % mean.element_size():
            raise UnalignedError
        engine().given.take(job.kind, job.sets, *begins, planes.data_ptr(), eps)
        return planes, stats

    def job_of(self, plan: Plan, x: Any, weight: Any, bias: Any, out: Any) -> Any:
        threads = engine().threads.threads_for(x.numel())
        # A plan is one object for each set of shapes, so these need not be told apart.
        beside = [None if its is None else its.stride() for its in (weight, bias, out)]
        key = (id(plan), x.dtype, x.stride(), *beside, threads)
        found = met(key)
        if found is None:
            size = KINDS[x.dtype][1].itemsize
            job = _made(plan, (x, like(x, out)), layout(weight, size), layout(bias, size), threads)
            found = remember(key, plan, job)
        return found[1]

    def room_for_gradient(self, shape: Any, dtype: Any, x: Any) -> Any:  # noqa: ARG002
        return room(shape, x)

    def gradient_job_of(self, plan: Plan, x: Any, weight: Any, dy: Any, dx: Any, dweight: Any, dbias: Any) -> Any:  # noqa: ARG002
        threads = engine().threads.threads_for(x.numel())
        beside = None if weight is None else weight.stride()
        # Of another length than the key of a forward pass, which may hold the same strides.
        key = (id(plan), x.dtype, x.stride(), beside, dy.stride(), dx.stride(), None, threads)
        found = met(key)
        if found is None:
            size = KINDS[x.dtype][1].itemsize
            # Bias is not read: it lies as its gradient is wanted.
            bias = None if plan.bias is None else dense(plan.bias, size)
            found = remember(key, plan, _made(plan, (x, dy, dx), layout(weight, size), bias, threads))
        return found[1]

    def run(self, x: Any, y: Any, its: Run) -> None:
        _, _, job, weight, bias, eps, planes, given = its
        at_x = x.data_ptr()
        at_y = at_x if y is None else y.data_ptr()
        at_weight = job.absent_weight if weight is None else weight.data_ptr()
        at_bias = job.absent_bias if bias is None else bias.data_ptr()
        if at_x < LOW or at_y < LOW or at_weight < LOW or at_bias < LOW:
            check_storage(x, y, weight, bias)
        # What decided on the job has not seen these addresses.
        if (at_x | at_y) % job.size or (at_weight | at_bias) % job.number:
            raise UnalignedError
        if y is None:
            at_y = 0
        engine().run.forward(job, at_x, at_y, at_weight, at_bias, _begin(planes), eps, given=given is not None)

    def run_gradient(
        self, job: Any, x: Any, dy: Any, dx: Any, weight: Any, planes: Any, dweight: Any, dbias: Any
    ) -> None:
        at_weight = job.absent_weight if weight is None else weight.data_ptr()
        at_x, at_dy, at_dx, at_planes = x.data_ptr(), dy.data_ptr(), dx.data_ptr(), _begin(planes)
        if at_x < LOW or at_dy < LOW or at_dx < LOW or at_weight < LOW or at_planes < LOW:
            check_storage(x, dy, dx, weight, planes if isinstance(planes, torch.Tensor) else None)
        if (at_x | at_dy | at_dx) % job.size or (at_weight | at_planes) % job.number:
            raise UnalignedError
        targets = [0 if its is None else its.data_ptr() for its in (dweight, dbias)]
        engine().run.backward(job, at_x, at_dy, at_dx, at_weight, at_planes, *targets)

    def used_now(self, planes: Any) -> None:
        pass


HOST = _HostJobs()


def _begin(planes: Any) -> int:
    """Return the address of what was learned, in a tensor or an array of NumPy; 0 where there is none."""
    if planes is None:
        return 0
    return planes.data_ptr() if isinstance(planes, torch.Tensor) else engine().address(planes)


def _widening(its: Any, lies: Lies | None) -> tuple[Any, int, int, int]:
    """Return room for a parameter in another dtype, how many numbers it has, and the addresses of both."""
    if lies is None:
        return None, 0, 0, 0
    begins = its.data_ptr()
    check_memory((begins,), its)
    if begins % its.element_size():
        return cast(its.detach(), lies[2]), 0, 0, 0
    wide = empty(*lies)
    return wide, its.numel(), begins, wide.data_ptr()


def _lies(x: Any) -> Lies:
    return tuple(x.shape), x.stride(), x.dtype


def _made(plan: Plan, tensors: tuple[Any, ...], weight: Any, bias: Any, threads: int) -> Any:
    x = tensors[0]
    strides = tuple([steps(its, its.element_size()) for its in tensors])
    return engine().jobs.job_for(plan, KINDS[x.dtype][0], tuple(x.shape), strides, weight, bias, threads)
