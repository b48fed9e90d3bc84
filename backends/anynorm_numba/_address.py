"""Where an array keeps its data. Knows NumPy's arrays alone, and nothing of what is in them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

# Where an array object keeps the address of its data: behind what every object has. `ctypes.data` and
# `__array_interface__` know it too, but take 1.5 µs each, a quarter of a small call.
_DATA = object.__basicsize__


def _read(array: Any) -> int:
    return ctypes.c_void_p.from_address(id(array) + _DATA).value or 0


def _ask(array: Any) -> int:
    return int(array.ctypes.data)


_probes = [np.empty(3), np.empty((2, 5), dtype=np.float32)[:, 1:]]
address = _read if all(_read(probe) == _ask(probe) for probe in _probes) else _ask
