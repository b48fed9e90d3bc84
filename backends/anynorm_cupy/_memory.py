"""How CuPy's arrays lie in memory, new ones like them, and which device they are on. No norm and no kernel is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cupy

from anynorm import _memory
from anynorm._view import Ints
from anynorm_cupy._launch import capturing, current_device

ndarray: Any = cupy.ndarray


def there(x: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function while x's device is the current one: CuPy allocates and computes on no other."""
    device = x.data.device_id
    if device == current_device():
        return function(*arguments)
    with cupy.cuda.Device(device):
        return function(*arguments)


def unreadable(*arrays: Any) -> str | None:
    """Return why the memory of an array is not to be touched, or None; None stands for no array."""
    for its in arrays:
        if its is None:
            continue
        if type(its) is not ndarray:
            return f"{type(its).__name__} is a subclass of ndarray, whose own arithmetic the formula respects"
        if (its.data.ptr | sum_of_bits(its.strides)) % its.itemsize:
            return "elements of an array do not lie whole elements apart"
    return None


def sum_of_bits(numbers: Ints) -> int:
    """Return a number that a power of two divides if it divides all of these."""
    bits = 0
    for number in numbers:
        bits |= number
    return bits


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


def room(size: int, device: int) -> Any:
    """Return memory to work in, for the launches that follow.

    The caller may let it go when they are on their way: CuPy gives memory to the same stream again, to another not yet.
    """
    memory = cupy.cuda.alloc(size)
    if capturing(device):
        _of_graphs.append(memory)
    return memory


def empty(shape: Ints, dtype: Any, strides: Ints) -> Any:
    """Return a new array without gaps; strides in bytes."""
    made = ndarray(shape, dtype)
    return made if made.strides == strides else ndarray(shape, dtype, made.data, strides)


def empty_like(x: Any) -> Any:
    """Return a new array whose axes lie in memory in the order of x's."""
    return empty(x.shape, x.dtype, dense(x.shape, x.strides, x.itemsize))


def converted(its: Any, dtype: Any) -> Any:
    """Return an array of another dtype, or with its gaps closed, in C order."""
    return cupy.ascontiguousarray(its, dtype=dtype)


def copied(its: Any, like: Any) -> Any:
    """Return a copy that lies in memory as another array of its dtype does, which has no gaps."""
    made = empty(like.shape, its.dtype, like.strides)
    cupy.copyto(made, its)
    return made


def laid_out_like(y: Any, x: Any) -> Any:
    """Return y with its axes in memory as x's are: CuPy's arithmetic leaves them in C order."""
    like = empty_like(x)
    if like.strides == y.strides:
        return y
    cupy.copyto(like, y)
    return like


def refuses_out(out: Any, x: Any, others: dict[str, Any]) -> str | None:
    """Return why `out` may not be written, or None."""
    itself = None if x is None else _where(x)
    return _memory.refuses_out(_where(out), itself, {name: _where(its) for name, its in others.items()})


def _where(a: Any) -> _memory.Memory:
    return _memory.Memory(a.data.ptr, a.shape, a.strides, a.itemsize)
