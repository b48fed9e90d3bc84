"""torch tensors: when an engine may read their memory, and what the formula needs of torch itself.

The formula serves torch under its compiler and its functional transforms, and wherever an engine may not.
What users of torch.nn call is in the package `anynorm_torch.nn`, which nothing here imports.
"""

import re
from typing import TYPE_CHECKING, NoReturn

from anynorm_torch._backend import TorchBackend as TorchBackend

# What `anynorm_torch.nn` has.
_LAYERS = r"(Batch|Instance)Norm[123]d|(Layer|RMS|Group)Norm|Acceleration|accelerate|frozen_statistics|torch_layers"

if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> NoReturn:
        """Say where the torch modules are when they are looked for here, or before their package is imported."""
        msg = f"module 'anynorm_torch' has no attribute {name!r}"
        if name == "nn":
            msg += ", because nothing imported it: import anynorm_torch.nn"
        elif re.fullmatch(_LAYERS, name):
            msg += f". It is anynorm_torch.nn.{name}: import anynorm_torch.nn"
        raise AttributeError(msg, name=name)
