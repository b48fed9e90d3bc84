"""torch.nn's normalization layers by anynorm, and `accelerate`, which swaps them into a model. For users alone.

The adapter beside it never imports this package: loading it is the user's decision.
"""

from anynorm_torch.nn._accelerate import Acceleration as Acceleration
from anynorm_torch.nn._accelerate import accelerate as accelerate
from anynorm_torch.nn._modules import BatchNorm1d as BatchNorm1d
from anynorm_torch.nn._modules import BatchNorm2d as BatchNorm2d
from anynorm_torch.nn._modules import BatchNorm3d as BatchNorm3d
from anynorm_torch.nn._modules import GroupNorm as GroupNorm
from anynorm_torch.nn._modules import InstanceNorm1d as InstanceNorm1d
from anynorm_torch.nn._modules import InstanceNorm2d as InstanceNorm2d
from anynorm_torch.nn._modules import InstanceNorm3d as InstanceNorm3d
from anynorm_torch.nn._modules import LayerNorm as LayerNorm
from anynorm_torch.nn._modules import RMSNorm as RMSNorm
from anynorm_torch.nn._modules import frozen_statistics as frozen_statistics
from anynorm_torch.nn._torch_layers import torch_layers as torch_layers

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
    "torch_layers",
]
