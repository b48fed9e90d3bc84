"""CuPy arrays: by the CUDA engine where it fits, else by the formula, on the array's own device.

CuPy compiles the engine's kernels and keeps them on disk. They run on its current stream.
"""

from anynorm_cupy._backend import CuPyBackend as CuPyBackend
