"""Turning the norm layers of a torch model into anynorm's, and back. Knows classes of layers, no arithmetic."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any, NamedTuple

import torch

from anynorm._core.plan import index_argument
from anynorm.backend import users_level
from anynorm_torch._engines import path_to
from anynorm_torch._memory import memory_of
from anynorm_torch.nn._modules import check_module
from anynorm_torch.nn._rules import rule_of
from anynorm_torch.nn._sequences import pairs_in
from anynorm_torch.nn._sizes import from_size_on
from anynorm_torch.nn._swap import Swap
from anynorm_torch.nn._timing import Times, Trial
from anynorm_torch.nn._twins import tensors_of
from anynorm_torch.nn._verdicts import Verdicts, named_layers


class _Layer(NamedTuple):
    """A norm layer that may become anynorm's."""

    name: str
    swap: Swap
    path: str

    def __str__(self) -> str:
        rule = rule_of(self.swap.ours)
        return f"anynorm's {self.swap.own.__name__}" + (f": {rule}" if rule else "") + f", by {self.path}"


class Acceleration:
    """Which layers of a model were turned into anynorm's, and how to turn them back.

    As a context manager it turns them back at the end of the block.

    Attributes
    ----------
    swapped : tuple of str
        The layers that are anynorm's through this object, named as `model.named_modules()` does ("" is the model).
    left : dict of str to str
        The other norm layers, and why each was left as it is.
    paths : dict of str to str
        What computes each swapped layer, in the words of `anynorm.explain`: the engine for the device that it was on.
    times : dict of str to Times
        Of the layers that were timed: seconds of their calls in a step, `own` and `ours`, and their `ratio`.

    """

    def __init__(self, model: torch.nn.Module, measure: Any = None, least: int = 0) -> None:
        self.left: dict[str, str] = {}
        self.times: dict[str, Times] = {}
        self._steps, self._least = "", least
        layers = self._candidates(model, least)
        if measure is not None:
            self._time(model, layers, measure)
        self._swapped = [layer for layer in layers if layer.name not in self.left]
        for layer in self._swapped:
            layer.swap.apply()
        self._sequences = pairs_in(model)
        for sequence in self._sequences:
            sequence.swap.apply()

    def _candidates(self, model: torch.nn.Module, least: int) -> list[_Layer]:
        """Return the layers that may become anynorm's, and note why the others may not."""
        verdicts = Verdicts()
        found: list[_Layer] = []
        seen: set[int] = set()
        place = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0, device="cpu"))
        for name, module in named_layers(model):
            verdict = None if id(module) in seen else verdicts.of(module)
            seen.add(id(module))
            if isinstance(verdict, str):
                self.left[name] = verdict
            elif verdict is not None:
                path = path_to(memory_of(next(iter(tensors_of(module).values()), place)))
                ours = from_size_on(verdict, least) if least else verdict  # type: ignore[arg-type]
                found.append(_Layer(name, Swap(module, type(module), ours), path))
        return found

    def _time(self, model: torch.nn.Module, layers: list[_Layer], batch: Any) -> None:
        """Time each layer both ways, leave those that do not gain, and time the steps of the model with the others."""
        with Trial(model, batch, [layer.swap for layer in layers]) as trial:
            for layer, times in zip(layers, trial.layers() if layers else [], strict=True):
                if times is None:
                    self.left[layer.name] = "no step on the batch calls it"
                    continue
                self.times[layer.name] = times
                if not times.faster:
                    self.left[layer.name] = f"no sure gain: {times}, by {layer.path}"
            taken = [layer.swap for layer in layers if layer.name not in self.left]
            if not taken:
                return
            for swap in taken:
                swap.apply()
            sequences = [sequence.swap for sequence in pairs_in(model)]
            before, now = trial.steps([*taken, *sequences])
        self._steps = f"a step of {trial.step} takes {now * 1e3:.3g} ms, with its own layers {before * 1e3:.3g} ms"
        if now > before:
            slower = "the whole step takes longer with the layers that gain"
            self.left |= {layer.name: slower for layer in layers if layer.name not in self.left}

    @property
    def swapped(self) -> tuple[str, ...]:
        """Return the names of the layers that are anynorm's through this object."""
        return tuple([layer.name for layer in self._swapped])

    @property
    def paths(self) -> dict[str, str]:
        """Return what computes each swapped layer."""
        return {layer.name: layer.path for layer in self._swapped}

    @property
    def _swaps(self) -> list[Swap]:
        """Return all modules whose class was changed."""
        return [*[pairs.swap for pairs in self._sequences], *[layer.swap for layer in self._swapped]]

    def undo(self) -> None:
        """Give each swapped layer its own class back; what it learned meanwhile stays. Again, it does nothing.

        A layer whose class something else has changed since (torch.nn.utils.parametrize does) is not touched and stays
        in `swapped`, so that this may be called once more when that is taken off. A RuntimeWarning names it.
        """
        self._sequences = [sequence for sequence in self._sequences if not sequence.swap.revert()]
        self._swapped = [layer for layer in self._swapped if not layer.swap.revert()]
        self._steps = ""
        kept = [f"{_called(layer.name)} (now a {type(layer.swap.module).__name__})" for layer in self._swapped]
        kept += [f"a {type(sequence.swap.module).__name__}" for sequence in self._sequences]
        if kept:
            msg = (
                f"undo: something else has changed the class of {', '.join(kept)}. Take that off and call undo() again."
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=users_level())

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        lines = [f"Acceleration: {len(self._swapped)} swapped, {len(self.left)} left"]
        lines += [f"  {self._steps}"] if self._steps else []
        lines += [self._line(layer) for layer in self._swapped]
        lines += [f"  {_called(name)}: left, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)

    def _line(self, layer: _Layer) -> str:
        before_relu = any(layer.swap.module is norm for sequence in self._sequences for norm in sequence.norms)
        relu = ", with the ReLU after it" if before_relu else ""
        size = f", from {self._least} elements on" if self._least else ""
        times = f": {self.times[layer.name]}" if layer.name in self.times else ""
        return f"  {_called(layer.name)}: {layer}{size}{relu}{times}"


def _called(name: str) -> str:
    return name or "(the model)"


def accelerate(model: torch.nn.Module, *, measure: Any = None, min_elements: int = 0) -> Acceleration:
    """Turn every norm layer of a model into anynorm's, in place.

    Only the layers' class changes: they stay the objects they are, with their parameters, statistics, hooks and modes,
    so optimizers and other references stay valid. Layers of torch's own classes are known. The forward of any other is
    tried out, on a copy with numbers drawn by chance: the layer is taken if anynorm computes the same to rounding, in
    half precision bit for bit. For dtypes and numbers of axes where it does not, a taken layer calls its own forward.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, or a norm layer itself.
    measure : optional
        A batch: a tuple holds positional arguments, a mapping keyword arguments, anything else is the only argument.
        The model takes steps on it, by the layers' own code and by anynorm's in turn, 64 of them at least, or for some
        seconds: forward and backward if it is in training mode and gradients are enabled, else forward alone. A layer
        that does not become faster in three of four pairs of steps is left. Parameters, buffers, gradients and torch's
        random states are afterwards what they were.
    min_elements : int
        For input of fewer elements a layer that was swapped runs its own forward.

    Returns
    -------
    Acceleration
        Lists what was swapped, by what each layer is computed and how fast, and what was left, and why; its `undo()`
        swaps back. Also a context manager.

    Raises
    ------
    TypeError
        model is no torch.nn.Module, or min_elements no integer.
    ValueError
        min_elements is negative.
    Exception
        What calling the model on the batch raises; no layer is swapped then.

    Warns
    -----
    RuntimeWarning
        Where the engine for the device of layers that were swapped is not installed, and they were not timed: they then
        take many times as long as by their own code.

    Examples
    --------
    >>> import torch
    >>> import anynorm_torch.nn
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    >>> acceleration = anynorm_torch.nn.accelerate(model)
    >>> acceleration
    Acceleration: 1 swapped, 0 left
      1: anynorm's LayerNorm, by anynorm_numba
    >>> isinstance(model[1], torch.nn.LayerNorm)
    True
    >>> acceleration.undo()
    >>> type(model[1]) is torch.nn.LayerNorm
    True

    """
    check_module("accelerate", model)
    least = index_argument("accelerate", "min_elements", min_elements)
    if least < 0:
        msg = f"accelerate: min_elements must be 0 or more, got {least}."
        raise ValueError(msg)
    acceleration = Acceleration(model, measure, least)
    if measure is None:
        _warn_if_slow(acceleration.paths)
    return acceleration


def _warn_if_slow(paths: dict[str, str]) -> None:
    slow = [path for path in paths.values() if path.startswith("formula")]
    if slow:
        msg = (
            f"accelerate: eagerly, {len(slow)} of the layers swapped run by the {', '.join(dict.fromkeys(slow))}, many "
            "times as long as by their own code. accelerate(model, measure=batch) keeps those that are faster."
        )
        warnings.warn(msg, RuntimeWarning, stacklevel=users_level())
