"""The addresses of arrays' data. Knows NumPy's arrays alone, and nothing of what is in them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# An array object has the address of its data behind the header of every object. `ctypes.data` and `__array_interface__`
# know it too, but take 1.5 µs each, a quarter of a small call. So it is read as one of the words of memory, in 0.1 µs.
_WORD = 8
_DATA = object.__basicsize__ // _WORD
_words: Any = (ctypes.c_uint64 * 2**59).from_address(0) if ctypes.sizeof(ctypes.c_void_p) == _WORD else None


def _read(array: Array) -> int:
    address: int = _words[id(array) // _WORD + _DATA]
    return address


def _ask(array: Array) -> int:
    return int(array.ctypes.data)


def _read_four(
    first: Array | None, second: Array | None, third: Array | None, fourth: Array | None
) -> tuple[int, int, int, int]:
    words = _words
    return (
        0 if first is None else words[id(first) // _WORD + _DATA],
        0 if second is None else words[id(second) // _WORD + _DATA],
        0 if third is None else words[id(third) // _WORD + _DATA],
        0 if fourth is None else words[id(fourth) // _WORD + _DATA],
    )


def _ask_four(
    first: Array | None, second: Array | None, third: Array | None, fourth: Array | None
) -> tuple[int, int, int, int]:
    """Return the addresses of four arrays at once, 0 for None: a call of a function takes as long as to read one."""
    at = [0 if array is None else _ask(array) for array in (first, second, third, fourth)]
    return at[0], at[1], at[2], at[3]


_probes: list[Array] = [np.empty(3), np.empty((2, 5), dtype=np.float32)[:, 1:]]
_readable = _words is not None and all(_read(probe) == _ask(probe) for probe in _probes)
address = _read if _readable else _ask
addresses = _read_four if _readable else _ask_four
