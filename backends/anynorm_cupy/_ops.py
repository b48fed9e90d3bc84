"""The array operations that CuPy does better than the standard's own calls, or does wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.cupy as xp
import cupy

from anynorm.backend import ArrayOps
from anynorm_cupy._device import current_device
from anynorm_cupy._memory import empty_like

# A longer axis is summed in blocks, and their sums again. CuPy gives a sum at least 16 threads; each adds its terms one
# after the other, here four, before the threads' sums are added as a tree.
BLOCK = 64


class CuPyOps(ArrayOps[Any]):
    """CuPy's operations."""

    def __init__(self) -> None:
        super().__init__("cupy", xp)

    def on_device(self, x: cupy.ndarray, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        device = x.data.device_id
        if device == current_device():
            return function(*arguments, **options)
        with cupy.cuda.Device(device):
            return function(*arguments, **options)

    def sum(self, x: cupy.ndarray, axes: tuple[int, ...]) -> Any:
        # In CuPy's own sum over a leading axis a thread adds a sixteenth of it in sequence: 2²⁰ float32 come out tens
        # of eps off. float32 is summed in float64, which every GPU has; float64 in blocks.
        if x.dtype == cupy.float32:
            return cupy.sum(x, axis=axes, dtype=cupy.float64, keepdims=True).astype(cupy.float32)
        for axis in axes:
            x = _sum_in_blocks(x, axis)
        return x

    def with_layout_of(self, y: cupy.ndarray, x: cupy.ndarray) -> Any:
        # CuPy's arithmetic returns arrays in C order.
        like = empty_like(x)
        if like.strides == y.strides:
            return y
        cupy.copyto(like, y)
        return like


def _sum_in_blocks(x: cupy.ndarray, axis: int) -> Any:
    while x.shape[axis] > BLOCK:
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        blocks, left = divmod(x.shape[axis], BLOCK)
        index = (slice(None),) * axis
        whole = x[(*index, slice(blocks * BLOCK))].reshape(*before, blocks, BLOCK, *after)
        sums = cupy.sum(whole, axis=axis + 1)
        if left:
            rest = cupy.sum(x[(*index, slice(blocks * BLOCK, None))], axis=axis, keepdims=True)
            sums = cupy.concatenate([sums, rest], axis=axis)
        x = sums
    return cupy.sum(x, axis=axis, keepdims=True)


OPS = CuPyOps()
