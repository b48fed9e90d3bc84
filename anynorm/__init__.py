"""Normalization layers, written once against the Python array API standard."""

# Imported at once and not by a module `__getattr__`: where one is defined, CPython looks up every attribute without its
# inline cache (30 ns, not 7), and a file named as its function is would take the function's place when it is imported.

from anynorm._core.dispatch import fast_paths
from anynorm._core.plan import AxisError
from anynorm.batch_norm import batch_norm, update_running
from anynorm.explain import Route, explain
from anynorm.group_norm import group_norm, instance_norm
from anynorm.layer_norm import layer_norm, rms_norm
from anynorm.layers import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from anynorm.moments import Moments, moments
from anynorm.state import load_state, save_state
from anynorm.vjp import Gradients, vjp
from anynorm.warm_up import warm_up

__all__ = [
    "AxisError",
    "BatchNorm",
    "Gradients",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Moments",
    "RMSNorm",
    "Route",
    "batch_norm",
    "explain",
    "fast_paths",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "load_state",
    "moments",
    "rms_norm",
    "save_state",
    "update_running",
    "vjp",
    "warm_up",
]

__version__ = "0.1.0"
