"""torch tensors: when an engine may read their memory, and what the formula needs of torch itself.

The formula serves torch under its compiler and its functional transforms, and wherever an engine may not.
For those who use torch.nn: its normalization layers by anynorm, and `accelerate`, which swaps them into a model.
"""

from anynorm_torch._accelerate import Acceleration as Acceleration
from anynorm_torch._accelerate import accelerate as accelerate
from anynorm_torch._autograd import backward as backward
from anynorm_torch._derivatives import normalize as normalize
from anynorm_torch._derivatives import spread as spread
from anynorm_torch._engine import again as again
from anynorm_torch._engine import declines as declines
from anynorm_torch._engine import forward as forward
from anynorm_torch._engine import kind as kind
from anynorm_torch._engine import moments as moments
from anynorm_torch._engine import path as path
from anynorm_torch._formula import compiling as compiling
from anynorm_torch._formula import constant as constant
from anynorm_torch._formula import holds as holds
from anynorm_torch._formula import sum as sum
from anynorm_torch._formula import writable as writable
from anynorm_torch._memory import laid_out_like as laid_out_like
from anynorm_torch._memory import refuses as refuses
from anynorm_torch._memory import refuses_out as refuses_out
from anynorm_torch._memory import traced as traced
from anynorm_torch._memory import unreadable as unreadable
from anynorm_torch._modules import BatchNorm1d as BatchNorm1d
from anynorm_torch._modules import BatchNorm2d as BatchNorm2d
from anynorm_torch._modules import BatchNorm3d as BatchNorm3d
from anynorm_torch._modules import GroupNorm as GroupNorm
from anynorm_torch._modules import InstanceNorm1d as InstanceNorm1d
from anynorm_torch._modules import InstanceNorm2d as InstanceNorm2d
from anynorm_torch._modules import InstanceNorm3d as InstanceNorm3d
from anynorm_torch._modules import LayerNorm as LayerNorm
from anynorm_torch._modules import RMSNorm as RMSNorm
from anynorm_torch._modules import frozen_statistics as frozen_statistics

decides_within = True  # `forward` itself says why it cannot: asking first would take as long again

# What users call. The rest is what anynorm asks of a backend.
__all__ = [
    "Acceleration",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "accelerate",
    "frozen_statistics",
]


def __dir__() -> list[str]:
    """Return what completion offers: what users call."""
    return __all__
