"""Turning the norm layers of a torch model into anynorm's, and back. Knows classes of layers, no arithmetic."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple

import torch

from anynorm_torch.nn._modules import check_module
from anynorm_torch.nn._verdicts import Verdicts, named_layers


class _Swap(NamedTuple):
    name: str
    module: torch.nn.Module
    own: type[torch.nn.Module]
    ours: type[torch.nn.Module]

    def __str__(self) -> str:
        rule = getattr(self.ours, "_anynorm", None)
        return f"anynorm's {self.own.__name__}" + (f": {rule}" if rule else "")


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
        self._swapped: list[_Swap] = []
        self.left: dict[str, str] = {}
        verdicts = Verdicts()
        seen: set[int] = set()
        for name, module in named_layers(model):
            verdict = None if id(module) in seen else verdicts.of(module)
            seen.add(id(module))
            if isinstance(verdict, str):
                self.left[name] = verdict
            elif verdict is not None:
                self._swapped.append(_Swap(name, module, type(module), verdict))
                object.__setattr__(module, "__class__", verdict)  # Keras's layers have a __setattr__ of their own

    @property
    def swapped(self) -> tuple[str, ...]:
        """Return the names of the layers that are anynorm's through this object."""
        return tuple([swap.name for swap in self._swapped])

    def undo(self) -> None:
        """Give each swapped layer its own class back; what it learned meanwhile stays. Again, it does nothing.

        A layer whose class something else has changed since (torch.nn.utils.parametrize does) is not touched and stays
        in `swapped`, so that this may be called once more when that is taken off.
        """
        kept = []
        for swap in self._swapped:
            if type(swap.module) is swap.ours:
                object.__setattr__(swap.module, "__class__", swap.own)
            elif type(swap.module) is not swap.own:
                kept.append(swap)
        self._swapped = kept

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        lines = [f"Acceleration: {len(self._swapped)} swapped, {len(self.left)} left"]
        lines += [f"  {swap.name or '(the model)'}: {swap}" for swap in self._swapped]
        lines += [f"  {name or '(the model)'}: left, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def accelerate(model: torch.nn.Module) -> Acceleration:
    """Turn every norm layer of a model into anynorm's, in place.

    Only the layers' class changes: they stay the objects they are, with their parameters, statistics, hooks and modes,
    so optimizers and other references stay valid. Layers of torch's own classes are known. The forward of any other is
    tried out, on a copy with numbers drawn by chance: the layer is taken if anynorm computes the same to rounding, in
    half precision bit for bit. For dtypes and numbers of axes where it does not, a taken layer calls its own forward.

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
