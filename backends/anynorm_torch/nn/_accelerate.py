"""Turning the norm layers of a torch model into anynorm's, and back. Knows classes of layers, no arithmetic."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch.nn.modules import batchnorm, lazy
from torch.nn.utils import parametrize

from anynorm_torch.nn._modules import CLASSES, check_module

# What a user would call a norm layer: torch's own and whatever derives from them.
NORMS = (torch.nn.LayerNorm, torch.nn.RMSNorm, torch.nn.GroupNorm, batchnorm._NormBase)


class Acceleration:
    """Which layers of a model were turned into anynorm's, and how to turn them back.

    As a context manager it turns them back at the end of the block.

    Attributes
    ----------
    swapped : tuple of str
        The layers that are anynorm's through this object, named as `model.named_modules()` does ("" is the model).
    left : dict of str to str
        The other norm layers, and why each was left as it is.

    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._swapped: list[tuple[str, torch.nn.Module, type[torch.nn.Module]]] = []
        self.left: dict[str, str] = {}
        for name, module in model.named_modules():  # a module registered twice comes once
            own, reason = type(module), _why_left(module)
            if reason is not None:
                self.left[name] = reason
            elif own in CLASSES:
                module.__class__ = CLASSES[own]
                self._swapped.append((name, module, own))

    @property
    def swapped(self) -> tuple[str, ...]:
        """Return the names of the layers that are anynorm's through this object."""
        return tuple([name for name, _, _ in self._swapped])

    def undo(self) -> None:
        """Give each swapped layer its own class back; what it learned meanwhile stays. Again, it does nothing.

        A layer whose class something else has changed since (torch.nn.utils.parametrize does) is not touched and stays
        in `swapped`, so that this may be called once more when that is taken off.
        """
        kept = []
        for name, module, own in self._swapped:
            if type(module) is CLASSES[own]:
                module.__class__ = own
            elif type(module) is not own:
                kept.append((name, module, own))
        self._swapped = kept

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        lines = [f"Acceleration: {len(self._swapped)} swapped, {len(self.left)} left"]
        lines += [f"  {name or '(the model)'}: anynorm's {own.__name__}" for name, _, own in self._swapped]
        lines += [f"  {name or '(the model)'}: left, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def accelerate(model: torch.nn.Module) -> Acceleration:
    """Turn every norm layer of a model into anynorm's, in place.

    Only the layers' class changes: they stay the objects they are, with their parameters, statistics, hooks and modes,
    so optimizers and other references stay valid. A layer is left as it is unless its class is exactly torch's own.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, or a norm layer itself.

    Returns
    -------
    Acceleration
        Lists what was swapped and what was left, and why; its `undo()` swaps back. Also a context manager.

    Raises
    ------
    TypeError
        model is no torch.nn.Module.

    Examples
    --------
    >>> import torch
    >>> import anynorm_torch.nn
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    >>> acceleration = anynorm_torch.nn.accelerate(model)
    >>> acceleration
    Acceleration: 1 swapped, 0 left
      1: anynorm's LayerNorm
    >>> isinstance(model[1], torch.nn.LayerNorm)
    True
    >>> acceleration.undo()
    >>> type(model[1]) is torch.nn.LayerNorm
    True

    """
    check_module("accelerate", model)
    return Acceleration(model)


def _why_left(module: torch.nn.Module) -> str | None:
    """Return why a norm layer stays as it is; None for one that may be swapped, and for what is no norm layer."""
    cls: Any = type(module)
    if not isinstance(module, NORMS):
        return None
    if cls in CLASSES:
        return "its forward was replaced on the object itself" if "forward" in vars(module) else None
    if cls in CLASSES.values():
        return "it is anynorm's already"
    if parametrize.is_parametrized(module):
        return "it is parametrized, which gives it a class of its own; accelerate first, parametrize then"
    if isinstance(module, torch.nn.SyncBatchNorm):
        return "it shares statistics between processes, which anynorm does not"
    if isinstance(module, lazy.LazyModuleMixin):
        return "it is not initialized yet; accelerate after the first batch"
    return f"{cls.__module__}.{cls.__qualname__} is a subclass of torch's layer and may compute something else"
