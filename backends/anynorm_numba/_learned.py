"""Room for what kernels learn: arrays of NumPy, of what is computed in."""

from __future__ import annotations

from typing import Any

import numpy as np

from anynorm_numba._jobs import SIZES, Job

# What is computed in, by the kind of a job.
COMPUTE = {kind: np.dtype(np.float64 if kind == "float64" else np.float32) for kind in SIZES}


def planes(job: Job) -> Any:
    """Return room for the statistics of each set."""
    return np.empty((5, job.sets), dtype=COMPUTE[job.kind])
