"""The backend: which calls are alike, and what serves them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from anynorm.backend import (
    Backend,
    Declined,
    Executable,
    Memory,
    Operands,
    Plan,
    may_be_written,
    reach,
    refuses_out,
    unsuited,
)
from anynorm_numba.engine import PLAIN, Array, Gradient, Launch, Maybe, address
from anynorm_numpy._blocks import Blocks
from anynorm_numpy._ops import OPS
from anynorm_numpy._slices import Slices

_ndarray = np.ndarray  # two look-ups less per array


class NumPyBackend(Backend):
    """Serves exactly ndarray and memmap on raw memory, subclasses by the formula, whose arithmetic is theirs."""

    places_itself = True  # there is one device
    activations = ("relu",)

    def __init__(self) -> None:
        super().__init__(OPS)

    def signature(
        self, x: Array, weight: Maybe, bias: Maybe, mean: Maybe, var: Maybe, out: Maybe, dy: Maybe = None
    ) -> Hashable | None:
        if dy is not None:
            return _signature_of_gradient(x, weight, bias, mean, var, out, dy)
        if type(x) is not _ndarray and not _is_mapped(x):
            return None
        of_weight = of_bias = beside = None
        if weight is not None:
            if type(weight) is not _ndarray and not _is_mapped(weight):
                return None
            of_weight = weight.dtype, weight.shape, weight.strides, weight.flags.aligned
        if bias is not None:
            if type(bias) is not _ndarray and not _is_mapped(bias):
                return None
            of_bias = bias.dtype, bias.shape, bias.strides, bias.flags.aligned
        if mean is not None or out is not None:
            beside = _signature_beside(out, x, (weight, bias, mean, var))
            if beside is None:
                return None
        return x.dtype, x.shape, x.strides, x.flags.aligned, of_weight, of_bias, beside

    def compile(self, plan: Plan, operands: Operands) -> Executable[Any] | Declined:
        for array in operands.arrays().values():
            if type(array) not in PLAIN:
                return Declined(
                    f"{type(array).__name__} is a subclass of ndarray, whose own arithmetic the formula respects"
                )
        if operands.dy is not None:
            found = Gradient.compiled(plan, operands, self.ops)
            return Slices(plan, self.ops, found) if isinstance(found, str) else found
        launch = Launch.compiled(plan, operands, self.ops)
        return Blocks(plan, self.ops, launch) if isinstance(launch, str) else launch

    def refuses_out(self, out: Array, x: Array | None, others: dict[str, Array]) -> str | None:
        return refuses_out(out, x, others, _memory)


def _signature_beside(out: Array | None, x: Array, others: tuple[Any, ...]) -> Hashable | None:
    """Return the part of a signature that `out` and given statistics have in it, the last two others; or None."""
    beside = *others[2:], out
    if any(array is not None and type(array) is not np.ndarray and not _is_mapped(array) for array in beside):
        return None
    if out is not None and not (out.flags.writeable and may_be_written(out, x, others, _span, _memory)):
        return None
    return tuple([None if array is None else _layout(array) for array in beside])


def _signature_of_gradient(
    x: Array, weight: Maybe, bias: Maybe, mean: Maybe, var: Maybe, out: Maybe, dy: Array
) -> Hashable | None:
    """Return what decides about a backward pass beside the signature of its forward pass, or None.

    Shapes and dtypes of x and weight are asked again: `x.shape = ...`, `x.resize` and `x.dtype = ...` change them in
    place.
    """
    if type(dy) is not np.ndarray and not _is_mapped(dy):
        return None
    of_weight = None if weight is None else (weight.dtype, weight.shape)
    if out is None:
        return x.dtype, x.shape, of_weight, dy.dtype, dy.shape, dy.strides, dy.flags.aligned
    if (type(out) is not np.ndarray and not _is_mapped(out)) or not out.flags.writeable:
        return None
    fits = may_be_written(out, None, (x, weight, bias, mean, var, dy), _span, _memory)
    return (x.dtype, x.shape, of_weight, _layout(dy), _layout(out)) if fits else None


def _is_mapped(array: Any) -> bool:
    """Say whether an array is a plain one in a file. Unlike an ndarray it may have been given a mask or a unit."""
    return type(array) is np.memmap and unsuited(array) is None


def _layout(array: Array) -> Hashable:
    return array.dtype, array.shape, array.strides, array.flags.aligned


def _span(array: Array) -> tuple[int, int]:
    """Return between which addresses an array lies."""
    begin, flags = address(array), array.flags
    if flags.c_contiguous or flags.f_contiguous:
        return begin, begin + array.nbytes
    first, last = reach(array.shape, array.strides)
    return begin + first, begin + last + array.itemsize


def _memory(array: Array) -> Memory:
    return Memory(address(array), array.shape, array.strides, array.itemsize)
