"""Where an array keeps its data. Knows NumPy's arrays alone, and nothing of what is in them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

# An array object keeps the address of its data behind what every object has. `ctypes.data` and `__array_interface__`
# know it too, but take 1.5 µs each, a quarter of a small call. So that word is read, of all words of memory, in 0.1 µs.
_WORD = ctypes.sizeof(ctypes.c_size_t)
_DATA = object.__basicsize__ // _WORD
_memory: Any = (ctypes.c_size_t * (2 ** (8 * _WORD - 2) // _WORD)).from_address(0)


def _read(array: Any) -> int:
    address: int = _memory[id(array) // _WORD + _DATA]
    return address


def _ask(array: Any) -> int:
    return int(array.ctypes.data)


_probes = [np.empty(3), np.empty((2, 5), dtype=np.float32)[:, 1:]]
address = _read if all(_read(probe) == _ask(probe) for probe in _probes) else _ask
