"""torch tensors: when an engine may read their memory, and what the formula needs of torch itself.

The formula serves torch under its compiler and its functional transforms, and wherever an engine may not.
What users of torch.nn call is in the package `anynorm_torch.nn`, which nothing here imports.
"""

import re
from typing import TYPE_CHECKING, NoReturn

from anynorm_torch._autograd import backward as backward
from anynorm_torch._derivatives import normalize as normalize
from anynorm_torch._derivatives import spread as spread
from anynorm_torch._engine import again as again
from anynorm_torch._engine import declines as declines
from anynorm_torch._engine import forward as forward
from anynorm_torch._engine import kind as kind
from anynorm_torch._engine import moments as moments
from anynorm_torch._engine import path as path
from anynorm_torch._formula import compiling as compiling
from anynorm_torch._formula import constant as constant
from anynorm_torch._formula import holds as holds
from anynorm_torch._formula import sum as sum
from anynorm_torch._formula import writable as writable
from anynorm_torch._memory import laid_out_like as laid_out_like
from anynorm_torch._memory import refuses as refuses
from anynorm_torch._memory import refuses_out as refuses_out
from anynorm_torch._memory import traced as traced
from anynorm_torch._memory import unreadable as unreadable

decides_within = True  # `forward` itself says why it cannot: asking first would take as long again

# What `anynorm_torch.nn` has.
_LAYERS = r"(Batch|Instance)Norm[123]d|(Layer|RMS|Group)Norm|Acceleration|accelerate|frozen_statistics"

if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> NoReturn:
        """Say where the torch modules are when they are looked for here, or before their package is imported."""
        msg = f"module 'anynorm_torch' has no attribute {name!r}"
        if name == "nn":
            msg += ", because nothing imported it: import anynorm_torch.nn"
        elif re.fullmatch(_LAYERS, name):
            msg += f". It is anynorm_torch.nn.{name}: import anynorm_torch.nn"
        raise AttributeError(msg, name=name)
