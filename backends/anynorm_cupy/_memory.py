"""CuPy's arrays in memory: whether kernels may read them, their strides, new arrays. Knows no norm and no kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cupy

from anynorm.backend import Ints
from anynorm_cupy._device import capturing

ndarray: Any = cupy.ndarray


def unreadable(*arrays: cupy.ndarray | None) -> str | None:
    """Return why no kernel may touch the memory of one of the arrays, or None."""
    for array in arrays:
        if array is None:
            continue
        if type(array) is not ndarray:
            return f"{type(array).__name__} is a subclass of ndarray, whose own arithmetic the formula respects"
        bits = array.data.ptr
        for stride in array.strides:
            bits |= stride
        if bits % array.itemsize:
            return "the address or a stride of an array is not a multiple of its element"
    return None


@lru_cache(maxsize=4096)
def dense(shape: Ints, strides: Ints, itemsize: int) -> Ints:
    """Return the strides, in bytes, of a dense array whose axes are in the order of these strides."""
    outermost_first = sorted(range(len(shape)), key=lambda axis: -abs(strides[axis]))
    found, step = [0] * len(shape), itemsize
    for axis in reversed(outermost_first):
        found[axis] = step
        step *= shape[axis]
    return tuple(found)


# The workspaces of captured graphs, which write to them whenever they are launched.
_of_graphs: list[Any] = []


def workspace(floats: int, device: int) -> Any:
    """Return an array of float32 for the launches that follow.

    The caller may free it once they are launched: CuPy reuses memory on the same stream only.
    """
    memory = ndarray((floats,), cupy.float32)
    if capturing(device):
        _of_graphs.append(memory)
    return memory


def empty(shape: Ints, dtype: cupy.dtype, strides: Ints) -> Any:
    """Return a new dense array; strides in bytes."""
    made = ndarray(shape, dtype)
    return made if made.strides == strides else ndarray(shape, dtype, made.data, strides)


def empty_like(x: cupy.ndarray) -> Any:
    """Return a new dense array whose axes have the order of x's in memory."""
    return empty(x.shape, x.dtype, dense(x.shape, x.strides, x.itemsize))


def converted(array: cupy.ndarray, dtype: cupy.dtype) -> Any:
    """Return an array in this dtype, in C order."""
    return cupy.ascontiguousarray(array, dtype=dtype)
