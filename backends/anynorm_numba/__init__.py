"""Kernels on host memory, compiled by numba, for NumPy arrays and torch's CPU tensors: the adapters decide, this computes.

Importing it imports no numba; that happens when the first kernel is needed.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from anynorm_numba._warm_up import warm_up as warm_up


@cache
def missing() -> str | None:
    """Return why there are no kernels in this environment, or None."""
    return None if find_spec("numba") is not None and find_spec("numpy") is not None else "numba is not installed"
