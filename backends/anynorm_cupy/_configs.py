"""From CuPy's arrays to what the engine reads: dtypes, strides, alignment. Runs nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy

from anynorm.backend import Ints, Layout, Plan
from anynorm_cuda.engine import Configs, Dtypes
from anynorm_cupy._device import facts, launcher
from anynorm_cupy._memory import converted, dense

FLOAT32: Any = cupy.dtype(cupy.float32)
FLOAT64: Any = cupy.dtype(cupy.float64)


class Parameter(NamedTuple):
    """Weight or bias as the engine reads it: at most float32, an axis with stride 1, no negative stride."""

    dtype: Any
    shape: Ints
    strides: Ints  # in bytes
    copies: bool  # whether each call copies it, because its dtype or strides do not fit

    @classmethod
    def of(cls, array: cupy.ndarray | None, *, in_order: bool = False) -> Parameter | None:
        """Return how the engine reads an array; with `in_order` it reads only C order."""
        if array is None:
            return None
        strides = [stride for stride, length in zip(array.strides, array.shape, strict=True) if length > 1]
        fits = array.flags.c_contiguous or (min(strides) == array.itemsize and not in_order)
        if fits and array.dtype != FLOAT64:
            return cls(array.dtype, array.shape, array.strides, copies=False)
        return cls.in_c_order(array.shape, FLOAT32 if array.dtype == FLOAT64 else array.dtype)

    @classmethod
    def in_c_order(cls, shape: Ints, dtype: cupy.dtype = FLOAT32) -> Parameter:
        """Return a copy in C order."""
        return cls(dtype, shape, c_strides(shape, dtype.itemsize), copies=True)


def read(array: cupy.ndarray | None, parameter: Parameter | None) -> Any:
    """Return weight or bias in the dtype and the layout of `parameter`."""
    return converted(array, parameter.dtype) if parameter is not None and parameter.copies else array


def address(array: cupy.ndarray | None) -> int:
    """Return the address of an array; 0 if there is none."""
    return 0 if array is None else array.data.ptr


def fixed_bits(array: cupy.ndarray | None, parameter: Parameter | None) -> int:
    """Return the address of a weight or bias; 0 if each call copies it."""
    return 0 if parameter is None or parameter.copies else address(array)


def c_strides(shape: Ints, itemsize: int) -> Ints:
    """Return the strides in bytes of an array in C order."""
    return dense(shape, tuple(range(len(shape), 0, -1)), itemsize)


def configs_of(
    plan: Plan, x: cupy.ndarray, strides: tuple[Ints, ...], weight: Parameter | None, bias: Parameter | None
) -> Configs:
    """Return the configs for x and arrays of its shape; `strides`, in bytes, are those of all of them."""

    def in_elements(strides: Ints, itemsize: int) -> Ints:
        return tuple([stride // itemsize for stride in strides])

    def layout(parameter: Parameter | None) -> Layout | None:
        return parameter and (parameter.shape, in_elements(parameter.strides, parameter.dtype.itemsize))

    device = x.data.device_id
    of_weight, of_bias = [None if parameter is None else parameter.dtype.name for parameter in (weight, bias)]
    all_strides = tuple([in_elements(of_array, x.itemsize) for of_array in strides])
    dtypes = Dtypes(x.dtype.name, of_weight, of_bias)
    return Configs(launcher(device), facts(device), plan, dtypes, x.shape, all_strides, layout(weight), layout(bias))
