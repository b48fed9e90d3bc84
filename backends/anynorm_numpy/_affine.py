"""Weight and bias, matched to blocks of (elements, sets) and applied to them."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from anynorm.backend import Ints, Plan
from anynorm_numba.engine import Array
from anynorm_numpy._sets import Sets

# A factor of normalization and weight within these bounds, or their inverse, loses neither range nor precision; by the
# element size of the dtype.
_LIMIT = {4: 2.0**100, 8: 2.0**900}


class Affine:
    """The scale, shift and activation that follow normalization."""

    def __init__(self, plan: Plan, weight: Array | None, bias: Array | None) -> None:
        scale = None if weight is None else _Parameter(plan, weight, cast("Ints", plan.weight))
        shift = None if bias is None else _Parameter(plan, bias, cast("Ints", plan.bias))
        # What is constant within a set is folded into the one factor and the one shift that normalization needs anyway.
        folds_scale = scale is None or scale.is_column
        folds_shift = shift is None or (folds_scale and shift.is_column)
        self._folded = scale if folds_scale else None, shift if folds_shift else None
        self._spread = None if folds_scale else scale, None if folds_shift else shift
        self._activates = plan.activation is not None

    def apply(self, e: Array, factor: Array, rest: Array | None, sets: range, span: range, out: Array) -> None:
        """Put (e − rest)·factor·weight + bias, through the activation, into `out`.

        factor and rest, None for 0, are one number per set.
        """
        scale, shift = [None if p is None else p.column(sets) for p in self._folded]  # type: Any, Any
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
        for parameter, combine in zip(self._spread, (np.multiply, np.add), strict=True):
            if parameter is not None:  # it varies within a set
                view, values = parameter.against(out, sets, span)
                combine(view, values, out=view)
        if self._activates:
            np.maximum(out, 0, out=out)


def _extreme(whole: Array, factor: Array, scale: Array, dtype: np.dtype[Any]) -> Any:
    """Return which sets must not fold their weight into the factor, or None if all may."""
    size, limit = np.abs(whole), _LIMIT[dtype.itemsize]
    # A product that underflowed to 0 is extreme; one with a factor of 0 is not.
    extreme = (size > limit) | ((size < 1 / limit) & (factor != 0) & (scale != 0))
    return extreme if extreme.any() else None


class _Parameter:
    """A weight or a bias. Where sets differ in it, it is read block by block: for all it may grow to x's size."""

    def __init__(self, plan: Plan, parameter: Array, laid_out: Ints) -> None:
        laid_out_values = parameter.reshape(laid_out).transpose(plan.kept + plan.reduced)
        kept, own = laid_out_values.shape[: len(plan.kept)], laid_out_values.shape[len(plan.kept) :]
        shape = cast(tuple[int, ...], plan.shape)
        self._lengths = tuple([shape[axis] for axis in plan.reduced])
        self.is_column = math.prod(own) == 1
        # Where it varies along some of the reduced axes alone, they are kept apart.
        self._own = own if own != self._lengths and not self.is_column else (math.prod(own),)
        self._sets = None
        if math.prod(kept) == 1:
            self._values = laid_out_values.reshape(1, *self._own)
        else:
            kept = tuple([shape[axis] for axis in plan.kept])
            self._sets = Sets(np.broadcast_to(laid_out_values, kept + own), len(kept))
        self._laid, self._kept = laid_out_values, kept

    def column(self, sets: range) -> Any:
        """Return the one value of each set, as float64, or the one of all sets."""
        return self._of(sets, range(1)).astype(np.float64)

    def against(self, e: Array, sets: range, span: range) -> tuple[Any, Any]:
        """Return a view of e, an array (elements, sets), and values that broadcast against it."""
        if self.is_column:
            return e, self._of(sets, range(1))
        if len(self._own) == 1:
            return e, self._of(sets, span, e)
        if len(span) == math.prod(self._lengths):
            values = self._values if self._sets is None else self._of(sets, range(self._sets.n)).T
            return e.T.reshape(-1, *self._lengths), values.reshape(-1, *self._own)
        one = self._sets is None
        flat = np.empty_like(e[:, :1] if one else e, self._laid.dtype)
        whole = Sets(np.broadcast_to(self._laid, self._kept + self._lengths), len(self._kept))
        whole.read(range(1) if one else sets, span, flat)
        return e, flat

    def _of(self, sets: range, elements: range, like: Array | None = None) -> Any:
        """Return the values of ranges of sets and elements as an array (elements, sets or 1), laid out like another."""
        if self._sets is None:
            return self._values[:, elements.start : elements.stop].T
        values = self._sets.direct(sets, elements, self._laid.dtype)
        if values is None:
            dtype = self._laid.dtype
            values = np.empty((len(sets), len(elements)), dtype).T if like is None else np.empty_like(like, dtype)
            self._sets.read(sets, elements, values)
        return values
