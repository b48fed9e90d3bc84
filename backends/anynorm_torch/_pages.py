"""New memory in large pages: what the system is asked for, where it can be asked. Knows no tensor."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import cache
from typing import Any

# From this many bytes on new memory is worth the question, as in NumPy. The system makes memory when it is first
# written to, most often by 4 KiB, each of which takes longer than writing it (1.4 µs). Both passes of layer norm on
# (16384, 512), whose two results are of 32 MiB each: 24 ms without, 10 ms with large pages, 3 ms in old memory.
LARGE = 2**22


def ask_for_large_pages(begins: int, size: int) -> None:
    """Ask for large pages in so many bytes of memory from an address on; what is there stays."""
    ask = _madvise()
    if ask is not None:
        first = -(-begins // mmap.PAGESIZE) * mmap.PAGESIZE
        ask(first, begins + size - first, mmap.MADV_HUGEPAGE)  # advice: that it is not taken changes nothing


@cache
def _madvise() -> Callable[[int, int, int], Any] | None:
    """Return the C library's function, or None on systems without large pages on request: all but Linux."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    found: Callable[[int, int, int], Any] = madvise
    return found
