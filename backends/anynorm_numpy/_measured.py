"""Statistics on their way between the engine's two steps: as it measured them, or as they were merged or replaced."""

from __future__ import annotations

import numpy as np

from anynorm.backend import PackedResiduals, Plan, Statistics, formula, in_memory_order
from anynorm_numba.engine import COMPUTE, LaunchConfig
from anynorm_numpy._arrays import Array
from anynorm_numpy._blocks import more_scale


class Measured(Statistics):
    """Statistics as the engine measured them.

    They keep the residuals, whose rstd comes from an m2 that is not rounded yet: with the eps of its measuring, `apply`
    gives the bits of `forward`.
    """

    packed: PackedResiduals | None = None

    @classmethod
    def of(cls, packed: PackedResiduals) -> Measured:
        """Return the statistics among residuals."""
        found = cls(packed.plan.n, packed.mean, packed.correction, packed.m2, packed.scale)
        found.packed = packed
        return found


def packed_residuals(statistics: Statistics, eps: float, config: LaunchConfig, plan: Plan) -> Array:
    """Return residuals (5, sets) by which the engine normalizes with any statistics and eps."""
    packed = statistics.packed if isinstance(statistics, Measured) else None
    if packed is not None and packed.eps == eps and packed.view.axes == config.view.axes:
        kept: Array = packed.array
        return kept
    axes, compute = config.view.axes[0] + config.view.axes[2], COMPUTE[config.dtype]
    with np.errstate(all="ignore"):
        fields = _finalized(statistics, eps)
        if compute == np.float32:
            mean, correction, rstd, scale, m2 = fields
            more = np.where(m2 == 0, 1.0, more_scale(rstd))
            fields = mean * more, correction * more, rstd / more, scale * more, m2 * more * more
        return np.stack([in_memory_order(field, axes, plan) for field in fields]).astype(compute)


def _finalized(statistics: Statistics, eps: float) -> tuple[Array, ...]:
    """Return (mean, correction, rstd, scale, m2) in float64, those of equal values in x's own units."""
    mean, correction, m2, scale = [np.asarray(field, np.float64) for field in statistics[1:]]
    v = m2 / np.asarray(statistics.n, np.float64)
    constant = v == 0
    rstd = np.where(constant, formula.rsqrt_eps(eps), 1 / np.sqrt(v + eps * scale * scale))
    back = np.where(constant, 1 / scale, 1.0)
    return mean * back, correction * back, rstd, scale * back, m2
