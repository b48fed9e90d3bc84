"""Classes of layers that are anynorm's for large input alone: for small input a layer runs its own forward."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from anynorm_torch._ops import OPS
from anynorm_torch.nn._modules import CLASSES, _InstanceNorm
from anynorm_torch.nn._neighbours import pass_of
from anynorm_torch.nn._rules import Rule, own_class, rule_of, taken
from anynorm_torch.nn._stand_ins import stand_in
from anynorm_torch.nn._twins import method_of


@functools.cache
def from_size_on(ours: Any, least: int) -> type[torch.nn.Module]:
    """Return the subclass of a class of anynorm's whose layers compute input of fewer elements by their own forward."""
    own: Any = own_class(ours)
    first = list(inspect.signature(getattr(own, method_of(own))).parameters)[1]
    # Of instance norm torch's forward stays, which calls this.
    method = "_apply_instance_norm" if issubclass(ours, _InstanceNorm) else method_of(own)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        small = is_small(self, args[0] if args else kwargs.get(first))
        return getattr(own if small else ours, method)(self, *args, **kwargs)

    def _activated(self: Any, x: Any, activation: Any) -> Any:
        return None if is_small(self, x) else activated(self, x, activation)

    def is_small(layer: Any, x: Any) -> bool:
        if not isinstance(x, Tensor) or x.is_nested or not OPS.holds(x.numel() < least):
            return False
        # torch's instance norm would move statistics that `frozen_statistics` keeps.
        keeps = isinstance(layer, _InstanceNorm) and layer.running_mean is not None and not layer.track_running_stats
        return not (keeps and layer.training)

    activated: Any = pass_of(ours)
    names = {method: forward} if activated is None else {method: forward, "_activated": _activated}
    return stand_in(own, (ours,), names, _remade, own, rule_of(ours), least)


def _remade(own: Any, rule: Rule | None, least: int) -> torch.nn.Module:
    """Return an empty layer, which pickle and copy then fill."""
    ours: Any = CLASSES[own] if rule is None else taken(own, rule)
    return object.__new__(from_size_on(ours, least))
