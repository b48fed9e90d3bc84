"""Which modules of a model are norm layers, and for each the class of anynorm's that it may become, or why none.

What a layer computes is found in `_probe.py`; here is what can be told without calling it.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeAlias

import torch
from torch.nn.modules import batchnorm, lazy
from torch.nn.utils import parametrize

from anynorm_torch.nn._modules import CLASSES
from anynorm_torch.nn._operands import is_eps_name
from anynorm_torch.nn._probe import find
from anynorm_torch.nn._rules import Rule, own_class, rule_of, taken
from anynorm_torch.nn._twins import method_of, resized, tensors_of

Verdict: TypeAlias = type[torch.nn.Module] | str | None

_REPLACED = "its forward was replaced on the object itself, as offloading hooks do; accelerate first, put these on then"

# torch's own and whatever derives from them. Of others the name, the code, or eps says that they may be norm layers.
NORMS = (torch.nn.LayerNorm, torch.nn.RMSNorm, torch.nn.GroupNorm, batchnorm._NormBase)
_CALLS = {"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "native_layer_norm", "rsqrt"}
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, type, FunctionType, BuiltinFunctionType)


class Verdicts:
    """What is to become of each module. Layers of one class that differ in length alone are tried once."""

    known: dict[Hashable, Rule | str] = {}  # noqa: RUF012  for all models

    def __init__(self) -> None:
        self._of_this_model: dict[Hashable, Rule | str] = {}

    def of(self, module: torch.nn.Module) -> Verdict:
        """Return the class that a norm layer may become, or why it is left; None for what is no norm layer."""
        own: Any = type(module)
        if own in CLASSES:
            return _REPLACED if "forward" in vars(module) else CLASSES[own]
        if not _is_norm(module) or _has_norms(module):
            return None
        reason = _why_left(module)
        if reason is not None:
            return reason
        rule = self._rule(module)
        if isinstance(rule, Rule):
            return taken(own, rule)
        amid = "" if _is_called_norm(module) else "a norm amid other things: "
        return f"{own.__module__}.{own.__qualname__}: {amid}{rule}"

    def _rule(self, module: torch.nn.Module) -> Rule | str:
        plain = all(_is_plain(value) for _, value in _attributes(module))
        known = self.known if plain else self._of_this_model  # elsewhere an object may have changed meanwhile
        key = signature(module)
        if key not in known:
            known[key] = find(module)
        return known[key]


_FRESH = frozenset(vars(torch.nn.Module()))


def _attributes(module: torch.nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if name not in _FRESH]


def signature(module: torch.nn.Module) -> Hashable:
    """Return all that decides about a layer's rule, without its length."""
    tensors = tensors_of(module)
    length = next((value.shape[-1] for value in tensors.values() if value.ndim), -1)
    shapes = [
        (name, resized(tuple(value.shape), length, -1), value.dtype, name in module._buffers)
        for name, value in tensors.items()
    ]
    attributes = [(name, _hashable(resized(value, length, -1))) for name, value in _attributes(module)]
    submodules = [(name, type(child)) for name, child in module._modules.items()]
    return type(module), type(module).forward, tuple(shapes), tuple(attributes), tuple(submodules)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, tuple | list):
        return tuple([_hashable(part) for part in value])
    return (type(value), value) if _is_plain(value) else id(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(part) for part in value)
    return isinstance(value, _PLAIN)


def _is_norm(module: torch.nn.Module) -> bool:
    """Return whether a module that has no norm layer in it is called one, has an eps, or computes one."""
    own: Any = type(module)
    return _is_called_norm(module) or any(not hasattr(module, name) for name in _names_called(own) & _CALLS)


def _is_called_norm(module: torch.nn.Module) -> bool:
    """Return whether a module without other layers in it is called a norm, or has tensors and an eps."""
    own = type(module)
    if isinstance(module, NORMS):
        return True
    if own.__module__.startswith("torch.nn.utils."):  # norms of weights, which are tensors that a layer has
        return False
    named = "norm" in own.__name__.lower() or (any(map(is_eps_name, vars(module))) and bool(tensors_of(module)))
    return named and not any(True for child in _children(module) for _ in child.parameters())


def _children(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Return submodules, without those that only hold tensors, as Keras's layers have one."""
    holders = (torch.nn.ParameterDict, torch.nn.ParameterList)
    return [child for child in module.children() if not isinstance(child, holders)]


def named_layers(model: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield a model's modules with their names; those of Keras's models too, which torch does not know."""
    for name, module in model.named_modules(prefix=prefix):
        yield name, module
        for layer in getattr(module, "layers", ()) if method_of(type(module)) == "call" else ():
            yield from named_layers(layer, f"{name}.{layer.name}" if name else layer.name)


def _has_norms(module: torch.nn.Module) -> bool:
    inside = [layer for _, layer in named_layers(module) if layer is not module]
    return any(isinstance(child, NORMS) or (not _children(child) and _is_norm(child)) for child in inside)


@functools.cache
def _names_called(cls: Any) -> frozenset[str]:
    """Return the names in the code of a class's methods, but of those that it has from torch."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in ("torch", "builtins"):
            for value in vars(base).values():
                names |= set(value.__code__.co_names) if isinstance(value, FunctionType) else set()
    return frozenset(names)


def _why_left(module: torch.nn.Module) -> str | None:
    """Return why a norm layer stays as it is, whatever its class computes."""
    if own_class(type(module)) is not None or rule_of(type(module)) is not None:
        return "it is anynorm's already"
    if vars(module).keys() & {"forward", "call"}:
        return _REPLACED
    if parametrize.is_parametrized(module):
        return "it is parametrized, which gives it a class of its own; accelerate first, parametrize then"
    if isinstance(module, torch.nn.SyncBatchNorm):
        return "it shares statistics between processes, which anynorm does not"
    if isinstance(module, lazy.LazyModuleMixin):
        return "it is not initialized yet; accelerate after the first batch"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted; accelerate first, script what has no norm layer"
    for name, value in tensors_of(module).items():
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            return f"its {name} is of {type(value).__name__}; accelerate first"
    return None
