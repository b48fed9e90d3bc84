"""CuPy arrays: by the CUDA engine where it fits, else by the formula, on the array's own device.

CuPy compiles the engine's kernels and keeps them on disk. They run on its current stream.
"""

from anynorm_cupy._engine import again as again
from anynorm_cupy._engine import forward as forward
from anynorm_cupy._engine import kind as kind
from anynorm_cupy._engine import moments as moments
from anynorm_cupy._engine import path as path
from anynorm_cupy._gradients import backward as backward
from anynorm_cupy._memory import laid_out_like as laid_out_like
from anynorm_cupy._memory import refuses_out as refuses_out
from anynorm_cupy._memory import there as there
from anynorm_cupy._sums import sum as sum
