"""From CuPy's arrays to launch configs: dtypes, strides and the alignment of memory. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import cupy

from anynorm.backend import Ints, Layout, Plan
from anynorm_cuda import engine
from anynorm_cuda.engine import WIDEST, Dtypes, LaunchConfig
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

    def layout(self) -> Layout:
        """Return the shape, and the strides in elements."""
        return self.shape, tuple([stride // self.dtype.itemsize for stride in self.strides])


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


class Configs:
    """The launch configs of one signature, by the alignment of the arrays that each call allocates."""

    def __init__(
        self,
        configure: Callable[..., LaunchConfig | str],
        plan: Plan,
        x: cupy.ndarray,
        strides: tuple[Ints, ...],  # in bytes, of x and each array of its shape
        weight: Parameter | None,
        bias: Parameter | None,
    ) -> None:
        self._configure = configure
        self._plan = plan
        self._dtype, self._shape, self._device = x.dtype, x.shape, x.data.device_id
        self._strides = tuple([tuple([stride // x.itemsize for stride in of_array]) for of_array in strides])
        self._parameters = weight, bias
        self._by_alignment: dict[Ints, LaunchConfig | str] = {}

    @classmethod
    def forwards(
        cls, plan: Plan, x: cupy.ndarray, y: Ints, weight: Parameter | None, bias: Parameter | None
    ) -> Configs:
        """Return the configs of a forward pass; `y` are the strides of y, in bytes."""
        configure = partial(engine.configure_forward, only_measure=plan.function == "moments")
        return cls(configure, plan, x, (x.strides, y), weight, bias)

    @classmethod
    def backwards(cls, plan: Plan, x: cupy.ndarray, dy: Ints, dx: Ints, weight: Parameter | None) -> Configs:
        """Return the configs of a backward pass; `dy` and `dx` are strides, in bytes."""
        # The kernels do not read bias. Its layout is that of dbias.
        bias = None if plan.bias is None else Parameter.in_c_order(cast("Ints", plan.bias))
        return cls(engine.configure_backward, plan, x, (x.strides, dy, dx), weight, bias)

    def at(self, bits: int, parameter_bits: int) -> LaunchConfig | str:
        """Return the config, its kernels loaded, or half a sentence that says why there is none.

        `bits` is the bitwise or of the addresses of x and all arrays of its shape, `parameter_bits` of weight and bias.
        """
        alignment = bits % WIDEST, parameter_bits % WIDEST
        return self._by_alignment.get(alignment) or self._configured(alignment)

    def _configured(self, alignment: tuple[int, int]) -> LaunchConfig | str:
        if alignment[0] % self._dtype.itemsize:
            return "the allocator gives memory that is not aligned to an element"
        weight, bias = [None if parameter is None else parameter.dtype.name for parameter in self._parameters]
        layouts = [None if parameter is None else parameter.layout() for parameter in self._parameters]
        config = self._configure(
            self._plan,
            Dtypes(self._dtype.name, weight, bias, *alignment),
            self._shape,
            self._strides,
            *layouts,
            facts(self._device),
        )
        if not isinstance(config, str):
            config = launcher(self._device).why_not(config.launches) or config
        self._by_alignment[alignment] = config
        return config
