"""The array operations that Dask does better than the standard's own calls, or does wrong, chunk by chunk."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import array_api_compat.dask.array as xp
import dask.array
from array_api_compat import array_namespace

from anynorm.backend import ArrayOps, Operand, Shape, tree_sum
from anynorm_dask._chunks import refuses_chunk

da: Any = dask.array  # its functions are not annotated


class DaskOps(ArrayOps[Any]):
    """Dask's operations."""

    def __init__(self) -> None:
        super().__init__("dask", xp)

    def shape(self, x: dask.array.Array) -> Shape:
        # Dask writes a length that is not known yet as NaN, the only number that differs from itself.
        return tuple([None if length != length else length for length in x.shape])

    def sum(self, x: dask.array.Array, axes: tuple[int, ...]) -> Any:
        # By a halving tree within chunks, and over the chunks' sums.
        return da.reduction(
            x, chunk=_sum_of_block, aggregate=_sum_of_block, axis=axes, keepdims=True, dtype=x.dtype, concatenate=True
        )

    def peak(self, x: dask.array.Array, axes: tuple[int, ...]) -> Any:
        # Chunks may be empty, which Dask's own maximum refuses.
        return da.reduction(
            abs(x), chunk=_largest_of_block, aggregate=_largest_of_block, axis=axes, keepdims=True, dtype=x.dtype
        )

    def reshape(self, x: dask.array.Array, shape: Shape) -> Any:
        """Reshape; where a length is unknown, split one axis in two or join two.

        Dask's own reshape refuses every unknown length, also along an axis it would leave alone.
        """
        x = _without_empty_chunks(x)
        if self.shape(x) == shape:
            return x
        if None not in shape:
            # Where such an array has several chunks, Dask's own raises a TypeError: (0, 3) to (2, 0, 3).
            return da.zeros_like(x, shape=shape) if 0 in shape else da.reshape(x, shape)
        if x.ndim == 1:
            return x[tuple([slice(None) if length is None else None for length in shape])]
        known = self.shape(x)
        if len(shape) > x.ndim:
            axis = _pair(shape, known)
            x = x.rechunk({axis: -1})
            first, second = shape[axis : axis + 2]
            chunks = (*x.chunks[:axis], (first,), (second,), *x.chunks[axis + 1 :])
            return da.map_blocks(_split, x, axis, first, dtype=x.dtype, chunks=chunks, new_axis=axis + 1)
        axis = _pair(known, shape)
        x = x.rechunk({axis: -1, axis + 1: -1})
        chunks = (*x.chunks[:axis], (shape[axis],), *x.chunks[axis + 2 :])
        return da.map_blocks(_join, x, axis, dtype=x.dtype, chunks=chunks, drop_axis=axis + 1)


def _sum_of_block(block: Operand, axis: int | tuple[int, ...], keepdims: bool) -> Any:  # noqa: ARG001  they are always kept
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    return tree_sum(block, axes)


def _largest_of_block(block: Operand, axis: int | tuple[int, ...], keepdims: bool) -> Any:
    refusal = refuses_chunk(block)
    if refusal is not None:  # Dask had been told of another kind of chunk
        msg = f"anynorm: a Dask array {refusal} To Dask they are another kind: pass meta= where it is made."
        raise TypeError(msg)
    namespace = array_namespace(block)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    # Not max(initial=0), which the standard does not have and CuPy neither.
    reduction = namespace.sum if 0 in [block.shape[axis] for axis in axes] else namespace.max
    return reduction(block, axis=axes, keepdims=keepdims)


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
