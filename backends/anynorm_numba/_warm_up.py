"""Compiling ahead."""

from __future__ import annotations

from collections.abc import Iterable

DTYPES = ("float32", "float64", "float16", "bfloat16")


def warm_up(dtypes: Iterable[str] = ("float32",), *, gradients: bool = True) -> None:
    """Compile the CPU engine's kernels now, or load them from the cache, instead of at the first calls.

    Without it the first call of each kind takes a few seconds where nothing is cached yet, and under a second after
    that. Call it where a container image is built, or before a process forks: a child must not find another thread of
    its parent amid compiling.

    Parameters
    ----------
    dtypes : iterable of str
        Of "float32", "float64", "float16" and "bfloat16".
    gradients : bool
        Whether to compile the kernels of the backward pass too.

    Raises
    ------
    ValueError
        A dtype is none of the four.
    ImportError
        numba is not installed.

    Examples
    --------
    >>> import anynorm as an
    >>> an.warm_up(gradients=False)

    """
    wanted = tuple(dtypes)
    for dtype in wanted:
        if dtype not in DTYPES:
            msg = f"warm_up: dtypes must be among {', '.join(DTYPES)}; got {dtype!r}. Name them as strings."
            raise ValueError(msg)
    from anynorm_numba import _engine

    _engine.compile_all(wanted, gradients=gradients)
