"""What is known of NumPy's arrays: their types, dtypes and layouts. Computes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from anynorm.backend import Ints, Layout

Array = np.ndarray[Any, np.dtype[Any]]
Maybe = Array | None  # a weight, bias, statistic, out or dy
Given = tuple[Array, Array] | None  # mean and var

# Types whose memory is their value and whose arithmetic is NumPy's own.
PLAIN = (np.ndarray, np.memmap)

_COMPUTE = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}

# By dtype, of which only those in the machine's own byte order: its name and the compute dtype. bfloat16, another
# package's dtype, is met by name.
_dtypes = {np.dtype(name): (name, np.dtype(_COMPUTE[name])) for name in ("float16", "float32", "float64")}


def dtypes_of(x: Array) -> tuple[str, Any]:
    """Return the name of x's dtype, "" for another byte order, and the compute dtype."""
    try:
        return _dtypes[x.dtype]
    except KeyError:
        name = x.dtype.name if x.dtype.isnative else ""
        found = _dtypes[x.dtype] = (name, np.dtype(_COMPUTE[x.dtype.name]))
        return found


def as_parameter(array: Array | None, compute: np.dtype[Any]) -> Any:
    """Return weight or bias in the compute dtype, as the engine reads it: some axis without gaps, no step back."""
    if array is None:
        return None
    flags = array.flags
    if array.dtype is not compute or not flags.aligned:
        with np.errstate(all="ignore"):
            array = array.astype(compute)
    return array if flags.c_contiguous or _dense(array.shape, array.strides, array.itemsize) else array.copy()


def _dense(shape: Ints, strides: Ints, itemsize: int) -> bool:
    return min((step for step, length in zip(strides, shape, strict=True) if length > 1), default=itemsize) == itemsize


def layout_of(array: Array | None) -> Layout | None:
    """Return a parameter's shape and strides."""
    return None if array is None else (array.shape, array.strides)
