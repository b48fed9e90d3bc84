"""An accurate sum and a reshape, chunk by chunk."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import dask.array
from array_api_compat import array_namespace

from anynorm.backend import Operand, Shape, tree_sum
from anynorm_dask._chunks import refuses_chunk

da: Any = dask.array  # its functions are not annotated


def shape_of(x: dask.array.Array) -> Shape:
    """Return x's shape, with None for a length that is not known yet."""
    # Dask writes it as NaN, the only number that differs from itself.
    return tuple([None if length != length else length for length in x.shape])


def sum_over(x: dask.array.Array, axes: tuple[int, ...]) -> Any:
    """Sum over `axes`, kept as length 1, by a halving tree within chunks and over the chunks' sums."""
    return da.reduction(
        x, chunk=_sum_of_block, aggregate=_sum_of_block, axis=axes, keepdims=True, dtype=x.dtype, concatenate=True
    )


def _sum_of_block(block: Operand, axis: int | tuple[int, ...], keepdims: bool) -> Any:  # noqa: ARG001  they are always kept
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    return tree_sum(block, axes)


def largest(x: dask.array.Array, axes: tuple[int, ...]) -> Any:
    """Return the largest magnitude over `axes`, kept as length 1; chunks may be empty, which Dask's max refuses."""
    return da.reduction(
        abs(x), chunk=_largest_of_block, aggregate=_largest_of_block, axis=axes, keepdims=True, dtype=x.dtype
    )


def _largest_of_block(block: Operand, axis: int | tuple[int, ...], keepdims: bool) -> Any:
    refusal = refuses_chunk(block)
    if refusal is not None:  # Dask had been told of another kind of chunk
        msg = f"anynorm: a Dask array {refusal} To Dask they are another kind: pass meta= where it is made."
        raise TypeError(msg)
    xp = array_namespace(block)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    # Not max(initial=0), which the standard does not have and CuPy neither.
    reduction = xp.sum if 0 in [block.shape[axis] for axis in axes] else xp.max
    return reduction(block, axis=axes, keepdims=keepdims)


def reshaped(x: dask.array.Array, lengths: Shape) -> Any:
    """Reshape; where a length is unknown, split one axis in two or join two.

    Dask's own reshape refuses every unknown length, also along an axis it would leave alone.
    """
    x = _without_empty_chunks(x)
    if shape_of(x) == lengths:
        return x
    if None not in lengths:
        # Where such an array has several chunks, Dask's own raises a TypeError: (0, 3) to (2, 0, 3).
        return da.zeros_like(x, shape=lengths) if 0 in lengths else da.reshape(x, lengths)
    if x.ndim == 1:
        return x[tuple([slice(None) if length is None else None for length in lengths])]
    known = shape_of(x)
    if len(lengths) > x.ndim:
        axis = _pair(lengths, known)
        x = x.rechunk({axis: -1})
        first, second = lengths[axis : axis + 2]
        chunks = (*x.chunks[:axis], (first,), (second,), *x.chunks[axis + 1 :])
        return da.map_blocks(_split, x, axis, first, dtype=x.dtype, chunks=chunks, new_axis=axis + 1)
    axis = _pair(known, lengths)
    x = x.rechunk({axis: -1, axis + 1: -1})
    chunks = (*x.chunks[:axis], (lengths[axis],), *x.chunks[axis + 2 :])
    return da.map_blocks(_join, x, axis, dtype=x.dtype, chunks=chunks, drop_axis=axis + 1)


def _without_empty_chunks(x: dask.array.Array) -> Any:
    """Return x in one chunk along axes of length 1: beside an empty one Dask broadcasts the other into its place."""
    split = [axis for axis, length in enumerate(x.shape) if length == 1 and len(x.chunks[axis]) > 1]
    return x.rechunk(dict.fromkeys(split, -1)) if split else x


def _pair(longer: Shape, shorter: Shape) -> int:
    """Return the axis at which two neighbours of the longer shape are one axis of the shorter."""
    for axis, (first, second) in enumerate(pairwise(longer)):
        if first is not None and second is not None:
            joined = (*longer[:axis], first * second, *longer[axis + 2 :])
            if joined == shorter:
                return axis
    msg = f"cannot reshape between {longer} and {shorter}"
    raise ValueError(msg)


def _split(block: Any, axis: int, first: int) -> Any:
    shape = block.shape
    return block.reshape((*shape[:axis], first, shape[axis] // first, *shape[axis + 1 :]))


def _join(block: Any, axis: int) -> Any:
    shape = block.shape
    return block.reshape((*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]))
