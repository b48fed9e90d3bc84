"""CuPy arrays: by the CUDA engine where it can serve a call, else by the formula, on the device of x.

CuPy compiles the engine's kernels and caches them on disk. They run on its current stream.
"""

from anynorm_cupy._backend import CuPyBackend as CuPyBackend
