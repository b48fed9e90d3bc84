"""From tensors to an engine's jobs and addresses, and new tensors beside them. Knows nothing of autograd.

What is the same wherever tensors lie is here; `_host` and `_device` have what is not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad as _forward_ad

from anynorm._plan import Plan
from anynorm._view import Ints, Layout
from anynorm_torch._memory import LOW, UNALIGNED, check_storage, readable_in

forward_ad: Any = _forward_ad  # not annotated by torch

# By dtype: its name and what is computed in.
KINDS = {
    torch.float16: ("float16", torch.float32),
    torch.bfloat16: ("bfloat16", torch.float32),
    torch.float32: ("float32", torch.float32),
    torch.float64: ("float64", torch.float64),
}

# Jobs met before, each with its plan, by what tells layouts apart in torch's own terms. A plan is known by its address,
# because its hash takes longer than all the rest; that the plan is kept makes this safe.
_met: dict[tuple[Any, ...], tuple[Plan, Any]] = {}
MANY = 4096


# How a tensor lies: its lengths, its strides, and its dtype.
Lies = tuple[Ints, Ints, torch.dtype]

# Numbers of a parameter, at most, that are cast by `widened`, and kept cast for the backward pass.
FEW = 2**14


class Jobs(ABC):
    """Hands tensors that lie in one memory to its engine."""

    memory: str  # as torch names it
    package: str  # the engine
    pulls_given: bool  # whether the engine has the gradient where statistics are given

    @abstractmethod
    def missing(self) -> str | None:
        """Return why there is no engine in this environment, or None."""

    @abstractmethod
    def unfit(self, x: Any) -> str | None:
        """Return why the engine cannot run where x lies, or None."""

    @abstractmethod
    def setting(self, elements: int) -> Hashable:
        """Return on what a job depends beside the kind of a call."""

    @abstractmethod
    def lies_like(self, x: Any) -> Lies | None:
        """Return how a new tensor lies that lies as x does, or None where `empty_like` makes it better than `empty`."""

    @abstractmethod
    def pull_of(self, plan: Plan, x: Any, dy: Any, weight: Any, laid: Any, planes: Any, bias: Any) -> Pull | None:
        """Return what is decided for a backward pass on tensors of this kind, or None where it is to be looked at.

        `laid` is weight as the forward pass read it, where that is another tensor; of bias shape and dtype are given.
        """

    @abstractmethod
    def may_read(self, *tensors: Any) -> bool:
        """Say whether those that are not None may be read together, amid a backward pass."""

    @abstractmethod
    def parameter(self, its: Any, x: Any) -> Any:
        """Return weight or bias, if there is one, as the engine reads it."""

    @abstractmethod
    def widens(self, x: Any, weight: Any, bias: Any) -> tuple[Lies | None, Lies | None] | None:
        """Return how weight and bias are to lie in the compute dtype, or None where `widened` cannot cast them."""

    def widened(self, weight: Any, bias: Any, lies: tuple[Lies | None, Lies | None]) -> tuple[Any, Any]:
        """Return weight and bias in the compute dtype, laid as `widens` said: two casts of torch's take 5 µs more."""
        raise NotImplementedError

    @abstractmethod
    def empty_like(self, x: Any) -> Any:
        """Return a new tensor that lies as x does, its axes in the same order."""

    @abstractmethod
    def planes_for(self, job: Any, x: Any, *, within: bool = False) -> Any:
        """Return room for what is learned of the sets of x; where it stays `within` a call, any that is faster made."""

    @abstractmethod
    def keeps(self, job: Any) -> bool:
        """Say whether a job needs room for what is learned, wanted or not."""

    @abstractmethod
    def given(self, job: Any, stats: Any, eps: float, x: Any) -> tuple[Any, Any]:
        """Return where given statistics are kept for the gradient, and themselves, as `run` wants them; or raise."""

    @abstractmethod
    def job_of(self, plan: Plan, x: Any, weight: Any, bias: Any, out: Any) -> Any:
        """Return the job for x and its y, or half a sentence that says why there is none."""

    @abstractmethod
    def room_for_gradient(self, shape: Any, dtype: Any, x: Any) -> Any:
        """Return room for the gradient of a weight or bias, in its dtype where the engine can write that."""

    @abstractmethod
    def gradient_job_of(self, plan: Plan, x: Any, weight: Any, dy: Any, dx: Any, dweight: Any, dbias: Any) -> Any:
        """Return the job for x, dy, dx, and gradients of weight and bias, if wanted, or half a sentence on why not."""

    @abstractmethod
    def run(self, x: Any, y: Any, its: Run) -> None:
        """Write y, unless it is None, and what is learned; or raise a RefusedError or an UnalignedError."""

    @abstractmethod
    def run_gradient(
        self, job: Any, x: Any, dy: Any, dx: Any, weight: Any, planes: Any, dweight: Any, dbias: Any
    ) -> None:
        """Write dx, and the gradients of weight and bias where there are tensors for them; or raise as `run` does."""

    @abstractmethod
    def used_now(self, planes: Any) -> None:
        """Note that what a forward pass learned is read where the caller is now."""


class Pull(NamedTuple):
    """What is decided for backward passes of a kind: the job, and how new dx, dweight and dbias lie."""

    job: Any
    dx: Lies | None  # None where `empty_like` makes it
    dweight: Lies | None  # None where there is no such parameter
    dbias: Lies | None


# A forward pass that is decided, but for x and y: who runs it, its plan, its job, weight and bias as the engine reads
# them, eps, where what is learned goes, and what is given, if anything. As a tuple it is made in no time.
Run = tuple[Jobs, Plan, Any, Any, Any, float, Any, Any]


# Tensors in another dtype. `Tensor.to` takes 2.4 µs, these 1.4.
_CASTS = {
    torch.float16: torch.Tensor.half,
    torch.bfloat16: torch.Tensor.bfloat16,
    torch.float32: torch.Tensor.float,
    torch.float64: torch.Tensor.double,
}


def cast(its: Any, dtype: torch.dtype) -> Any:
    """Return a tensor in another floating dtype, or itself if it has that."""
    return _CASTS[dtype](its)


def may_be_read(memory: str, *tensors: Any) -> bool:
    """Say whether those that are not None may be read in a memory, amid a backward pass."""
    if forward_ad._current_level >= 0:
        return False
    for its in tensors:  # noqa: SIM110  a generator takes 1 µs
        if its is not None and readable_in(its) != memory:
            return False
    return True


class UnalignedError(RuntimeError):
    """Memory that kernels cannot take, met when a call was already decided. It says so in half a sentence."""

    def __init__(self) -> None:
        super().__init__(UNALIGNED)


def check_memory(begins: Iterable[int], *tensors: Any) -> None:
    """Raise a ValueError if a tensor that is to be read or written, None is none, has no memory at its address."""
    if min(begins) < LOW:
        check_storage(*tensors)


def met(key: tuple[Any, ...]) -> tuple[Plan, Any] | None:
    """Return the plan and the job that were remembered for a key."""
    return _met.get(key)


def remember(key: tuple[Any, ...], plan: Plan, job: Any) -> tuple[Plan, Any]:
    """Keep the job for a key that begins with the address of a plan."""
    if len(_met) >= MANY:
        _met.clear()
    _met[key] = plan, job
    return plan, job


def forget() -> None:
    """Have every job made anew when it is next asked for, because a device has refused to launch one.

    Its launcher remembers which kernel that was, so that there is no job with it again.
    """
    _met.clear()


def like(x: Any, out: Any) -> Any:
    """Return a tensor that lies as y will."""
    return torch.empty_like(x, device="meta") if out is None else out


def layout(its: Any, unit: int = 1) -> Layout | None:
    """Return a tensor's shape and its strides, in units of which an element has so many."""
    return None if its is None else (tuple(its.shape), steps(its, unit))


def steps(its: Any, unit: int = 1) -> Ints:
    """Return a tensor's strides, in units of which an element has so many."""
    return tuple([step * unit for step in its.stride()])


def dense(shape: Any, unit: int = 1) -> Layout:
    """Return the layout of an array without gaps."""
    strides = []
    for length in reversed(shape):
        strides.append(unit)
        unit *= length
    return tuple(shape), tuple(reversed(strides))


def room(shape: Any, x: Any) -> Any:
    """Return a new tensor in what x is computed in."""
    compute = KINDS[x.dtype][1]
    # Its lengths one by one: a shape takes 2 µs to pass, and a dtype half of one.
    return x.new_empty(*shape) if compute is x.dtype else x.new_empty(*shape, dtype=compute)


def _empty(lengths: Ints, strides: Ints, dtype: torch.dtype) -> Any:
    return torch.empty_strided(lengths, strides, dtype=dtype, device="cpu")


# Returns a new tensor on the host. As code does that torch's own compiler makes: half of the 0.9 µs of `empty_like`.
empty: Callable[[Ints, Ints, torch.dtype], Any] = getattr(
    getattr(getattr(torch._C, "_dynamo", None), "guards", None), "_empty_strided_cpu", _empty
)
