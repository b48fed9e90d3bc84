"""Weight and bias of half precision, cast to the compute dtype before a kernel reads them. Knows addresses alone."""

from __future__ import annotations

from functools import cache

from anynorm_numba import _compile, _threads

HALVES = ("float16", "bfloat16")


def upcast(dtype: str, n: int, source: int, target: int, other_n: int, other_source: int, other_target: int) -> None:
    """Cast n elements to the compute dtype, and other_n others: two casts, as it is the call that takes time."""
    _threads.serial(kernel(dtype), 0, 0, 1, n, source, target, other_n, other_source, other_target, 0, 0, 0.0)


@cache
def kernel(dtype: str) -> int:
    """Return the address of the kernel, compiled or loaded at the first call for a dtype."""
    with _compile.alone():  # it imports numba, amid which no process must be forked
        from anynorm_numba._casts import upcast_two
    return _compile.task(upcast_two, dtype)
