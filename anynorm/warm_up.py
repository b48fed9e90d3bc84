"""Compiling the CPU engine ahead of the first call."""

from __future__ import annotations

from collections.abc import Iterable

from anynorm._core.arrays import FLOATING, described, dtype_name


def warm_up(dtypes: Iterable[str] = ("float32",), *, gradients: bool = True) -> None:
    """Compile the CPU engine's kernels now, or load them from the cache, instead of at the first calls.

    Without it the first call of each kind and dtype takes a few seconds where nothing is cached yet, and under a second
    after that. All kernels of a dtype take about twelve seconds. Call it where a container image is built; and before a
    process forks, because a child that is forked while its parent compiles may wait for ever.

    Parameters
    ----------
    dtypes : iterable of str
        Of "float16", "bfloat16", "float32" and "float64"; NumPy's dtypes of these names, too.
    gradients : bool
        Whether to compile the kernels of the backward pass too.

    Raises
    ------
    TypeError
        dtypes is no list of names.
    ValueError
        A name is none of the four.
    ImportError
        numba is not installed, cannot be imported, or its compiler is turned off.

    Examples
    --------
    >>> import anynorm as an
    >>> an.warm_up(["float32"], gradients=False)

    """
    if isinstance(dtypes, str) or not isinstance(dtypes, Iterable):
        msg = f'warm_up: dtypes must be a list of names, got {described(dtypes)}. Pass e.g. ["float32"].'
        raise TypeError(msg)
    wanted = []
    for dtype in dtypes:
        wanted.append(dtype_name(dtype))  # of NumPy's and torch's own dtypes, too
        if wanted[-1] not in FLOATING:
            msg = f"warm_up: dtypes must be among {', '.join(FLOATING)}; got {described(dtype)}. Name them as strings."
            raise ValueError(msg)
    import anynorm_numba

    missing = anynorm_numba.missing()
    if missing is not None:
        msg = f"warm_up: {missing}."
        raise ImportError(msg)
    from anynorm_numba import engine

    engine.compile_all(tuple(wanted), gradients=gradients)
