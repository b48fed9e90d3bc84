"""torch tensors: when an engine may read their memory, and what the formula needs of torch itself.

The formula serves torch under its compiler and its functional transforms, and wherever an engine may not.
"""

from anynorm_torch._formula import compiling as compiling
from anynorm_torch._formula import constant as constant
from anynorm_torch._formula import sum as sum
from anynorm_torch._memory import declines as declines
from anynorm_torch._memory import refuses as refuses
from anynorm_torch._memory import refuses_out as refuses_out
from anynorm_torch._memory import unreadable as unreadable
