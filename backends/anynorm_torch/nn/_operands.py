"""What a layer's attributes may mean: which tensor is weight, bias, mean or variance; which numbers are eps or groups.

Guesses, by names and shapes, of what to try; whether they are right is decided by numbers, in `_probe.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from anynorm_torch.nn._twins import Odd, tensors_of

_PARTS = {"bias": ("bias", "beta", "shift"), "mean": ("mean",), "var": ("var",)}
# What stands in the code of classes that have no attribute for it.
_EPS = (1e-5, 1e-6, 1e-12, 1e-8)


@dataclass(frozen=True)
class Operands:
    """Names of a layer's tensors, and names or values of its numbers, the likely ones first."""

    weight: str | None
    bias: str | None
    mean: str | None
    var: str | None
    eps: tuple[str | float, ...]
    groups: tuple[str | int, ...]
    lengths: tuple[int, ...]  # of the axis of features
    short: int  # a small length that groups divide too


def operands(layer: torch.nn.Module) -> Operands:
    """Return what a layer's attributes may be; raise Odd where a norm layer has no such tensors."""
    roles: dict[str, str] = {}
    lengths: list[int] = []
    for name, value in tensors_of(layer).items():
        if not value.is_floating_point():
            continue
        role = next((role for role, parts in _PARTS.items() if any(part in name for part in parts)), "weight")
        if role in roles or value.ndim == 0:
            msg = f"it has {roles[role]} and {name}" if role in roles else f"its {name} is one number"
            raise Odd(msg)
        roles[role] = name
        lengths.append(value.shape[-1])
    numbers = {name: value for name, value in vars(layer).items() if not name.startswith("__")}
    lengths = lengths or _possible_lengths(numbers)
    groups = [name for name, value in numbers.items() if _is_size(value) and lengths[0] % value == 0]
    common = math.lcm(*[numbers[name] for name in groups if numbers[name] < lengths[0]])
    return Operands(
        weight=roles.get("weight"),
        bias=roles.get("bias"),
        mean=roles.get("mean"),
        var=roles.get("var"),
        eps=(*[name for name, value in numbers.items() if _may_be_eps(name, value)], *_EPS),
        groups=(*groups, 1),
        lengths=tuple(dict.fromkeys(lengths)),
        short=common * max(2, -(-24 // common)),
    )


def _possible_lengths(numbers: dict[str, Any]) -> list[int]:
    """Return the lengths that a layer without parameters may be made for; the last, if it is made for any."""
    last = [value[-1] if isinstance(value, tuple) and value else value for value in numbers.values()]
    return [value for value in last if _is_size(value) and 1 < value <= 65536] + [16]


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def is_eps_name(name: str) -> bool:
    """Return whether an attribute is called eps, variance_epsilon and the like; steps is not."""
    return re.search(r"(^|_)eps(ilon)?(_|$)", name) is not None


def _may_be_eps(name: str, value: Any) -> bool:
    if type(value) is float:
        return 0 < value < 0.1 or (value == 0 and is_eps_name(name))
    return value is None and is_eps_name(name)
