"""A module's class and another for it. Only the class changes: the module stays the object that it is."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Swap(NamedTuple):
    """A module, its own class, and anynorm's for it."""

    module: torch.nn.Module
    own: type[torch.nn.Module]
    ours: type[torch.nn.Module]

    def apply(self) -> None:
        """Give the module anynorm's class, unless something else has changed it."""
        if type(self.module) is self.own:
            object.__setattr__(self.module, "__class__", self.ours)  # Keras's layers have a __setattr__ of their own

    def revert(self) -> bool:
        """Give the module its own class back, and return whether it has it: not if something else has changed it."""
        if type(self.module) is self.ours:
            object.__setattr__(self.module, "__class__", self.own)
        return type(self.module) is self.own
