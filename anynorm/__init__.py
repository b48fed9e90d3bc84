"""Normalization layers, written once against the Python array API standard."""

# Imported at once and not by a module `__getattr__`: where one is defined, CPython looks up every attribute without its
# inline cache (30 ns, not 7), and a file named as its function is would take the function's place when it is imported.

from anynorm._core.dispatch import fast_paths as fast_paths
from anynorm._core.plan import AxisError as AxisError
from anynorm.batch_norm import batch_norm as batch_norm
from anynorm.batch_norm import update_running as update_running
from anynorm.explain import Route as Route
from anynorm.explain import explain as explain
from anynorm.group_norm import group_norm as group_norm
from anynorm.group_norm import instance_norm as instance_norm
from anynorm.layer_norm import layer_norm as layer_norm
from anynorm.layer_norm import rms_norm as rms_norm
from anynorm.layers import BatchNorm as BatchNorm
from anynorm.layers import GroupNorm as GroupNorm
from anynorm.layers import InstanceNorm as InstanceNorm
from anynorm.layers import LayerNorm as LayerNorm
from anynorm.layers import RMSNorm as RMSNorm
from anynorm.moments import Moments as Moments
from anynorm.moments import moments as moments
from anynorm.state import load_state as load_state
from anynorm.state import save_state as save_state
from anynorm.vjp import Gradients as Gradients
from anynorm.vjp import vjp as vjp
from anynorm.warm_up import warm_up as warm_up

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
