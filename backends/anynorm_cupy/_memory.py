"""CuPy's arrays in memory: whether they may be read there, their layouts, and new ones. Knows no norm and no kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cupy

from anynorm.backend import Ints
from anynorm_cupy._device import capturing

ndarray: Any = cupy.ndarray


def unreadable(*arrays: cupy.ndarray | None) -> str | None:
    """Return why the memory of an array is not to be touched, or None; None stands for no array."""
    for array in arrays:
        if array is None:
            continue
        if type(array) is not ndarray:
            return f"{type(array).__name__} is a subclass of ndarray, whose own arithmetic the formula respects"
        bits = array.data.ptr
        for stride in array.strides:
            bits |= stride
        if bits % array.itemsize:
            return "elements of an array do not lie whole elements apart"
    return None


@lru_cache(maxsize=4096)
def dense(shape: Ints, strides: Ints, itemsize: int) -> Ints:
    """Return the strides in bytes of an array without gaps whose axes lie in the order of these."""
    outermost_first = sorted(range(len(shape)), key=lambda axis: -abs(strides[axis]))
    found, step = [0] * len(shape), itemsize
    for axis in reversed(outermost_first):
        found[axis] = step
        step *= shape[axis]
    return tuple(found)


# What captured graphs write to each time they are launched, which may be at any later time.
_of_graphs: list[Any] = []


def workspace(size: int, device: int) -> Any:
    """Return memory for the launches that follow.

    The caller may let it go when they are on their way: CuPy gives memory to the same stream again, to another not yet.
    """
    memory = cupy.cuda.alloc(size)
    if capturing(device):
        _of_graphs.append(memory)
    return memory


def empty(shape: Ints, dtype: cupy.dtype, strides: Ints) -> Any:
    """Return a new array without gaps; strides in bytes."""
    made = ndarray(shape, dtype)
    return made if made.strides == strides else ndarray(shape, dtype, made.data, strides)


def empty_like(x: cupy.ndarray) -> Any:
    """Return a new array without gaps whose axes lie in memory in the order of x's."""
    return empty(x.shape, x.dtype, dense(x.shape, x.strides, x.itemsize))


def converted(array: cupy.ndarray, dtype: cupy.dtype) -> Any:
    """Return an array in another dtype, or with its gaps closed, in C order."""
    return cupy.ascontiguousarray(array, dtype=dtype)
