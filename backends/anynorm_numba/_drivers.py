"""The compiled loops that run tasks by address, for every kernel and dtype: in one thread, and in a team of OpenMP's.

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
# The address of the task, phase, the first task and the one after the last, the addresses and eps.
SERIAL = types.void(*[INTEGER] * (4 + _compile.ADDRESSES), types.float64)
# Addresses of the runtime's three functions and of `member`, and how many members are wanted; the address of the task,
# phase, how many tasks there are, the addresses and eps.
TEAM = types.void(*[INTEGER] * (8 + _compile.ADDRESSES), types.float64)
MEMBER = types.void(types.CPointer(INTEGER))
# The address of the task, how many tasks and slices there are, the addresses, and where dweight and dbias go.
GRADIENTS = types.void(*[INTEGER] * (3 + _compile.ADDRESSES + 2))

# Where the block that a team is told of its work holds what. From ADDRESS on, the addresses.
FN, PHASE, TASKS, EPS, SIZE, RANK, ADDRESS = range(7)
BLOCK = ADDRESS + _compile.ADDRESSES

carray: Any = vars(numba)["carray"]  # which numba's annotations do not know


def _call_task(
    typing: object,  # noqa: ARG001  numba passes it
    fn: object,  # noqa: ARG001  and so on: numba counts the arguments; their values come to `generate`
    phase: object,  # noqa: ARG001
    index: object,  # noqa: ARG001
    geometry: object,  # noqa: ARG001
    a0: object,  # noqa: ARG001
    a1: object,  # noqa: ARG001
    a2: object,  # noqa: ARG001
    a3: object,  # noqa: ARG001
    a4: object,  # noqa: ARG001
    a5: object,  # noqa: ARG001
    a6: object,  # noqa: ARG001
    eps: object,  # noqa: ARG001
) -> Any:
    """Call the task at the address fn, with a null pointer for its storage."""
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


def _complete(typing: object) -> Any:  # noqa: ARG001
    """Let what was written, past the caches too, be in memory for all threads before anything that follows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


complete: Any = intrinsic(_complete)


def serial(
    fn: int,
    phase: int,
    first: int,
    last: int,
    geometry: int,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
    a4: int,
    a5: int,
    a6: int,
    eps: float,
) -> None:
    """Run the tasks from first up to last, one after the other."""
    for index in range(first, last):
        call_task(fn, phase, index, geometry, a0, a1, a2, a3, a4, a5, a6, eps)
    complete()


def gradients(
    fn: int,
    tasks: int,
    slices: int,
    geometry: int,
    x: int,
    dy: int,
    dx: int,
    weight: int,
    saved: int,
    sums: int,
    work: int,
    dweight: int,
    dbias: int,
) -> None:
    """Run the tasks of a backward pass, those that add up what these have of dweight and dbias, and what puts them."""
    for index in range(tasks):
        call_task(fn, _geometry.WHOLE, index, geometry, x, dy, dx, weight, saved, sums, work, 0.0)
    for index in range(slices):
        call_task(fn, _geometry.REDUCE, index, geometry, x, dy, dx, weight, saved, sums, work, 0.0)
    if sums:
        call_task(fn, _geometry.PUT, 0, geometry, dweight, dbias, dx, weight, saved, sums, work, 0.0)
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

    The block is a tuple of integers. It is laid in the caller's frame, which lives until all members are done: numba
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
    """Run the calling thread's share of what a team is told in a block."""
    its = carray(block, BLOCK, np.int64)
    size, rank = call_count(its[SIZE]), call_count(its[RANK])
    first, last = its[TASKS] * rank // size, its[TASKS] * (rank + 1) // size
    fn, phase, eps, at = its[FN], its[PHASE], its.view(np.float64)[EPS], its[ADDRESS:]
    for index in range(first, last):
        call_task(fn, phase, index, at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], eps)
    complete()


def team(
    fork: int,
    size: int,
    rank: int,
    member: int,
    wanted: int,
    fn: int,
    phase: int,
    tasks: int,
    geometry: int,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
    a4: int,
    a5: int,
    a6: int,
    eps: float,
) -> None:
    """Run all tasks in a team of OpenMP's threads."""
    block = fn, phase, tasks, bits_of(eps), size, rank, geometry, a0, a1, a2, a3, a4, a5, a6
    call_fork(fork, member, block, wanted)
