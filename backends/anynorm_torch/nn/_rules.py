"""What a norm layer of another library computes, as a rule, and the classes that compute it by anynorm.

No layer is looked at here: `_probe.py` finds the rule, `_accelerate.py` gives a layer the class.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.modules import batchnorm, instancenorm

import anynorm as an
from anynorm_torch.nn._equal import Dtypes
from anynorm_torch.nn._modules import Activation, _BatchNorm, _InstanceNorm, batch_normalized
from anynorm_torch.nn._neighbours import activation_after
from anynorm_torch.nn._stand_ins import stand_in
from anynorm_torch.nn._twins import method_of, tensor_in

Norm: TypeAlias = Callable[..., Tensor]  # of layer, rule, x, weight, bias; those in ACTIVATED of an activation too


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
        The axes that layer and RMS norm reduce; that of the channels for the others.
    groups : str or int
        An attribute, or a number: of groups, or of what is in one.
    gate : str or None
        One of GATES, applied to a second tensor that the result, or x, is multiplied by.
    then : tuple of str
        Submodules that are called on the result, in turn.
    orders : tuple of pairs
        For dtypes of x and weight, one of ORDERS: what is rounded when. The layer's own forward serves other dtypes.
    ranks : tuple of int
        Likewise, the numbers of axes that x may have.
    memory : tuple of tuples of int
        Orders of axes, outermost first, in which the layer's results lie in memory whatever the order of x's: what
        follows in the model is made for it.

    """

    norm: str
    eps: str | float
    weight: str | None = None
    bias: str | None = None
    mean: str | None = None
    var: str | None = None
    axis: tuple[int, ...] = (-1,)
    groups: str | int = 1
    gate: str | None = None
    then: tuple[str, ...] = ()
    orders: tuple[tuple[Dtypes, str], ...] = ()
    ranks: tuple[int, ...] = ()
    memory: tuple[tuple[int, ...], ...] = ()

    @property
    def centres(self) -> bool:
        """Return whether a mean of x is taken from x."""
        return self.norm != "rms_norm" and self.mean is None

    def __str__(self) -> str:
        alike = [order for (x, weight), order in self.orders if x == weight]
        words = [self.norm, *[ORDERS[order][1] for order in dict.fromkeys(alike)]]
        if self.gate is not None:
            words.append(f"{'of x times' if alike[0].startswith('gated x') else 'times'} {self.gate} of a gate")
        words += [f"then {name}" for name in self.then]
        return ", ".join([word for word in dict.fromkeys(words) if word])


def _value(layer: Any, name: str | None) -> Any:
    return None if name is None else tensor_in(getattr(layer, name))


def _eps(layer: Any, rule: Rule, x: Tensor) -> Any:
    eps = getattr(layer, rule.eps) if isinstance(rule.eps, str) else rule.eps
    return torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps if eps is None else eps


def _layer_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return an.layer_norm(x, weight, bias, axis=rule.axis, eps=_eps(layer, rule, x))


def _rms_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return an.rms_norm(x, weight, bias, axis=rule.axis, eps=_eps(layer, rule, x))


def _groups(layer: Any, rule: Rule) -> int:
    return getattr(layer, rule.groups) if isinstance(rule.groups, str) else rule.groups


def _group_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any, activation: Activation = None) -> Tensor:
    groups, axis, eps = _groups(layer, rule), rule.axis[0], _eps(layer, rule, x)
    return an.group_norm(x, groups, weight, bias, channel_axis=axis, eps=eps, activation=activation)


def _rms_norm_of_groups(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    groups = _groups(layer, rule)
    return _grouped(layer, rule, x, (groups, x.shape[-1] // groups), weight, bias)


def _rms_norm_of_groups_by_size(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    size = _groups(layer, rule)
    return _grouped(layer, rule, x, (x.shape[-1] // size, size), weight, bias)


def _grouped(layer: Any, rule: Rule, x: Tensor, parts: tuple[int, int], weight: Any, bias: Any) -> Tensor:
    along = (1,) * (x.ndim - 1) + parts
    weight, bias = [None if value is None else value.reshape(along) for value in (weight, bias)]
    return an.rms_norm(x.reshape(*x.shape[:-1], *parts), weight, bias, eps=_eps(layer, rule, x)).reshape(x.shape)


def _instance_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any, activation: Activation = None) -> Tensor:
    axis, eps = rule.axis[0], _eps(layer, rule, x)
    return an.instance_norm(x, weight=weight, bias=bias, channel_axis=axis, eps=eps, activation=activation)


def _batch_norm(layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any, activation: Activation = None) -> Tensor:
    given: Any = {"mean": _value(layer, rule.mean), "var": _value(layer, rule.var)}
    more: Any = {"channel_axis": rule.axis[0], "eps": _eps(layer, rule, x), "activation": activation}
    y: Tensor = an.batch_norm(x, weight=weight, bias=bias, **given, **more)
    return y


def _tracking_batch_norm(
    layer: Any,
    rule: Rule,  # noqa: ARG001
    x: Tensor,
    weight: Any,  # noqa: ARG001
    bias: Any,  # noqa: ARG001
    activation: Activation = None,
) -> Tensor:
    return batch_normalized(layer, x, activation)


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
    "rms_norm of groups": _rms_norm_of_groups,
    "rms_norm of groups by their size": _rms_norm_of_groups_by_size,
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
    "tracking batch_norm": _tracking_batch_norm,
    "tracking instance_norm": _tracking_instance_norm,
}
ACTIVATED = ("group_norm", "instance_norm", "batch_norm", "tracking batch_norm")


def _weighted(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = xhat if weight is None else xhat * weight
    return y if bias is None else y + bias


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _after(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return norm(layer, rule, x, weight, bias)


def _before(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return _weighted(norm(layer, rule, x, None, None), weight, bias)


def _before_in_weights(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return _weighted(norm(layer, rule, _wide(x), None, None).to(weight.dtype), weight, bias)


def _plus_one(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return norm(layer, rule, x, _wide(weight) + 1, bias)


def _plus_one_rounded(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return norm(layer, rule, x, weight + 1, bias)


def _promoted(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any) -> Tensor:
    return norm(layer, rule, _wide(x), weight, bias)


def _gated_x_after(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any, gate: Tensor) -> Tensor:
    return norm(layer, rule, _wide(x) * _open(rule, gate), weight, bias).to(x.dtype)


def _gated_x_before(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any, gate: Tensor) -> Tensor:
    return _weighted(norm(layer, rule, _wide(x) * _open(rule, gate), None, None).to(x.dtype), weight, bias)


def _gated_after(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any, gate: Tensor) -> Tensor:
    return (norm(layer, rule, _wide(x), weight, bias) * _open(rule, gate)).to(x.dtype)


def _gated_before(norm: Norm, layer: Any, rule: Rule, x: Tensor, weight: Any, bias: Any, gate: Tensor) -> Tensor:
    return (_weighted(norm(layer, rule, x, None, None), weight, bias) * _open(rule, gate)).to(x.dtype)


def _open(rule: Rule, gate: Tensor) -> Tensor:
    return GATES[rule.gate or ""](_wide(gate))


GATES: dict[str, Callable[[Tensor], Tensor]] = {"silu": torch.nn.functional.silu, "sigmoid": torch.sigmoid}
# How the function found, weight and rounding go together, with words for it: torch's own way, which is ours, has none.
ORDERS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "after": (_after, ""),
    "before": (_before, "rounded before the weight"),
    "plus one": (_plus_one, "1 + weight"),
    "plus one, rounded": (_plus_one_rounded, "1 + weight"),
    "promoted": (_promoted, ""),
    "before, in the weight's": (_before_in_weights, "rounded before the weight"),
    "gated x, after": (_gated_x_after, ""),
    "gated x, before": (_gated_x_before, "rounded before the weight"),
    "gated, after": (_gated_after, ""),
    "gated, before": (_gated_before, "rounded before the weight"),
}


def by_rule(own: type[torch.nn.Module], rule: Rule, otherwise: Callable[..., Any]) -> type[torch.nn.Module]:
    """Return the subclass of a layer's class whose forward is anynorm's by a rule, and another where none is known."""
    method, norm, ranks, tensors = method_of(own), NORMS[rule.norm], rule.ranks, 1 if rule.gate is None else 2
    orders = {dtypes: ORDERS[order][0] for dtypes, order in rule.orders}
    memory = {len(axes): axes for axes in rule.memory}
    more = list(inspect.signature(getattr(own, method)).parameters.values())[1 + tensors :]
    optional = all(value.default is None or value.kind is value.VAR_KEYWORD for value in more)

    def served(self: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return one of ORDERS, x, weight and bias; None for input of which none is known."""
        if len(given) != tensors or not _tried(given, ranks):
            return None
        x, weight = given[0], _value(self, rule.weight)
        order = orders.get((x.dtype, None if weight is None else weight.dtype))
        if order is None:
            return None
        return order, _in_order(x, memory[x.ndim]) if x.ndim in memory else x, weight, _value(self, rule.bias)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plain = not kwargs and len(args) == tensors
        given = args if plain else _said(args, kwargs) if optional else ()
        # A wrapper around the forward calls this one also when the layer is of its own class again.
        found = served(self, given) if isinstance(self, new) else None
        if found is None:
            return otherwise(self, *args, **kwargs)
        order, x, weight, bias = found
        activation, then = None, rule.then
        if order is _after and rule.norm in ACTIVATED and x.is_cpu:  # CUDA's kernels apply no activation
            activation, done = activation_after([getattr(self, name) for name in then])
            then = then[done:]
        if activation is None:
            y = order(norm, self, rule, x, weight, bias, *given[1:])
        else:
            y = norm(self, rule, x, weight, bias, activation)
        for name in then:
            y = getattr(self, name)(y)
        return y

    def _activated(self: Any, x: Any, activation: Activation) -> Any:
        order, x, weight, bias = served(self, (x,)) or (None, x, None, None)
        return norm(self, rule, x, weight, bias, activation) if order is _after else None

    bases = (TRACKING[rule.norm][1], own) if rule.norm in TRACKING else (own,)
    names = {method: forward, "_anynorm": rule}
    if rule.norm in ACTIVATED and method == "forward" and not rule.then:
        names["_activated"] = _activated
    new: Any = stand_in(own, bases, names, _remade, own, rule)
    return new  # type: ignore[no-any-return]


def _in_order(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return x with its axes in that order in memory; our results then lie likewise."""
    turned = x.permute(axes)
    if turned.is_contiguous():
        return x
    back = tuple([axes.index(axis) for axis in range(len(axes))])
    return turned.contiguous().permute(back)


def _said(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return the arguments without those that are None; none where one is given by name.

    Keras says training=False of what is not trained.
    """
    for name, value in kwargs.items():
        if value is not None and (name, value) != ("training", False):
            return ()
    return tuple([value for value in args if value is not None])


def _tried(tensors: tuple[Any, ...], ranks: tuple[int, ...]) -> bool:
    """Return whether a layer was tried with such arguments: tensors of one shape and dtype."""
    x = tensors[0]
    if not isinstance(x, Tensor) or x.ndim not in ranks or x.is_nested:
        return False
    for gate in tensors[1:]:
        if not isinstance(gate, Tensor) or gate.shape != x.shape or gate.dtype != x.dtype:
            return False
    return True


@functools.cache
def taken(own: Any, rule: Rule) -> type[torch.nn.Module]:
    """Return the class for layers that follow a rule: one for all of them. Other input has their own forward."""
    return by_rule(own, rule, getattr(own, method_of(own)))


def own_class(cls: type[torch.nn.Module]) -> type[torch.nn.Module] | None:
    """Return the class that layers of a class of anynorm's had, or stand for; None for other classes."""
    return vars(cls).get("_anynorm_own")


def rule_of(cls: type[torch.nn.Module]) -> Rule | None:
    """Return the rule by which a class of anynorm's computes; those that stand for torch's own have none."""
    return getattr(cls, "_anynorm", None)


def _remade(own: Any, rule: Rule) -> torch.nn.Module:
    """Return an empty layer, which pickle and copy then fill."""
    return object.__new__(taken(own, rule))
