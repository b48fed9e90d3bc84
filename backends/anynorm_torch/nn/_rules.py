"""What a norm layer of another library computes, as a rule, and the classes that compute it by anynorm.

No layer is looked at here: `_probe.py` finds the rule, `_accelerate.py` gives a layer the class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.modules import batchnorm, instancenorm

import anynorm as an
from anynorm_torch.nn._equal import Dtypes
from anynorm_torch.nn._modules import _BatchNorm, _InstanceNorm

Norm: TypeAlias = Callable[[Any, "Rule", Tensor, Any, Any], Tensor]  # of layer, rule, x, weight, bias


@dataclass(frozen=True)
class Rule:
    """How a class's forward follows from one of anynorm's functions. Names are attributes of the layer.

    Attributes
    ----------
    norm : str
        One of NORMS.
    eps : str or float
        An attribute, or a number that the class has in its code.
    weight, bias, mean, var : str or None
        Parameters and buffers; mean and var are statistics given.
    axis : tuple of int
        The axes that layer and RMS norm reduce.
    groups : str or int
        An attribute, or a number: group norm's number of groups.
    then : tuple of str
        Submodules that are called on the result, in turn.
    orders : tuple of pairs
        For dtypes of x and weight, one of ORDERS: what is rounded when. The layer's own forward serves other dtypes.
    ranks : tuple of int
        Likewise, the numbers of axes that x may have.

    """

    norm: str
    eps: str | float
    weight: str | None = None
    bias: str | None = None
    mean: str | None = None
    var: str | None = None
    axis: tuple[int, ...] = (-1,)
    groups: str | int = 1
    then: tuple[str, ...] = ()
    orders: tuple[tuple[Dtypes, str], ...] = ()
    ranks: tuple[int, ...] = ()

    @property
    def centres(self) -> bool:
        """Return whether a mean of x is taken from x."""
        return self.norm != "rms_norm" and self.mean is None

    def __str__(self) -> str:
        order = dict.fromkeys([ORDERS[order][1] for (x, weight), order in self.orders if x == weight])
        words = [self.norm, *[words for words in order if words], *[f"then {name}" for name in self.then]]
        return ", ".join(words)


def _value(layer: Any, name: str | None) -> Any:
    return None if name is None else getattr(layer, name)


def _eps(layer: Any, rule: Rule, x: Tensor) -> Any:
    eps = getattr(layer, rule.eps) if isinstance(rule.eps, str) else rule.eps
    return torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps if eps is None else eps


def _layer_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return an.layer_norm(x, weight, bias, axis=rule.axis, eps=_eps(layer, rule, x))


def _rms_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return an.rms_norm(x, weight, bias, axis=rule.axis, eps=_eps(layer, rule, x))


def _group_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    groups = getattr(layer, rule.groups) if isinstance(rule.groups, str) else rule.groups
    return an.group_norm(x, groups, weight, bias, eps=_eps(layer, rule, x))


def _instance_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return an.instance_norm(x, weight=weight, bias=bias, eps=_eps(layer, rule, x))


def _batch_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    mean, var = _value(layer, rule.mean), _value(layer, rule.var)
    return an.batch_norm(x, weight=weight, bias=bias, mean=mean, var=var, eps=_eps(layer, rule, x))


def _tracking_batch_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:  # noqa: ARG001
    return _BatchNorm.forward(layer, x)


def _tracking_instance_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:  # noqa: ARG001
    return instancenorm._InstanceNorm.forward(layer, x)  # which calls _InstanceNorm's methods of ours


# The two that track running statistics read the attributes that torch's classes have.
TRACKING: dict[str, tuple[type[torch.nn.Module], type[torch.nn.Module]]] = {
    "tracking batch_norm": (batchnorm._BatchNorm, _BatchNorm),
    "tracking instance_norm": (instancenorm._InstanceNorm, _InstanceNorm),
}
NORMS: dict[str, Norm] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
    "tracking batch_norm": _tracking_batch_norm,
    "tracking instance_norm": _tracking_instance_norm,
}


def _weighted(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = xhat if weight is None else xhat * weight
    return y if bias is None else y + bias


def _after(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return norm(layer, rule, x, weight, bias)


def _before(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return _weighted(norm(layer, rule, x, None, None), weight, bias)


def _promoted(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return norm(layer, rule, x, weight, bias)


def _before_in_weights(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return _weighted(norm(layer, rule, wide, None, None).to(weight.dtype), weight, bias)


def _plus_one(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return norm(layer, rule, x, wide + 1, bias)


def _plus_one_rounded(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return norm(layer, rule, x, weight + 1, bias)


# How the function found, weight and rounding go together, with words for it: torch's own way, which is ours, has none.
ORDERS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "after": (_after, ""),
    "before": (_before, "rounded before the weight"),
    "plus one": (_plus_one, "1 + weight"),
    "plus one, rounded": (_plus_one_rounded, "1 + weight"),
    "promoted": (_promoted, ""),
    "before, in the weight's": (_before_in_weights, "rounded before the weight"),
}


def by_rule(own: type[torch.nn.Module], rule: Rule) -> type[torch.nn.Module]:
    """Return the subclass of a layer's class whose forward is anynorm's by a rule."""
    norm, ranks = NORMS[rule.norm], rule.ranks
    orders = {dtypes: ORDERS[order][0] for dtypes, order in rule.orders}

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(x, Tensor) or x.ndim not in ranks or x.is_nested:
            return own.forward(self, *args, **kwargs)
        weight = _value(self, rule.weight)
        order = orders.get((x.dtype, None if weight is None else weight.dtype))
        if order is None:
            return own.forward(self, x)
        y = order(norm, self, rule, x, weight, _value(self, rule.bias))
        for name in rule.then:
            y = getattr(self, name)(y)
        return y

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807  as pickle and copy call it
        reduced: Any = own.__reduce_ex__(self, max(protocol, 2))
        return _remade, (own, rule), *reduced[2:]

    bases = (TRACKING[rule.norm][1], own) if rule.norm in TRACKING else (own,)
    names = {"forward": forward, "__reduce_ex__": __reduce_ex__, "__module__": own.__module__, "__doc__": own.__doc__}
    new: Any = type(own.__name__, bases, {**names, "__qualname__": own.__qualname__, "_anynorm": rule})
    return new  # type: ignore[no-any-return]


@functools.cache
def taken(own: Any, rule: Rule) -> type[torch.nn.Module]:
    """Return `by_rule`'s class, the same one for all layers of a class that follow a rule."""
    return by_rule(own, rule)


def _remade(own: Any, rule: Rule) -> torch.nn.Module:
    """Return an empty layer, which pickle and copy then fill."""
    return object.__new__(taken(own, rule))
