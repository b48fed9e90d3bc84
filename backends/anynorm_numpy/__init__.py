"""NumPy arrays: by the CPU engine where it is installed and fits, else in NumPy alone, block by block in cache."""

from anynorm_numpy._backward import backward as backward
from anynorm_numpy._backward import quiet as quiet
from anynorm_numpy._normalize import again as again
from anynorm_numpy._normalize import declines as declines
from anynorm_numpy._normalize import forward as forward
from anynorm_numpy._normalize import kind as kind
from anynorm_numpy._normalize import laid_out_like as laid_out_like
from anynorm_numpy._normalize import moments as moments
from anynorm_numpy._normalize import path as path
from anynorm_numpy._normalize import refuses_out as refuses_out

places_itself = True  # there is one device
