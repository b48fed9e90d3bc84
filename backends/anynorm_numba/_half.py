"""Weight and bias of half precision, made numbers of C before a kernel reads them. Knows addresses alone."""

from __future__ import annotations

from functools import cache

from anynorm_numba import _compile, _threads

HALVES = ("float16", "bfloat16")


def widen(kind: str, n: int, source: int, target: int, other_n: int, other_source: int, other_target: int) -> None:
    """Make numbers of C of n elements, and of so many others: two casts in one call, as what takes time is the call."""
    _threads.serial(kernel(kind), 0, 0, 1, n, source, target, other_n, other_source, other_target, 0, 0, 0.0)


@cache
def kernel(kind: str) -> int:
    """Return the address of the kernel, compiled or loaded if it is the first of its kind."""
    with _compile.alone():  # it imports numba, amid which no process must be forked
        from anynorm_numba._casts import widen_two
    return _compile.task(widen_two, kind)
