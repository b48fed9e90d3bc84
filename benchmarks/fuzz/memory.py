"""Arrays in memory of our own: in any order, reversed, repeated, out of line, and with guards all around.

The bytes that an array leaves free are 0xFF, NaN in every dtype: what reads them shows in the result, and what writes
to them is seen by comparing. Which bytes an array has is found by painting them, not by reasoning.
"""

from __future__ import annotations

import math
import tempfile
from random import Random
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from benchmarks.fuzz.case import Layout, Shape

NumPyArray = np.ndarray[Any, Any]

GUARD = 64  # bytes before and after

ORDERS = ("C", "F", "permuted", "channels_last", "stepped", "cropped", "reversed", "repeated", "windows", "mixed")
# torch has no negative strides.
FORWARD_ORDERS = tuple([order for order in ORDERS if order not in ("reversed", "mixed")])
# In which every element has a place of its own.
DISTINCT_ORDERS = tuple([order for order in ORDERS if order not in ("repeated", "windows")])


class Plain(np.ndarray[Any, Any]):
    """An array subclass that changes nothing."""


class Placed(NamedTuple):
    """An array and all the memory around it."""

    array: NumPyArray
    memory: NumPyArray

    @property
    def offset(self) -> int:
        """Where in the memory the first element lies."""
        return int(address(self.array) - address(self.memory))

    def painted(self) -> NumPyArray:
        """Return which bytes of the memory belong to elements."""
        used = np.zeros(len(self.memory), bool)
        if self.array.size:
            size, offset = self.array.itemsize, self.offset
            shape, strides = (*self.array.shape, size), (*self.array.strides, 1)
            np.ndarray(shape, bool, used, offset, strides)[...] = True
        return used


def address(array: NumPyArray) -> int:
    """Return where the first element lies."""
    found: int = array.__array_interface__["data"][0]
    return found


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return a dtype by name; bfloat16 is that of ml_dtypes."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def native(array: Any) -> NumPyArray:
    """Return the values as a plain dense array of native byte order."""
    array = np.asarray(array)
    return np.array(array, array.dtype.newbyteorder("="), order="C", subok=False)


def place(values: NumPyArray, layout: Layout, random: Random) -> Placed:
    """Return the values in memory of their own."""
    dtype = values.dtype.newbyteorder(">") if layout.odd == "big_endian" else values.dtype
    strides = _strides(layout.order, values.shape, dtype.itemsize, random)
    reach = [(length - 1) * step for length, step in zip(values.shape, strides, strict=True)] if values.size else []
    below = -sum([span for span in reach if span < 0])
    length = below + sum([span for span in reach if span > 0]) + (dtype.itemsize if values.size else 0)
    memory = _memory(length + 2 * GUARD + 16, layout.odd == "memmap")
    offset = GUARD + below + (-address(memory) - GUARD - below) % 16 + layout.shift
    array: NumPyArray = np.ndarray(values.shape, dtype, memory, offset, strides)
    array[...] = values
    if layout.odd == "memmap":
        first = memory[offset : offset + dtype.itemsize].view(dtype) if values.size else memory[:0].view(dtype)
        array = np.lib.stride_tricks.as_strided(first, values.shape, strides, subok=True)
    elif layout.odd == "subclass":
        array = array.view(Plain)
    elif layout.odd == "read_only":
        array.flags.writeable = False
    return Placed(array, memory)


def _memory(length: int, in_file: bool) -> NumPyArray:
    if not in_file:
        return np.full(length, 0xFF, np.uint8)
    with tempfile.TemporaryFile() as file:
        memory: NumPyArray = np.memmap(file, np.uint8, mode="w+", shape=(length,))
    memory[:] = 0xFF
    return memory


def _strides(order: str, shape: Shape, size: int, random: Random) -> list[int]:
    """Return steps in bytes."""
    axes = list(range(len(shape)))
    inner_first = axes[::-1]
    if order == "F":
        inner_first = axes
    elif order == "channels_last" and len(shape) > 2:
        inner_first = [1, *[axis for axis in inner_first if axis != 1]]
    elif order in ("permuted", "mixed") or (
        order in ("cropped", "reversed", "repeated", "windows") and random.random() < 0.3
    ):
        random.shuffle(inner_first)
    few = math.prod(shape) < 200_000
    strides, step = [0] * len(shape), size
    for axis in inner_first:
        if order in ("stepped", "mixed") and few and random.random() < 0.5:
            step *= random.choice((2, 3))
        strides[axis] = step
        step *= max(shape[axis], 1)
        if order in ("cropped", "mixed") and few:
            step += strides[axis] * random.randrange(3)
    if order in ("reversed", "mixed"):
        strides = [-stride if random.random() < 0.5 else stride for stride in strides]
    elif order == "repeated":
        strides = [0 if random.random() < 0.5 else stride for stride in strides]
    elif order == "windows" and len(shape) > 1:
        outer, inner = random.sample(axes, 2)
        strides[outer] = strides[inner]
    return strides
