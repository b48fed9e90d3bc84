"""Given means and variances, turned into the residuals that kernels read. Knows addresses alone."""

from __future__ import annotations

from functools import cache

from anynorm_numba import _compile, _threads


def take(dtype: str, n: int, mean: int, var: int, residuals: int, eps: float) -> None:
    """Write the residuals (5, n) of means (n,) and variances (n,), all dense and in the compute dtype."""
    _threads.serial(kernel(dtype), 0, 0, 1, n, mean, var, residuals, 0, 0, 0, 0, eps)


@cache
def kernel(dtype: str) -> int:
    """Return the address of the kernel, compiled or loaded at the first call for a dtype."""
    with _compile.alone():  # it imports numba, amid which no process must be forked
        from anynorm_numba._statistics import take_given
    return _compile.task(take_given, dtype)
