"""Room for what kernels learn: arrays of NumPy, of what is computed in."""

from __future__ import annotations

from typing import Any

import numpy as np

from anynorm_numba._configs import COMPUTE
from anynorm_numba._configs import LaunchConfig as Job


def planes(job: Job) -> Any:
    """Return room for the statistics of each set."""
    return np.empty((5, job.sets), dtype=COMPUTE[job.dtype])
