"""What adapters call: from a plan and strides to a launch config, and from a config and addresses to a run.

Importing it imports NumPy; numba is imported when a kernel is first run.
"""

from __future__ import annotations

from anynorm_numba._address import address as address
from anynorm_numba._address import addresses as addresses
from anynorm_numba._arrays import PLAIN as PLAIN
from anynorm_numba._arrays import Array as Array
from anynorm_numba._arrays import Given as Given
from anynorm_numba._arrays import Maybe as Maybe
from anynorm_numba._configs import COMPUTE as COMPUTE
from anynorm_numba._configs import LaunchConfig as LaunchConfig
from anynorm_numba._engine import Configs as Configs
from anynorm_numba._engine import apply as apply
from anynorm_numba._engine import backward as backward
from anynorm_numba._engine import compile_all as compile_all
from anynorm_numba._engine import forward as forward
from anynorm_numba._engine import take_given as take_given
from anynorm_numba._engine import upcast_halves as upcast_halves
from anynorm_numba._engine import update_running as update_running
from anynorm_numba._launch import Gradient as Gradient
from anynorm_numba._launch import Launch as Launch
from anynorm_numba._steps import BackwardSteps as BackwardSteps
from anynorm_numba._steps import ForwardSteps as ForwardSteps
from anynorm_numba._steps import Steps as Steps

__all__ = [
    "COMPUTE",
    "PLAIN",
    "Array",
    "BackwardSteps",
    "Configs",
    "ForwardSteps",
    "Given",
    "Gradient",
    "Launch",
    "LaunchConfig",
    "Maybe",
    "Steps",
    "address",
    "addresses",
    "apply",
    "backward",
    "compile_all",
    "forward",
    "take_given",
    "upcast_halves",
    "update_running",
]
