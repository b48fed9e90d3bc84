"""Weight and bias, matched to blocks of (elements, sets) and applied to them."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from anynorm._plan import Plan
from anynorm_numpy._sets import Sets

# A factor of normalization and weight within these bounds, or their inverse, loses neither range nor precision; by the
# element size of the dtype.
_LIMIT = {4: 2.0**100, 8: 2.0**900}


class Affine:
    """The scale and shift that follow normalization."""

    def __init__(self, plan: Plan, weight: Any, bias: Any) -> None:
        scale = None if weight is None else _Parameter(plan, weight, plan.weight)
        shift = None if bias is None else _Parameter(plan, bias, plan.bias)
        # What is constant within a set is folded into the one factor and the one shift that normalization needs anyway.
        folds_scale = scale is None or scale.is_column
        folds_shift = shift is None or (folds_scale and shift.is_column)
        self._folded = scale if folds_scale else None, shift if folds_shift else None
        self._spread = None if folds_scale else scale, None if folds_shift else shift

    def apply(self, e: Any, factor: Any, rest: Any, sets: range, span: range, out: Any) -> None:
        """Put (e − rest)·factor·weight + bias into `out`; factor and rest, None for 0, are one number per set."""
        scale, shift = [None if its is None else its.column(sets) for its in self._folded]  # type: Any, Any
        whole = factor if scale is None else factor * scale
        offset = None if rest is None else -rest * whole
        if shift is not None:
            offset = shift if offset is None else offset + shift
        extreme = None if scale is None else _extreme(whole, factor, scale, out.dtype)
        if extreme is not None:
            whole = np.where(extreme, factor, whole)
            # Adding −0 to the other sets, and multiplying them by 1, leaves every bit of theirs.
            offset = np.where(extreme, -0.0 if rest is None else -rest * factor, -0.0 if offset is None else offset)
        np.multiply(e, whole.astype(out.dtype), out=out)
        if offset is not None:
            out += offset.astype(out.dtype)
        if extreme is not None:
            out *= np.where(extreme, scale, 1.0).astype(out.dtype)
            out += np.where(extreme, -0.0 if shift is None else shift, -0.0).astype(out.dtype)
        self._apply_spread(out, sets, span)

    def _apply_spread(self, out: Any, sets: range, span: range) -> None:
        """Multiply and add what varies within a set."""
        scale, shift = self._spread
        if scale is not None:
            view, values = scale.against(out, sets, span)
            view *= values
        if shift is not None:
            view, values = shift.against(out, sets, span)
            view += values


def _extreme(whole: Any, factor: Any, scale: Any, dtype: Any) -> Any:
    """Return which sets must not fold their weight into the factor, or None if all may."""
    size, limit = np.abs(whole), _LIMIT[dtype.itemsize]
    # A product that underflowed to 0 is extreme; one with a factor of 0 is not.
    extreme = (size > limit) | ((size < 1 / limit) & (factor != 0) & (scale != 0))
    return extreme if extreme.any() else None


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
