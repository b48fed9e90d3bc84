"""The arrays of the grid, from integer arithmetic alone: the same numbers in every version of NumPy."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

NumPyArray = np.ndarray[Any, Any]
Shape = tuple[int, ...]

DTYPES = ("float16", "bfloat16", "float32", "float64")

_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38, "float64": 1.7976e308}
_SMALLEST_SUBNORMAL = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}

LAYOUTS = (
    "C",
    "F",
    "channels_last",
    "rotated",
    "cropped",
    "cropped_inside",
    "stepped",
    "stepped_inside",
    "reversed",
    "reversed_inside",
    "repeated",
    "repeated_inside",
    "windows",
)
# Layouts that torch has as well: no strides are negative.
FORWARD_LAYOUTS = tuple([name for name in LAYOUTS if not name.startswith("reversed")])
# What NumPy alone has.
ODD_LAYOUTS = ("unaligned", "big_endian", "memmap", "subclass", "read_only")

VALUES = (
    "normal",
    "offset",
    "far",
    "constant",
    "zeros",
    "zeros of both signs",
    "huge",
    "minute",
    "mixed",
    "subnormal",
    "limits",
    "spike",
    "nan",
    "inf",
)


class Plain(np.ndarray[Any, Any]):
    """An array subclass that changes nothing."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return a dtype by name; bfloat16 is that of ml_dtypes."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@lru_cache(maxsize=256)
def normal(shape: Shape, salt: int = 0) -> NumPyArray:
    """Return read-only float64 numbers of mean 0 and deviation 1: sums of four uniform ones, made of hashed indices."""
    index = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(1 + 1_000_003 * salt)
    index *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        index ^= index >> np.uint64(shift)
        index *= np.uint64(factor)
    index ^= index >> np.uint64(31)
    pieces = sum([(index >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)])
    found = (np.asarray(pieces, dtype=np.float64) - 131070.0) * 2.0**-15
    found = found.reshape(shape)
    found.flags.writeable = False
    return found


def numbers(kind: str, shape: Shape, dtype: str, salt: int = 0) -> NumPyArray:
    """Return a new dense array of one kind of numbers."""
    found = np.array(_numbers(kind, normal(shape, salt), dtype))
    largest = _LARGEST[dtype]
    if kind not in ("nan", "inf"):
        found = np.clip(found, -largest, largest)
    with np.errstate(all="ignore"):
        return found.astype(numpy_dtype(dtype))


def _numbers(kind: str, z: NumPyArray, dtype: str) -> NumPyArray:
    half = dtype == "float16"
    if kind in ("nan", "inf", "spike"):
        spike = {"nan": math.nan, "inf": math.inf, "spike": _LARGEST[dtype]}[kind]
        flat = z.reshape(-1).copy()
        flat[flat.size // 3 : flat.size // 3 + 1] = spike
        return flat.reshape(z.shape)
    simple: dict[str, Callable[[], NumPyArray]] = {
        "normal": lambda: z,
        "offset": lambda: z + 30.0,
        "far": lambda: z + (60000.0 if half else 1e6),
        "constant": lambda: z * 0.0 + 12345.678,
        "zeros": lambda: np.abs(z) * 0.0,
        "zeros of both signs": lambda: np.copysign(0.0, z),
        "huge": lambda: z * (1.5e4 if half else 1e30),
        "minute": lambda: z * (1e-5 if half else 1e-30),
        "mixed": lambda: np.where(np.abs(z) < 0.5, z * (1e-4 if half else 1e-30), z * (1e4 if half else 1e30)),
        "subnormal": lambda: _SMALLEST_SUBNORMAL[dtype] * np.rint(3 * z),
        "limits": lambda: _LARGEST[dtype] * np.sign(z),
        "positive": lambda: np.abs(z) + 0.25,
    }
    return simple[kind]()


def placed(values: NumPyArray, layout: str) -> NumPyArray:
    """Return the values in memory of the given layout. Where a layout repeats elements, the first ones are repeated."""
    if layout in ODD_LAYOUTS:
        return _odd(values, layout)
    axes = tuple(range(values.ndim))
    if layout == "F":
        return np.asfortranarray(values)
    if layout in ("channels_last", "rotated"):
        order = (axes[0], *axes[2:], *axes[1:2]) if layout == "channels_last" else (*axes[1:], axes[0])
        back = tuple(np.argsort(order).tolist())
        return np.ascontiguousarray(values.transpose(order)).transpose(back)
    if layout.startswith("repeated"):
        first = (slice(None),) * (values.ndim - 1) + (slice(1),) if layout == "repeated_inside" else (slice(1),)
        return np.broadcast_to(np.ascontiguousarray(values[first]), values.shape)
    if layout == "windows":
        flat = np.ascontiguousarray(values).reshape(-1)
        steps = [values.itemsize] * values.ndim
        return np.ndarray(values.shape, values.dtype, flat, 0, steps)
    return _part(values, layout)


def _part(values: NumPyArray, layout: str) -> NumPyArray:
    """Return the values as a part of a larger array, which is NaN elsewhere."""
    if layout == "C" or not values.ndim:
        return values.copy()
    axis = values.ndim - 1 if layout.endswith("_inside") else 0
    place = {"cropped": slice(1, -2), "stepped": slice(None, None, 2), "reversed": slice(None, None, -1)}
    length = values.shape[axis]
    wider = {"cropped": length + 3, "stepped": 2 * length, "reversed": length}
    kind = layout.removesuffix("_inside")
    shape = (*values.shape[:axis], wider[kind], *values.shape[axis + 1 :])
    whole = np.full(shape, np.nan, values.dtype)
    found: NumPyArray = whole[(*[slice(None)] * axis, place[kind])]
    found[...] = values
    return found


def _odd(values: NumPyArray, layout: str) -> NumPyArray:
    if layout == "big_endian":
        return values.astype(values.dtype.newbyteorder(">"))
    if layout == "unaligned":
        memory = np.zeros(values.nbytes + 1, np.uint8)
        found: NumPyArray = np.ndarray(values.shape, values.dtype, memory, 1)
        found[...] = values
        return found
    if layout == "memmap":
        with tempfile.TemporaryFile() as file:
            mapped: NumPyArray = np.memmap(file, values.dtype, mode="w+", shape=values.shape)
        mapped[...] = values
        return mapped
    found = values.copy()
    if layout == "subclass":
        return found.view(Plain)
    found.flags.writeable = False
    return found
