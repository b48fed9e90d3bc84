"""A block of sets in cache: read, shifted, and summed in an order that depends on the length of a set alone.

Holds the blocking and the summation; what the sums mean is the caller's business. Arrays here have the elements along
axis 0 and the sets along axis 1, in whichever memory order suits the source: element-wise arithmetic cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from anynorm_numba.engine import Array
from anynorm_numpy._sets import Sets

# A chunk is summed in the block's dtype by NumPy's pairwise sum, which takes up to 128 contiguous elements at once, in
# eight lanes; chunks are summed in float64. Both numbers are part of the result: they must not depend on the array.
CHUNK = 128
LANES = 8

# Elements in a block. Copy and scratch then lie in the third-level cache; with blocks a quarter of the size, in the
# second, NumPy's cost per call weighs more than what the nearer cache saves (10 to 40 %).
BLOCK = 2**18

# Sets read side by side where they are interleaved in memory: eight cache lines of float32.
MOST_TOGETHER = 128


class Block:
    """The elements of some sets in one dtype, scaled, less the offsets subtracted so far."""

    def __init__(self, source: Sets, sets: range, spans: list[range], buffers: tuple[Any, Any]) -> None:
        self.sets = sets
        self._source = source
        self._spans = spans
        self._buffers = buffers
        self._scale: Any = None
        self._offsets: list[Any] = []
        self._held: Any = None
        self.restart()

    def restart(self, scale: Array | None = None) -> None:
        """Read the elements anew, multiplied by `scale`, which stays until another is given."""
        if scale is not None:
            self._scale = scale
        self._offsets = []
        if len(self._spans) == 1:
            self._held = self._load(self._spans[0])

    def subtract(self, offset: Array) -> Any:
        """Take an offset off each set, and return it as it was rounded to the block's dtype."""
        rounded = offset.astype(self._buffers[0].dtype, copy=False)
        self._offsets.append(rounded)
        if self._held is not None:
            self._held = np.subtract(self._held, rounded, out=self._room(self._spans[0], 0))
        return rounded

    def read(self) -> Iterator[tuple[range, Any]]:
        """Yield the elements span by span; only to be read, they may be the source's own."""
        for span in self._spans:
            yield span, self._load(span) if self._held is None else self._held

    def scratch(self, span: range) -> Any:
        """Return room for the elements of a span."""
        return self._room(span, 1)

    def first_mean(self) -> Any:
        """Return the mean of each set's first chunk: a number of the size of the set's own mean."""
        span = range(min(CHUNK, self._source.n))
        e = self._load(span) if self._held is None else self._held[: len(span)]
        return _sum(e[None]) / len(span)

    def sums(self) -> tuple[Any, Any]:
        """Return the sum of each set and the sum of its squares, in float64."""
        plain, squared = [], []
        for span, e in self.read():
            plain += _chunk_sums(e)
            squared += _chunk_sums(np.multiply(e, e, out=self.scratch(span)))
        return _total(plain), _total(squared)

    def sum_of_squares(self) -> Any:
        """Return the sum of the squares of each set, in float64."""
        squared = []
        for span, e in self.read():
            squared += _chunk_sums(np.multiply(e, e, out=self.scratch(span)))
        return _total(squared)

    def peak(self) -> Any:
        """Return the largest magnitude in each set as the source has it."""
        largest = np.zeros((1, len(self.sets)))
        for span in self._spans:
            raw = self.scratch(span)
            self._source.read(self.sets, span, raw)
            np.maximum(largest, np.abs(raw, out=raw).max(axis=0, keepdims=True), out=largest)
        return largest

    def _load(self, span: range) -> Any:
        e = self._source.direct(self.sets, span, self._buffers[0].dtype) if self._scale is None else None
        if e is None:
            e = self._room(span, 0)
            self._source.read(self.sets, span, e)
            if self._scale is not None:
                e *= self._scale
        for offset in self._offsets:
            e = np.subtract(e, offset, out=self._room(span, 0))
        return e

    def _room(self, span: range, which: int) -> Any:
        """Return a buffer as (elements, sets), in the memory order that suits the source."""
        elements, sets = len(span), len(self.sets)
        flat = self._buffers[which][: elements * sets]
        return flat.reshape(elements, sets) if self._source.side_by_side else flat.reshape(sets, elements).T


def partition(source: Sets) -> list[tuple[range, list[range]]]:
    """Return ranges of sets, each with the spans of elements to read them in: whole sets, or multiples of a chunk."""
    sets, n = source.sets, source.n
    if BLOCK // n >= min(source.interleaved, MOST_TOGETHER):
        together, length = BLOCK // n, n
    else:
        # Neighbours in even portions, so that a block does not straddle two rows of them.
        together = -(-source.interleaved // -(-source.interleaved // MOST_TOGETHER))
        length = BLOCK // together // CHUNK * CHUNK
    spans = [range(start, min(start + length, n)) for start in range(0, n, length)]
    return [(range(start, min(start + together, sets)), spans) for start in range(0, sets, together)]


def buffers(parts: list[tuple[range, list[range]]], dtype: DTypeLike) -> tuple[Any, Any]:
    """Return room for the largest block and as much scratch."""
    sets, spans = parts[0]
    size = len(sets) * len(spans[0])
    return np.empty(size, dtype), np.empty(size, dtype)


def _chunk_sums(e: Array) -> list[Any]:
    """Return the sums of chunks of each set, as arrays (chunks, sets) in float64."""
    length, sets = e.shape
    whole = length - length % CHUNK
    sums = [_sum(e[:whole].reshape(-1, CHUNK, sets))] if whole else []
    return [*sums, _sum(e[None, whole:])] if whole < length else sums


def _sum(e: Array) -> Any:
    """Return the sums over axis 1 of an array (chunks, at most CHUNK elements, sets), in float64."""
    if e.strides[1] == e.itemsize:
        return np.add.reduce(e, axis=1).astype(np.float64)
    # The same additions in the same order as NumPy makes along contiguous memory, for many sets side by side.
    chunks, length, sets = e.shape
    steps, rest = divmod(length, LANES)
    total: Any = 0
    if steps:
        a = np.add.reduce(e[:, : steps * LANES].reshape(chunks, steps, LANES, sets), axis=1)
        total = ((a[:, 0] + a[:, 1]) + (a[:, 2] + a[:, 3])) + ((a[:, 4] + a[:, 5]) + (a[:, 6] + a[:, 7]))
    for i in range(length - rest, length):
        total = total + e[:, i]
    return total.astype(np.float64)


def _total(sums: list[Any]) -> Any:
    """Return the sum over axis 0 of arrays (chunks, sets), kept as length 1: the same sum again."""
    total = sums[0] if len(sums) == 1 else np.concatenate(sums)
    while len(total) > 1:
        again = _chunk_sums(total)
        total = again[0] if len(again) == 1 else np.concatenate(again)
    return total
