"""Tensors in the memory of CUDA devices, handed to the CUDA engine, on torch's current stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import anynorm_cuda
from anynorm._plan import Plan
from anynorm_cuda import engine
from anynorm_torch._jobs import (
    KINDS,
    Jobs,
    Run,
    UnalignedError,
    check_memory,
    dense,
    layout,
    like,
    may_be_read,
    met,
    remember,
    steps,
)
from anynorm_torch._memory import LOW, UNALIGNED, WIDEST, kind_of, unaligned

# What weight and bias are read in as they are.
OWN = (torch.float32, torch.float16, torch.bfloat16)


def facts(device: int) -> Any:
    """Return what the engine asks of a device."""
    return engine().driver.facts(device)


def launcher(device: int) -> Any:
    """Return what runs kernels on a device's streams, also while that is captured in a CUDA graph.

    A kernel that a capture needs first is compiled and loaded amid it, with the driver's consent; all memory comes
    from torch's allocator, which knows of captures.
    """
    return engine().driver.launcher(device)


def _on_current_stream(device: int) -> Callable[..., None]:
    """Return what runs launches on the stream of a device that is current in this thread."""
    launch: Callable[..., None] = launcher(device).on(_stream(device))
    return launch


def _stream_asked(device: int) -> int:
    stream: int = torch.cuda.current_stream(device).cuda_stream
    return stream


# What torch's own compiler calls: a twentieth of the time.
_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_asked)


class _DeviceJobs(Jobs):
    """Hands tensors on CUDA devices to kernels for them."""

    memory = "cuda"
    package = "anynorm_cuda"
    pulls_given = False

    def missing(self) -> str | None:
        if torch.version.hip is not None:
            return "the CUDA engine's kernels do not run on ROCm"
        return anynorm_cuda.missing()

    def unfit(self, x: Any) -> str | None:
        missing = self.missing()
        if missing is not None:
            return missing
        reason: str | None = engine().launcher.too_old(facts(x.get_device()))
        return reason

    def setting(self, elements: int) -> int:  # noqa: ARG002  what decides is in the kind of a call
        return 0

    def lies_like(self, x: Any) -> None:  # noqa: ARG002
        return None

    def pull_of(self, plan: Plan, x: Any, dy: Any, weight: Any, laid: Any, planes: Any, bias: Any) -> None:  # noqa: ARG002
        return None

    def may_read(self, *tensors: Any) -> bool:
        device = tensors[0].get_device()
        for its in tensors:
            if its is not None and its.get_device() != device:
                return False
        return may_be_read("cuda", *tensors)

    def parameter(self, its: Any, x: Any) -> Any:  # noqa: ARG002  its own dtype is as good as x's
        """Return weight or bias without gaps."""
        if its is None:
            return None
        if its.dtype not in OWN:
            its = its.detach().to(torch.float32)
        return its.contiguous()

    def widens(self, x: Any, weight: Any, bias: Any) -> None:  # noqa: ARG002  kernels read each in its own dtype
        return None

    def empty_like(self, x: Any) -> Any:
        return torch.empty_like(x)

    def planes_for(self, job: Any, x: Any, *, within: bool = False) -> Any:  # noqa: ARG002
        return _floats(x, 5, job.sets)

    def keeps(self, job: Any) -> bool:
        keeps: bool = job.keeps
        return keeps

    def given(self, job: Any, stats: Any, eps: float, x: Any) -> tuple[Any, Any]:  # noqa: ARG002
        # Only batch norm has them, one for each channel: an order of sets other than theirs there is not.
        flat = [its.detach().reshape(-1).to(torch.float32).contiguous() for its in stats]
        if unaligned(*flat):
            raise UnalignedError
        return self.planes_for(job, x), flat

    def job_of(self, plan: Plan, x: Any, weight: Any, bias: Any, out: Any) -> Any:
        key = (id(plan), *[None if its is None else kind_of(its) for its in (x, weight, bias, out)])
        found = met(key)
        if found is None:
            begins = x.data_ptr() if out is None else x.data_ptr() | out.data_ptr()
            job = _made(plan, "forward_job", (x, like(x, out)), begins, (weight, bias), layout(bias))
            found = remember(key, plan, job)
        return found[1]

    def room_for_gradient(self, shape: Any, dtype: Any, x: Any) -> Any:
        return x.new_empty(shape, dtype=dtype if dtype in OWN else torch.float32)

    def gradient_job_of(self, plan: Plan, x: Any, weight: Any, dy: Any, dx: Any, dweight: Any, dbias: Any) -> Any:
        begins = x.data_ptr() | dy.data_ptr() | dx.data_ptr()
        beside = None if weight is None else (weight.dtype, weight.data_ptr() % WIDEST)
        wanted = [torch.float32 if its is None else its.dtype for its in (dweight, dbias)]
        strides = x.stride(), dy.stride(), dx.stride()
        key = (id(plan), x.dtype, *strides, x.get_device(), begins % WIDEST, beside, *wanted)
        found = met(key)
        if found is None:
            # Bias is not read: it lies as its gradient is wanted.
            bias = None if plan.bias is None else dense(plan.bias)
            job = _made(plan, "gradient_job", (x, dy, dx), begins, (weight, None), bias, wanted)
            found = remember(key, plan, job)
        return found[1]

    def run(self, x: Any, y: Any, its: Run) -> None:
        _, _, job, weight, bias, eps, planes, given = its
        begins = [LOW if its is None else its.data_ptr() for its in (x, y, weight, bias, *(given or ()))]
        check_memory(begins, x, y, weight, bias, *(given or ()))
        work = _floats(x, job.partial) if job.partial else None
        engine().run.forward(
            job,
            _on_current_stream(x.get_device()),
            x=begins[0],
            y=0 if y is None else begins[1],
            weight=0 if weight is None else begins[2],
            bias=0 if bias is None else begins[3],
            saved=0 if planes is None else planes.data_ptr(),
            work=0 if work is None else work.data_ptr(),
            eps=eps,
            given=tuple(begins[4:]) or (0, 0),
        )

    def run_gradient(
        self, job: Any, x: Any, dy: Any, dx: Any, weight: Any, planes: Any, dweight: Any, dbias: Any
    ) -> None:
        begins = [LOW if its is None else its.data_ptr() for its in (x, dy, dx, weight, planes)]
        check_memory(begins, x, dy, dx, weight, planes)
        if unaligned(planes):
            raise UnalignedError
        work = _floats(x, job.work // 4)
        engine().run.backward(
            job,
            _on_current_stream(x.get_device()),
            x=begins[0],
            dy=begins[1],
            dx=begins[2],
            weight=0 if weight is None else begins[3],
            saved=begins[4],
            work=work.data_ptr(),
            dweight=0 if dweight is None else dweight.data_ptr(),
            dbias=0 if dbias is None else dbias.data_ptr(),
        )

    def used_now(self, planes: Any) -> None:
        """Let the allocator know of the current stream, which may be another than that of the forward pass."""
        planes.record_stream(torch.cuda.current_stream(planes.device))


DEVICE = _DeviceJobs()


def _floats(x: Any, *shape: int) -> Any:
    """Return new float32 on x's device."""
    return x.new_empty(*shape) if x.dtype is torch.float32 else x.new_empty(*shape, dtype=torch.float32)


def _made(
    plan: Plan,
    which: str,
    tensors: tuple[Any, ...],
    begins: int,
    parameters: tuple[Any, Any],
    bias: Any,
    gradients: Sequence[Any] = (torch.float32, torch.float32),
) -> Any:
    """Return a job whose kernels are loaded, or half a sentence that says why there is none.

    `begins` is divided by all powers of two that divide the address of each tensor. `gradients`: the dtypes of those of
    weight and bias.
    """
    x, own = tensors[0], [None if its is None else KINDS[its.dtype][0] for its in parameters]
    shape, strides, weight = tuple(x.shape), tuple([steps(its) for its in tensors]), layout(parameters[0])
    if begins % x.element_size() or unaligned(*parameters):
        return UNALIGNED
    bits = [0 if its is None else its.data_ptr() for its in parameters]
    kinds = engine().jobs.Kinds(KINDS[x.dtype][0], *own, begins % WIDEST, (bits[0] | bits[1]) % WIDEST)
    kinds = kinds._replace(dweight=KINDS[gradients[0]][0], dbias=KINDS[gradients[1]][0])
    device = x.get_device()
    job = getattr(engine().jobs, which)(plan, kinds, shape, strides, weight, bias, facts(device))
    return job if isinstance(job, str) else launcher(device).why_not(job.launches) or job
