"""The same numbers lying differently in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from libraries import LIBRARIES, NumPyArray


def _transposed(x: NumPyArray) -> NumPyArray:
    return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)


def _channels_last(x: NumPyArray) -> NumPyArray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def _sliced(x: NumPyArray) -> NumPyArray:
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _cropped(x: NumPyArray) -> NumPyArray:
    framed = np.full([length + 2 for length in x.shape], np.nan, dtype=x.dtype)
    inside = framed[tuple(slice(1, -1) for _ in x.shape)]
    inside[...] = x
    return inside


def _reversed(x: NumPyArray) -> NumPyArray:
    return np.flip(np.flip(x).copy())


def _read_only(x: NumPyArray) -> NumPyArray:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def _unaligned(x: NumPyArray) -> NumPyArray:
    record = np.dtype([("shift", np.uint8), ("x", x.dtype)])
    records = np.zeros(x.shape, dtype=record)
    records["x"] = x
    return records["x"]


def _memmap(x: NumPyArray) -> NumPyArray:
    with tempfile.TemporaryFile() as file:
        mapped: NumPyArray = np.memmap(file, dtype=x.dtype, shape=x.shape, mode="w+")
    mapped[...] = x
    return mapped


STRIDED: dict[str, Callable[[Any], NumPyArray]] = {
    "contiguous": np.ascontiguousarray,
    "transposed": _transposed,
    "channels_last": _channels_last,
    "fortran": np.asfortranarray,
    "sliced": _sliced,
    "cropped": _cropped,
}

# Of these torch has none: it knows no negative strides, no read-only memory, no memory maps of its own.
LAYOUTS = STRIDED | {"reversed": _reversed, "read_only": _read_only, "unaligned": _unaligned, "memmap": _memmap}

_BY_KIND = {"numpy": tuple(LAYOUTS), "strided": tuple(STRIDED), "any": ("contiguous",)}


def layouts_of(library: str) -> tuple[str, ...]:
    """Return the names of the layouts in which a library's arrays can lie, "contiguous" where it has no say."""
    return _BY_KIND[LIBRARIES[library].layouts]
