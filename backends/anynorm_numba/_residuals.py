"""Memory for the residuals of a call, as kernels write and read it."""

from __future__ import annotations

import numpy as np

from anynorm_numba._address import Array
from anynorm_numba._configs import COMPUTE, LaunchConfig


def empty(config: LaunchConfig) -> Array:
    """Return an uninitialized array (5, sets): mean, correction, rstd, scale and m2, in the compute dtype."""
    return np.empty((5, config.sets), COMPUTE[config.dtype])
