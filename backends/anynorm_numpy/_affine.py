"""Weight and bias, matched to blocks of (elements, sets) and applied to them."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from anynorm._plan import Plan
from anynorm_numpy._sets import Sets

# Weights within these bounds can be multiplied into 1/√v without leaving the range of a float32, nor its precision.
_SMALL, _LARGE = 2.0**-60, 2.0**60


class Affine:
    """The scale and shift that follow normalization."""

    def __init__(self, plan: Plan, weight: Any, bias: Any) -> None:
        scale = None if weight is None else _Parameter(plan, weight, plan.weight)
        shift = None if bias is None else _Parameter(plan, bias, plan.bias)
        # What is constant within a set is folded into the one factor and the one shift that normalization needs anyway.
        folds_scale = scale is None or (scale.is_column and _moderate(weight))
        folds_shift = shift is None or (folds_scale and shift.is_column)
        self._folded = scale if folds_scale else None, shift if folds_shift else None
        self._spread = None if folds_scale else scale, None if folds_shift else shift

    def apply(self, e: Any, factor: Any, rest: Any, sets: range, span: range, out: Any) -> None:
        """Put (e − rest)·factor·weight + bias into `out`; factor and rest, None for 0, are one number per set."""
        scale, shift = self._folded
        if scale is not None:
            factor = factor * scale.column(sets)
        offset = None if rest is None else -rest * factor
        if shift is not None:
            offset = shift.column(sets) if offset is None else offset + shift.column(sets)
        np.multiply(e, factor.astype(out.dtype), out=out)
        if offset is not None:
            out += offset.astype(out.dtype)
        scale, shift = self._spread
        if scale is not None:
            view, values = scale.against(out, sets, span)
            view *= values
        if shift is not None:
            view, values = shift.against(out, sets, span)
            view += values


def _moderate(weight: Any) -> bool:
    size = np.abs(weight)
    return bool(np.all((size == 0) | ((size >= _SMALL) & (size <= _LARGE))))


class _Parameter:
    """A weight or a bias."""

    def __init__(self, plan: Plan, parameter: Any, laid_out: Any) -> None:
        laid = parameter.reshape(laid_out).transpose(plan.kept + plan.reduced)
        kept, own = laid.shape[: len(plan.kept)], laid.shape[len(plan.kept) :]
        shape = cast(tuple[int, ...], plan.shape)
        lengths = tuple([shape[axis] for axis in plan.reduced])
        self._shared = math.prod(kept) == 1
        if not self._shared:
            kept = tuple([shape[axis] for axis in plan.kept])
            laid = np.broadcast_to(laid, kept + own)
        # (sets or 1, elements or 1), or with the reduced axes apart where it varies along some of them alone.
        self.is_column = math.prod(own) == 1
        self._apart = None if self.is_column or own == lengths else lengths
        self._values = laid.reshape(math.prod(kept), *(own if self._apart else (math.prod(own),)))

    def column(self, sets: range) -> Any:
        """Return the one value of each set, as float64."""
        return self._of(sets).astype(np.float64).T

    def against(self, e: Any, sets: range, span: range) -> tuple[Any, Any]:
        """Return a view of e, an array (elements, sets), and values that broadcast against it."""
        values = self._of(sets)
        if self._apart is None:
            return e.T, values if self.is_column else values[:, span.start : span.stop]
        if len(span) == math.prod(self._apart):
            return e.T.reshape(-1, *self._apart), values
        flat = np.empty((len(span), len(values)), values.dtype)
        Sets(np.broadcast_to(values, (len(values), *self._apart)), 1).read(range(len(values)), span, flat)
        return e, flat

    def _of(self, sets: range) -> Any:
        return self._values if self._shared else self._values[sets.start : sets.stop]
