"""An array seen as sets of elements: flat ranges of both, read from any memory layout into plain rows and written back.

Geometry only: no arithmetic. Elements are counted in the order of the array's axes, never of its strides, so that what
is summed in which order does not depend on the layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from anynorm.backend import Plan
from anynorm_numba.engine import Array

Index = tuple[slice, ...]

# Where neighbours in memory belong to this many sets or more, or sets are this short, sets are laid side by side, so
# that NumPy's inner loops are long; otherwise each set lies in a row, which its pairwise sum is made for.
SIDE_BY_SIDE = 32


class Sets:
    """An array laid out as (axes of the sets, axes of their elements), addressed by ranges of sets and of elements."""

    def __init__(self, laid: Array, set_axes: int) -> None:
        self._rows, self._columns, self.interleaved = _merged(laid.shape, laid.strides, set_axes)
        # Merged axes lie evenly in memory, so this reshape is a view.
        self._view = laid.reshape(self._rows + self._columns)
        self.sets, self.n = math.prod(self._rows), math.prod(self._columns)
        self.side_by_side = self.interleaved >= SIDE_BY_SIDE or self.n < SIDE_BY_SIDE

    @classmethod
    def of(cls, array: Array, plan: Plan) -> Sets:
        """Lay out an array of x's shape."""
        if plan.shape != array.shape:
            array = array.reshape(plan.shape)
        return cls(array.transpose(plan.kept + plan.reduced), len(plan.kept))

    def direct(self, sets: range, elements: range, dtype: object) -> Any:
        """Return the ranges as a view (elements, sets), or None where memory holds them in another order or dtype."""
        view = self._view
        if view.ndim != 2 or view.dtype != dtype or view.strides[not self.side_by_side] != view.itemsize:
            return None
        return view[sets.start : sets.stop, elements.start : elements.stop].T

    def read(self, sets: range, elements: range, into: Array) -> None:
        """Copy a range of elements of a range of sets into an array (elements, sets), cast to its dtype."""
        for rows, index in self._pieces(sets, elements):
            piece = self._view[index]
            into.T[rows].reshape(piece.shape)[...] = piece

    def write(self, sets: range, elements: range, values: Array) -> None:
        """Copy an array (elements, sets) back to where `read` takes it from, cast to the array's dtype."""
        for rows, index in self._pieces(sets, elements):
            piece = self._view[index]
            piece[...] = values.T[rows].reshape(piece.shape)

    def _pieces(self, sets: range, elements: range) -> Iterator[tuple[Index, Index]]:
        """Return pairs of (where in the rows, where in the view) that cover the two ranges."""
        for row, row_index in _cover(self._rows, sets.start, sets.stop):
            for column, column_index in _cover(self._columns, elements.start, elements.stop):
                yield (row, column), row_index + column_index


@lru_cache(maxsize=4096)
def _merged(
    shape: tuple[int, ...], strides: tuple[int, ...], set_axes: int
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Merge neighbouring axes on either side where memory continues evenly from one to the next.

    Return the lengths on both sides, and how many sets lie side by side in memory (1: neighbours belong to one set).
    """
    sides: list[list[int]] = [[], []]
    steps: list[tuple[int, bool, int]] = []
    step = 0
    for axis, (length, stride) in enumerate(zip(shape, strides, strict=True)):
        lengths = sides[axis >= set_axes]
        if length == 1:
            continue
        if lengths and step == stride * length:
            lengths[-1] *= length
            steps.pop()
        else:
            lengths.append(length)
        step = stride
        steps.append((abs(stride), axis >= set_axes, lengths[-1]))
    rows, columns = [tuple(lengths) or (1,) for lengths in sides]
    _, elements, length = min(steps, default=(0, True, 1))
    return rows, columns, 1 if elements else length


@lru_cache(maxsize=4096)
def _cover(shape: tuple[int, ...], start: int, stop: int) -> tuple[tuple[slice, Index], ...]:
    """Return boxes that cover elements start to stop of an array in C order, each with the range it fills from 0."""
    inner = math.prod(shape[1:])
    if len(shape) == 1 or (start % inner == 0 and stop % inner == 0):
        box = (slice(start // inner, stop // inner), *[slice(None)] * (len(shape) - 1))
        return ((slice(0, stop - start), box),)
    boxes = []
    at = start
    while at < stop:
        row, offset = divmod(at, inner)
        if offset == 0 and stop - at >= inner:
            upto = stop // inner * inner
            found = _cover(shape, at, upto)
        else:
            upto = min(stop, (row + 1) * inner)
            tail = _cover(shape[1:], offset, upto - row * inner)
            found = tuple([(fill, (slice(row, row + 1), *box)) for fill, box in tail])
        shift = at - start
        boxes += [(slice(fill.start + shift, fill.stop + shift), box) for fill, box in found]
        at = upto
    return tuple(boxes)
