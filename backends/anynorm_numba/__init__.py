"""Kernels on host memory, compiled by numba, for NumPy arrays and torch's CPU tensors.

The adapters decide what may be read, this package computes.

Importing it imports no numba; that happens when it is first asked whether there are kernels.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec


@cache
def missing() -> str | None:
    """Return why there are no kernels in this environment, or None."""
    try:
        found = find_spec("numba") is not None and find_spec("numpy") is not None
    except (ValueError, ImportError):  # barred from being imported
        found = False
    if not found:
        return 'numba is not installed (pip install "anynorm[numba]")'
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return "numba's compiler is turned off by NUMBA_DISABLE_JIT"
    from anynorm_numba import _compile

    try:
        _compile.numba()
    except Exception as error:  # beside a NumPy that it does not know it raises ImportError; a broken one, anything
        return f"numba cannot be imported ({error!r})"
    return None
