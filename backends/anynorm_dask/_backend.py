"""The backend: which Dask arrays the formula serves. There is nothing faster to compile."""

from __future__ import annotations

import dask.array

from anynorm.backend import Backend
from anynorm_dask._chunks import SERVED, maker, refuses_chunk
from anynorm_dask._ops import DaskOps


class DaskBackend(Backend):
    """Leaves all computing to the formula, chunk by chunk."""

    places_itself = immutable = True

    def __init__(self) -> None:
        super().__init__(DaskOps())

    def refuses(self, x: dask.array.Array) -> str | None:
        return refuses_chunk(x._meta)  # an empty chunk, which Dask knows: nothing is computed

    def refuses_beside(self, array: dask.array.Array, x: dask.array.Array) -> str | None:
        own, others = maker(array._meta), maker(x._meta)
        if own == others or not {own, others} <= SERVED:
            return None
        convert = "cupy.asnumpy" if own == "cupy" else "cupy.asarray"
        return (
            f"has chunks of {own}, and those of x are of {others}. Nothing is moved silently: convert it first, with "
            f".map_blocks({convert})."
        )
