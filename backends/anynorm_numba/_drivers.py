"""The compiled loops that run tasks by address, for every kernel and dtype: in one thread, and in OpenMP's threads.

Imports numba: to be imported only once something is to be run.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from anynorm_numba import _compile, _geometry

INTEGER = types.int64
# The address of the kernel, phase, the first task and the one after the last, the kernel's arguments and eps.
SERIAL = types.void(*[INTEGER] * (4 + _compile.ARGUMENTS), types.float64)
# Addresses of the runtime's three functions and of `member`, how many threads are wanted, the address of the kernel,
# phase, how many tasks there are, the kernel's arguments and eps.
TEAM = types.void(*[INTEGER] * (8 + _compile.ARGUMENTS), types.float64)
MEMBER = types.void(types.CPointer(INTEGER))
# The address of the kernel, how many tasks there are of three phases, and the kernel's arguments.
GRADIENTS = types.void(*[INTEGER] * (4 + _compile.ARGUMENTS))

# Positions in the block of integers that describes its work to a team of threads. From ARGUMENT on, the arguments.
KERNEL, PHASE, TASKS, EPS, SIZE, RANK, ARGUMENT = range(7)
BLOCK = ARGUMENT + _compile.ARGUMENTS

carray: Any = vars(numba)["carray"]  # which numba's annotations do not know


def _call_task(
    typing: object,  # noqa: ARG001  numba passes it
    kernel: object,  # noqa: ARG001  and so on: numba counts the arguments; their values come to `generate`
    phase: object,  # noqa: ARG001
    index: object,  # noqa: ARG001
    a0: object,  # noqa: ARG001
    a1: object,  # noqa: ARG001
    a2: object,  # noqa: ARG001
    a3: object,  # noqa: ARG001
    a4: object,  # noqa: ARG001
    a5: object,  # noqa: ARG001
    a6: object,  # noqa: ARG001
    a7: object,  # noqa: ARG001
    eps: object,  # noqa: ARG001
) -> Any:
    """Call the kernel at an address, with a null pointer for its dtype."""
    task = _compile.task_signature()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        pointer = ir.IntType(8).as_pointer()
        operands = [context.get_value_type(operand) for operand in task.args]
        function = ir.FunctionType(ir.VoidType(), [pointer, *operands])
        address, *rest = arguments
        builder.call(builder.inttoptr(address, function.as_pointer()), [pointer(None), *rest])
        return context.get_dummy_value()

    return types.void(INTEGER, *task.args), generate


call_task: Any = intrinsic(_call_task)


def _complete(typing: Any) -> Any:  # noqa: ARG001
    """Make all threads see what was written, past the caches too, before anything that follows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


complete: Any = intrinsic(_complete)


def serial(
    kernel: int,
    phase: int,
    first: int,
    last: int,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
    a4: int,
    a5: int,
    a6: int,
    a7: int,
    eps: float,
) -> None:
    """Run the tasks from first up to last, one after the other."""
    for index in range(first, last):
        call_task(kernel, phase, index, a0, a1, a2, a3, a4, a5, a6, a7, eps)
    complete()


def gradients(
    kernel: int,
    whole: int,
    reduce: int,
    put: int,
    geometry: int,
    x: int,
    dy: int,
    dx: int,
    weight: int,
    residuals: int,
    sums: int,
    workspace: int,
) -> None:
    """Run the tasks of a backward pass in one go: so many of WHOLE, then of REDUCE, then of PUT."""
    for index in range(whole):
        call_task(kernel, _geometry.WHOLE, index, geometry, x, dy, dx, weight, residuals, sums, workspace, 0.0)
    for index in range(reduce):
        call_task(kernel, _geometry.REDUCE, index, geometry, x, dy, dx, weight, residuals, sums, workspace, 0.0)
    for index in range(put):
        call_task(kernel, _geometry.PUT, index, geometry, x, dy, dx, weight, residuals, sums, workspace, 0.0)
    complete()


def _call_count(typing: object, address: object) -> Any:  # noqa: ARG001
    """Call the C function at an address, `int f(void)`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        function = ir.FunctionType(ir.IntType(32), [])
        return builder.sext(builder.call(builder.inttoptr(arguments[0], function.as_pointer()), []), ir.IntType(64))

    return INTEGER(INTEGER), generate


call_count: Any = intrinsic(_call_count)


def _bits_of(typing: object, value: object) -> Any:  # noqa: ARG001
    """Return the bits of a float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.bitcast(arguments[0], ir.IntType(64))

    return INTEGER(types.float64), generate


bits_of: Any = intrinsic(_bits_of)


def _call_fork(typing: object, fork: object, member: object, block: object, team: object) -> Any:  # noqa: ARG001
    """Call the C function at an address, `void f(void (*)(void *), void *, unsigned, unsigned)`, with a block.

    The block is a tuple of integers. It is stored in the caller's frame, which lives until all threads are done: numba
    would free an array after its last use, which is to ask for its address.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        size, count = ir.IntType(64), ir.IntType(32)  # a pointer is passed as an integer is
        function = ir.FunctionType(ir.VoidType(), [size, size, count, count])
        address, member, block, team = arguments
        place = cgutils.alloca_once_value(builder, block)
        builder.call(
            builder.inttoptr(address, function.as_pointer()),
            [member, builder.ptrtoint(place, size), builder.trunc(team, count), count(0)],
        )
        return context.get_dummy_value()

    return types.void(INTEGER, INTEGER, types.UniTuple(INTEGER, BLOCK), INTEGER), generate


call_fork: Any = intrinsic(_call_fork)


def member(block: Any) -> None:
    """Run the calling thread's share of the work that a block describes."""
    work = carray(block, BLOCK, np.int64)
    size, rank = call_count(work[SIZE]), call_count(work[RANK])
    first, last = work[TASKS] * rank // size, work[TASKS] * (rank + 1) // size
    kernel, phase, eps, a = work[KERNEL], work[PHASE], work.view(np.float64)[EPS], work[ARGUMENT:]
    for index in range(first, last):
        call_task(kernel, phase, index, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], eps)
    complete()


def team(
    fork: int,
    size: int,
    rank: int,
    member: int,
    wanted: int,
    kernel: int,
    phase: int,
    tasks: int,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
    a4: int,
    a5: int,
    a6: int,
    a7: int,
    eps: float,
) -> None:
    """Run all tasks in a team of OpenMP's threads."""
    block = kernel, phase, tasks, bits_of(eps), size, rank, a0, a1, a2, a3, a4, a5, a6, a7
    call_fork(fork, member, block, wanted)
