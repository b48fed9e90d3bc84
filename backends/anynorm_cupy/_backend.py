"""The backend: the signature of a call, and the executable that serves it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import cupy

from anynorm.backend import Backend, Declined, Executable, Memory, Operands, Plan, may_be_written, reach, refuses_out
from anynorm_cuda.engine import WIDEST
from anynorm_cupy._launch import Gradient, Launch
from anynorm_cupy._memory import ndarray
from anynorm_cupy._ops import OPS


class CuPyBackend(Backend):
    """Serves exactly ndarray by kernels. The formula serves subclasses, whose own arithmetic it calls."""

    def __init__(self) -> None:
        super().__init__(OPS)

    def signature(
        self,
        x: cupy.ndarray,
        weight: cupy.ndarray | None,
        bias: cupy.ndarray | None,
        mean: cupy.ndarray | None,
        var: cupy.ndarray | None,
        out: cupy.ndarray,
        dy: cupy.ndarray | None = None,
    ) -> Hashable | None:
        # The signature of the forward pass holds all that decides about a backward pass but dy, `out` and x's shape,
        # which can have been changed in place since, and which dx has.
        found: list[Hashable] = [x.shape]
        for array in (x, weight, bias, mean, var, out) if dy is None else (dy, out):
            if array is None:
                found.append(None)
            elif type(array) is ndarray:
                memory = array.data
                found.append((array.dtype, array.shape, array.strides, memory.ptr % WIDEST, memory.device_id))
            else:
                return None
        if out is not None:
            itself, beside = (x, None) if dy is None else (None, x)
            if not may_be_written(out, itself, (beside, weight, bias, mean, var, dy), _span, _memory):
                return None
        return tuple(found)

    def compile(self, plan: Plan, operands: Operands) -> Executable[Any] | Declined:
        compiled = Launch.compiled if operands.dy is None else Gradient.compiled
        found: Executable[Any] | str = self.ops.on_device(operands.x, compiled, plan, operands)
        return Declined(found) if isinstance(found, str) else found

    def refuses_out(self, out: cupy.ndarray, x: cupy.ndarray, others: dict[str, Any]) -> str | None:
        return refuses_out(out, x, others, _memory)


def _span(array: cupy.ndarray) -> tuple[int, int]:
    """Return the addresses of an array's first byte and of the byte after its last."""
    first, last = reach(array.shape, array.strides)
    begin = array.data.ptr
    return begin + first, begin + last + array.itemsize


def _memory(array: cupy.ndarray) -> Memory:
    return Memory(array.data.ptr, array.shape, array.strides, array.itemsize)
