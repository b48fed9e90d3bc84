"""The backend: which Dask arrays the formula serves, and with which operations."""

from __future__ import annotations

from typing import Any

import array_api_compat.dask.array as xp
import dask.array

from anynorm.backend import ArrayOps, Backend, Shape
from anynorm_dask._blocks import largest, reshaped, shape_of, sum_over
from anynorm_dask._chunks import refuses, refuses_beside


class DaskOps(ArrayOps[Any]):
    """Dask's operations."""

    def __init__(self) -> None:
        super().__init__("dask", xp)

    def shape(self, x: dask.array.Array) -> Shape:
        return shape_of(x)

    def reshape(self, x: dask.array.Array, shape: Shape) -> Any:
        return reshaped(x, shape)

    def sum(self, x: dask.array.Array, axes: tuple[int, ...]) -> Any:
        return sum_over(x, axes)

    def peak(self, x: dask.array.Array, axes: tuple[int, ...]) -> Any:
        return largest(x, axes)


class DaskBackend(Backend):
    """Leaves all computing to the formula, chunk by chunk."""

    places_itself = immutable = True

    def __init__(self) -> None:
        super().__init__(DaskOps())

    def refuses(self, x: dask.array.Array) -> str | None:
        return refuses(x)

    def refuses_beside(self, array: dask.array.Array, x: dask.array.Array) -> str | None:
        return refuses_beside(array, x)
