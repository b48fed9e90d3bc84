"""The two compiled loops that run tasks by address, for every kernel and dtype: in one thread, and in numba's threads.

Imports numba: to be imported only once something is to be run.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from anynorm_numba import _compile

INTEGER = types.int64
# The address of the task, phase, the first task and the one after the last, the addresses and eps.
SERIAL = types.void(*[INTEGER] * (4 + _compile.ADDRESSES), types.float64)
# The address of the task, phase, how many tasks there are, the addresses and eps.
PARALLEL = types.void(*[INTEGER] * (3 + _compile.ADDRESSES), types.float64)


def _call_task(
    typing: Any,  # noqa: ARG001  numba passes it
    fn: Any,  # noqa: ARG001  and so on: numba counts the arguments; their values come to `generate`
    phase: Any,  # noqa: ARG001
    index: Any,  # noqa: ARG001
    geometry: Any,  # noqa: ARG001
    a0: Any,  # noqa: ARG001
    a1: Any,  # noqa: ARG001
    a2: Any,  # noqa: ARG001
    a3: Any,  # noqa: ARG001
    a4: Any,  # noqa: ARG001
    a5: Any,  # noqa: ARG001
    a6: Any,  # noqa: ARG001
    eps: Any,  # noqa: ARG001
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


def parallel(
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
    """Run all tasks in the threads of numba's threading layer."""
    for index in prange(tasks):
        call_task(fn, phase, index, geometry, a0, a1, a2, a3, a4, a5, a6, eps)
