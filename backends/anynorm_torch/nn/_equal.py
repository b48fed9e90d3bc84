"""Whether two calls of a layer's forward give the same: up to rounding, and in half precision bit for bit.

Bounds are derived from the arithmetic, not chosen so that a layer passes.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from anynorm_torch.nn._twins import Call

Dtypes: TypeAlias = tuple[torch.dtype, torch.dtype | None]  # of x and of the weight

_HALF = (torch.bfloat16, torch.float16)
# A plain sum of some dozens of squares, a root, a product and a sum, in units of the machine epsilon. 1e-14 in float64.
_ULPS = 64
# Gradients sum over all sets, and twice over each.
_GRADIENT_ULPS = 2048


def hostile(x: Tensor) -> list[Tensor]:
    """Return inputs that tell norms apart: ordinary, of about eps, below it, far below, large, far from 0, equal, 0."""
    return [x, x * 1e-3, x * 1e-5, x * 1e-15, x * 3e4, x + 100, torch.full_like(x, 3), torch.zeros_like(x)]


def condition(x: Tensor, *, centres: bool) -> float:
    """Return how often the squares that plain arithmetic sums contain the variance that it takes from them.

    Its error grows by that factor; ours does not. So it is theirs that the bound has to allow for, far from 0.
    """
    if not centres:
        return 1.0
    x = x.double()
    return 1 + (x.square().mean() / (x.var(correction=0) + 1e-6)).item()


def resemble(own: Call, ours: Call) -> bool:
    """Return whether another eps may make results equal: below 0.1, it changes values by a tenth if variances are 1."""
    return own.log == ours.log and own.y.dtype == ours.y.dtype and _near(own.y, ours.y, 0.1)


def same(own: Call, ours: Call, compute: torch.dtype, factor: float) -> bool:
    """Return whether results and buffers are equal up to rounding in the dtype that the layer computes in."""
    if own.log != ours.log or own.buffers.keys() != ours.buffers.keys():
        return False
    share = _ULPS * torch.finfo(compute).eps * factor
    pairs = [(own.y, ours.y), *[(value, ours.buffers[name]) for name, value in own.buffers.items()]]
    return all(_near(a, b, share) for a, b in pairs)


def same_gradients(own: Call, ours: Call, compute: torch.dtype) -> bool:
    """Return whether the same tensors have gradients, equal up to rounding."""
    share = _GRADIENT_ULPS * torch.finfo(compute).eps
    pairs = list(zip(own.gradients, ours.gradients, strict=True))
    return all(a is b is None or (a is not None and b is not None and _near(a, b, share)) for a, b in pairs)


def same_rounding(own: Call, ours: Call, dtypes: Dtypes, compute: torch.dtype) -> bool:
    """Return whether results are of one dtype and rounded alike, but for ties.

    Where half precision is involved, a value that lies as near to the middle between two numbers as float32 errs may go
    either way, here or there: by 64 units of float32, one in 130 of float16 at most, measured one in 10000. Of another
    order of rounding, one in four differs.
    """
    if own.y.dtype != ours.y.dtype:
        return False
    error, largest = (own.y.double() - ours.y.double()).abs(), ours.y.double().abs().max()
    wide = torch.finfo(compute if own.y.dtype == torch.float64 else torch.float32).eps
    differ = error > (0 if own.y.dtype in _HALF else _ULPS * wide * largest)
    coarse = max([wide, *[torch.finfo(dtype).eps for dtype in dtypes if dtype in _HALF]])
    ties = 1 / 200 if coarse > wide else 0
    return differ.double().mean().item() <= ties and bool((error <= 4 * coarse * largest).all())


def _near(a: Tensor, b: Tensor, share: float) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    return bool(((a - b).abs() <= share * b.abs().max()).all())
