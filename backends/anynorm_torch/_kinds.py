"""Kinds of calls: all that decides about tensors but their values, told for several at once. Touches no element."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from anynorm_torch._memory import PLAIN, kind_of, readable_in


class Kind:
    """Stands for all calls whose tensors are alike, so that dicts need not hash what they are alike in."""

    __slots__ = ("lengths",)

    def __init__(self) -> None:
        self.lengths: tuple[int, ...] | None = None  # of the tensors in memory, once somebody asks, in bytes


# Asks whether tensors are of the kind that others were.
Alike = Callable[..., bool]

# Kinds by all that tells them apart; and by a few facts, which may be those of several, whom to ask.
_kinds: dict[tuple[Any, ...], Kind] = {}
_near: dict[tuple[str, int], list[tuple[Alike, Kind]]] = {}

# Kinds that are remembered before all start anew; and questions that are asked in turn before all is told at length.
MANY, NEAR = 4096, 8


def kind_of_call(which: str, *tensors: Any) -> Kind | None:
    """Return what is the same object for tensors alike in all but their values, or None if one may not be read.

    Which of them require a gradient counts too. `which` says what each of them is. `watches` must be False.
    """
    try:
        for its in tensors:
            if type(its) not in PLAIN:
                return None
            its.stride()
    except RuntimeError:  # it has none: to ask torch's compiler of it would end the process
        return None
    facts = which, tensors[0].numel()
    for alike, kind in _near.get(facts, ()):
        if alike(*tensors):
            return kind
    return _told(facts, tensors)


def _told(facts: tuple[str, int], tensors: tuple[Any, ...]) -> Kind | None:
    """Return the kind by all that tells kinds apart, and remember what to ask the next time."""
    told: list[Any] = [facts[0]]
    for its in tensors:
        own = kind_of(its)
        if own is None:
            return None
        told += own, its.requires_grad
    key = tuple(told)
    kind = _kinds.get(key)
    if kind is None:
        if len(_kinds) >= MANY:
            _kinds.clear()
            _near.clear()
        kind = _kinds[key] = Kind()
    near = _near.setdefault(facts, [])
    # Of a device kinds tell addresses apart, for which there is no question.
    # The question is never answered with yes where a tensor is passed twice.
    once = len({id(its) for its in tensors}) == len(tensors)
    if once and len(near) < NEAR and all(readable_in(its) == "cpu" for its in tensors):
        guards = _guards()
        if guards is not None:
            near.append((guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check, kind))
    return kind


@cache
def _guards() -> Any:
    """Return what torch's compiler guards its code with, if it asks what it is needed for here, else None.

    It asks of several tensors at once whether they have the types, dispatch keys, dtypes, shapes and strides that
    others had, and require gradients as those did. That takes 0.3 µs for three of them, `kind_of` 2.5 µs. Of one tensor
    that is passed twice it says no. Keys that a thread excludes it leaves out, as the operators do that it runs there.
    It must not be asked of tensors without strides: its C++ exceptions are caught by nobody.
    """
    guards: Any = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    with torch.inference_mode(False):
        x, w = torch.empty((2, 3), device="cpu"), torch.empty(3, device="cpu")
        unlike = [
            (x.t(), w),
            (x[:1], w),
            (x.double(), w),
            (torch._neg_view(x), w),
            (x, torch.nn.Parameter(w)),
            (x.detach().requires_grad_(), w),
        ]
        try:
            alike = guards.TensorGuards(x, w, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
            fit = alike(x + 1, w + 1) and not any(alike(*its) for its in unlike)
        except Exception:  # another version of torch may raise anything here
            fit = False
    return guards.TensorGuards if fit else None
