"""NumPy arrays: by the CPU engine where it is installed and fits, else in NumPy alone, block by block in cache."""

from anynorm_numpy._backend import NumPyBackend as NumPyBackend
