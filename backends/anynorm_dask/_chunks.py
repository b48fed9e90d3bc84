"""Which chunks a Dask array may have: what decides is the kind of array that Dask says they are."""

from __future__ import annotations

import numpy as np

from anynorm.backend import conversion, type_name, unsuited

# Whose chunks Dask's own arithmetic leaves what they are.
SERVED = {"numpy", "cupy"}


def refuses_chunk(block: object) -> str | None:
    """Return why no norm can be computed on chunks like this one, or None."""
    if type(block) is np.ndarray:
        return None
    reason = unsuited(block, chunks=True)
    if reason is not None:
        return reason
    if maker(block) not in SERVED or isinstance(block, np.matrix):
        # Dask's own arithmetic turns such chunks into NumPy's on the way, some here and some there, or fails.
        return (
            f"has chunks of {type_name(block)}, and on Dask norms are computed on those of NumPy or CuPy. Convert them "
            f"first, with {conversion('numpy.asarray', block)}."
        )
    return None


def maker(block: object) -> str:
    """Return the library that chunks like this one belong to."""
    return "numpy" if isinstance(block, np.ndarray) else type(block).__module__.partition(".")[0]
