"""Kernels on device memory, compiled by NVRTC, for CuPy arrays and torch's CUDA tensors.

The adapters decide what may be read, this package computes.

Importing it imports no CUDA; that happens when the first kernel is needed.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def missing() -> str | None:
    """Return why there are no kernels for torch in this environment, or None."""
    try:
        found = find_spec("cuda.bindings") is not None
    except (ValueError, ImportError):  # there is no `cuda`, or it is barred from being imported
        found = False
    if not found:
        return "cuda-bindings is not installed (pip install cuda-bindings)"
    from anynorm_cuda import _compile

    try:
        _compile.version()
    except Exception:  # each release of the bindings raises another
        return "NVRTC, the compiler of CUDA, is not installed (pip install nvidia-cuda-nvrtc)"
    return None
