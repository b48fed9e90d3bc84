"""Kernels on device memory, compiled by NVRTC, for CuPy arrays and torch's CUDA tensors.

An adapter decides which memory may be read; this package computes on addresses.

Importing the package imports no CUDA. The first kernel does.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def missing() -> str | None:
    """Return why there are no kernels for torch in this environment, or None."""
    try:
        found = find_spec("cuda.bindings") is not None
    except (ValueError, ImportError):  # there is no `cuda`, or importing it is forbidden
        found = False
    if not found:
        return "cuda-bindings is not installed (pip install cuda-bindings)"
    from anynorm_cuda import _compile

    try:
        _compile.version()
    except Exception:  # the class differs between releases of the bindings
        return "NVRTC, the compiler of CUDA, is not installed (pip install nvidia-cuda-nvrtc)"
    return None
