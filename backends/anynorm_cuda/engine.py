"""What adapters call: plan and strides to a launch config, and a launch config run on addresses of a device.

A `Launcher`, one for each device, loads and runs the launches of a config. `launcher` returns one that uses the CUDA
driver; CuPy's adapter makes its own, which uses CuPy. Importing this module imports no CUDA.
"""

from __future__ import annotations

from anynorm_cuda._build import WIDEST as WIDEST
from anynorm_cuda._build import Dtypes as Dtypes
from anynorm_cuda._build import LaunchConfig as LaunchConfig
from anynorm_cuda._build import Step as Step
from anynorm_cuda._compile import OPTIONS as OPTIONS
from anynorm_cuda._configure import Configs as Configs
from anynorm_cuda._configure import configure as configure
from anynorm_cuda._driver import facts as facts
from anynorm_cuda._driver import launcher as launcher
from anynorm_cuda._engine import Run as Run
from anynorm_cuda._engine import backward as backward
from anynorm_cuda._engine import forward as forward
from anynorm_cuda._launcher import Launcher as Launcher
from anynorm_cuda._launcher import Loaded as Loaded
from anynorm_cuda._launcher import RefusedError as RefusedError
from anynorm_cuda._launcher import too_old as too_old
from anynorm_cuda._passes import BackwardPass as BackwardPass
from anynorm_cuda._passes import EnginePass as EnginePass
from anynorm_cuda._passes import ForwardPass as ForwardPass
from anynorm_cuda._program import CompileError as CompileError
from anynorm_cuda._program import Kernel as Kernel
from anynorm_cuda._program import Launch as Launch
from anynorm_cuda._thread_groups import Device as Device
