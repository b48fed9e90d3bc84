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
    apart,
    reach,
    refuses_out,
)
from anynorm_numba.engine import address
from anynorm_numpy._arrays import PLAIN, Array
from anynorm_numpy._blocks import Blocks
from anynorm_numpy._launch import Gradient, Launch
from anynorm_numpy._ops import OPS
from anynorm_numpy._slices import Slices


class NumPyBackend(Backend):
    """Serves exactly ndarray and memmap on raw memory, subclasses by the formula, whose arithmetic is theirs."""

    places_itself = True  # there is one device

    def __init__(self) -> None:
        super().__init__(OPS)

    def signature(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        mean: Array | None,
        var: Array | None,
        out: Array | None,
        dy: Array | None = None,
    ) -> Hashable | None:
        if dy is not None:
            return _signature_of_gradient(x, weight, bias, mean, var, out, dy)
        if type(x) is not np.ndarray:
            return None
        of_weight = of_bias = beside = None
        if weight is not None:
            if type(weight) is not np.ndarray:
                return None
            of_weight = weight.dtype, weight.shape, weight.strides, weight.flags.aligned
        if bias is not None:
            if type(bias) is not np.ndarray:
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
            found = Gradient.compiled(plan, operands)
            return Slices(plan, self.ops, found) if isinstance(found, str) else found
        launch = Launch.compiled(plan, operands)
        return Blocks(plan, self.ops, launch) if isinstance(launch, str) else launch

    def refuses_out(self, out: Array, x: Array | None, others: dict[str, Array]) -> str | None:
        itself = None if x is None else _memory(x)
        return refuses_out(_memory(out), itself, {name: _memory(array) for name, array in others.items()})


def _signature_beside(out: Array | None, x: Array, others: tuple[Any, ...]) -> Hashable | None:
    """Return the part of a signature that `out` and given statistics have in it, the last two others; or None."""
    beside = *others[2:], out
    if any(array is not None and type(array) is not np.ndarray for array in beside):
        return None
    if out is not None and not (out.flags.writeable and _lies_apart(out, x, others)):
        return None
    return tuple([None if array is None else _layout(array) for array in beside])


def _signature_of_gradient(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    var: Array | None,
    out: Array | None,
    dy: Array,
) -> Hashable | None:
    """Return what decides about a backward pass beside the signature of its forward pass, or None."""
    if type(dy) is not np.ndarray:
        return None
    if out is None:
        return dy.dtype, dy.shape, dy.strides, dy.flags.aligned
    if type(out) is not np.ndarray or not out.flags.writeable:
        return None
    return (_layout(dy), _layout(out)) if _lies_apart(out, None, (x, weight, bias, mean, var, dy)) else None


def _layout(array: Array) -> Hashable:
    return array.dtype, array.shape, array.strides, array.flags.aligned


def _lies_apart(out: Array, x: Array | None, others: tuple[Any, ...]) -> bool:
    """Say whether `out` is x or lies outside of it, and outside of the others; False is no answer."""
    beside = others if out is x or x is None else (x, *others)
    return apart(_span(out), [_span(array) for array in beside if array is not None])


def _span(array: Array) -> tuple[int, int]:
    """Return between which addresses an array lies."""
    begin, flags = address(array), array.flags
    if flags.c_contiguous or flags.f_contiguous:
        return begin, begin + array.nbytes
    first, last = reach(array.shape, array.strides)
    return begin + first, begin + last + array.itemsize


def _memory(array: Array) -> Memory:
    return Memory(address(array), array.shape, array.strides, array.itemsize)
