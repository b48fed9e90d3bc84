"""Derivatives of the exact result by central differences, to compare automatic differentiation with.

The contract's own bound on gradients is for `vjp`, not for what a library makes of the formula; here it is enough that
no term of the derivative is wrong or missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from inputs import Case, Norm

STEP = 1e-4

# Small enough for gradcheck, which evaluates the norm twice per element; every term of the gradient occurs.
SMALL_SHAPE = (2, 4, 3)
SMALL_NORMS = (
    Norm("layer", "layer_norm", {"axis": (1, 2)}, {"weight": (4, 3), "bias": (4, 3)}),
    Norm("rms", "rms_norm", {}, {"weight": (3,), "bias": (3,)}),
    Norm("group", "group_norm", {}, {"weight": (4,), "bias": (4,)}, (2,)),
    Norm("instance", "instance_norm", {}, {"weight": (4,), "bias": (4,)}),
    Norm("batch", "batch_norm", {}, {"weight": (4,), "bias": (4,)}),
    Norm("batch-given", "batch_norm", {}, {"weight": (4,), "bias": (4,), "mean": (4,), "var": (4,)}),
)


def small_case(norm: Norm) -> Case:
    """Return a norm on small arrays of float64."""
    random = np.random.default_rng(13)
    arrays = {"x": 3 + random.normal(size=SMALL_SHAPE)}
    arrays |= {name: random.uniform(0.5, 2, size=shape) for name, shape in norm.parameters.items()}
    return Case(norm, arrays)


def directions(case: Case) -> dict[str, Any]:
    """Return a direction in which to move each argument that has a gradient."""
    random = np.random.default_rng(17)
    return {name: random.normal(size=array.shape) for name, array in case.arrays.items() if name not in ("mean", "var")}


def change(case: Case, moved: dict[str, Any]) -> Any:
    """Return the exact result's derivative along the directions of `moved`, to about 1e-7 of its size."""

    def at(step: float) -> Any:
        arrays = {name: array + step * moved[name] if name in moved else array for name, array in case.arrays.items()}
        return Case(case.norm, arrays).reference().exact

    return ((at(STEP) - at(-STEP)) / (2 * STEP)).astype("float64")
