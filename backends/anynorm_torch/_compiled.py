"""The formula's `normalize` for programs that torch.compile makes for a CPU, where float64 between registers is cheap.

There three loops fuse with what lies around them: sums, squares, results. In float32 it would take six, because a mean
has a rounding error to be taken out, and sums need blocks. Nothing here is run eagerly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anynorm.backend import FLOAT32, Plan, Residuals, formula


def fits(z: Tensor) -> bool:
    """Say whether `normalize` serves z. Exporters keep to float32, as what their programs are for may have no other."""
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and z.dtype == torch.float32
        and z.device.type == "cpu"
    )


def normalize(plan: Plan, z: Tensor, eps: float) -> tuple[Tensor, Residuals]:
    """Return x̂ of a float32 z, and the residuals. In float64 no square of a float32 number leaves the range."""
    wide, n = z.double(), plan.n
    total = torch.sum(wide, dim=plan.reduced, keepdim=True)
    mean = total / n if plan.centres else torch.zeros_like(total)
    e = wide - mean if plan.centres else wide
    m2 = torch.sum(e * e, dim=plan.reduced, keepdim=True)
    v = m2 / n + eps
    zero = v == 0
    rstd = torch.where(zero, formula.rsqrt_eps(eps), 1 / torch.sqrt(torch.where(zero, 1.0, v)))
    scale = torch.where(m2 == 0, 1.0, _scale(mean * mean + m2 / n, eps))
    scaled = mean * scale
    rounded = scaled.to(z.dtype)
    narrow = [value.to(z.dtype) for value in (scaled - rounded, rstd / scale, scale, m2 * scale * scale)]
    return (e * rstd).to(z.dtype), Residuals(rounded, *narrow)


def _scale(square: Tensor, eps: float) -> Tensor:
    """Return the power of two by which the formula would scale sets of this mean square: what it keeps is float32."""
    scale = torch.ones_like(square)
    for rescue in formula.RESCUES[FLOAT32]:
        if eps < rescue.eps_below:
            scale = torch.where(rescue.beyond(square, rescue.bound**2), rescue.scale, scale)
    return scale
