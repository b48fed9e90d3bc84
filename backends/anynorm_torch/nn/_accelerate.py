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
from anynorm_torch.nn._sequences import join, part
from anynorm_torch.nn._sizes import from_size_on
from anynorm_torch.nn._timing import Swap, Times, Trial, set_class
from anynorm_torch.nn._twins import tensors_of
from anynorm_torch.nn._verdicts import Verdicts, named_layers


class _Layer(NamedTuple):
    """A norm layer that may become anynorm's."""

    name: str
    module: torch.nn.Module
    own: type[torch.nn.Module]
    ours: type[torch.nn.Module]
    path: str

    @property
    def swap(self) -> Swap:
        return Swap(self.module, self.own, self.ours)

    def __str__(self) -> str:
        rule = rule_of(self.ours)
        return f"anynorm's {self.own.__name__}" + (f": {rule}" if rule else "") + f", by {self.path}"


class Acceleration:
    """Which layers of a model were turned into anynorm's, and how to turn them back.

    As a context manager it turns them back at the end of the block.

    Attributes
    ----------
    swapped : tuple of str
        The layers that are anynorm's through this object, named as `model.named_modules()` does ("" is the model).
    left : dict of str to str
        The other norm layers, and why each was left as it is.
    times : dict of str to Times
        Of the layers that were timed: seconds of their calls in a step, `own` and `ours`, and their `ratio`.

    """

    def __init__(self, model: torch.nn.Module, measure: Any = None, least: int = 0) -> None:
        self._swapped: list[_Layer] = []
        self.left: dict[str, str] = {}
        self.times: dict[str, Times] = {}
        self._gain = ""
        layers = self._candidates(model, least)
        if measure is not None:
            self._time(model, layers, measure)
        for layer in layers:
            if layer.name not in self.left:
                self._swapped.append(layer)
                set_class(layer.module, layer.ours)
        self._joined = join(model)

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
                found.append(_Layer(name, module, type(module), ours, path))
        return found

    def _time(self, model: torch.nn.Module, layers: list[_Layer], batch: Any) -> None:
        """Time each layer both ways, leave those whose own code is faster, and time the steps of the model."""
        with Trial(model, batch, [layer.swap for layer in layers]) as trial:
            for layer, times in zip(layers, trial.layers(), strict=True):
                if times is None:
                    continue
                self.times[layer.name] = times
                if times.own < times.ours:
                    self.left[layer.name] = f"its own code is faster: {times}, by {layer.path}"
            taken = [layer for layer in layers if layer.name not in self.left]
            before, now, longer = trial.steps([layer.swap for layer in taken])
            self._gain = f"a step of {trial.step} takes {now * 1e3:.3g} ms, with its own layers {before * 1e3:.3g} ms"
            if longer:
                self.left |= {layer.name: "with the few layers that are faster a step takes longer" for layer in taken}

    @property
    def swapped(self) -> tuple[str, ...]:
        """Return the names of the layers that are anynorm's through this object."""
        return tuple([layer.name for layer in self._swapped])

    @property
    def paths(self) -> dict[str, str]:
        """Return what computes each swapped layer, in the words of `anynorm.explain`, on the device that it is on."""
        return {layer.name: layer.path for layer in self._swapped}

    def undo(self) -> None:
        """Give each swapped layer its own class back; what it learned meanwhile stays. Again, it does nothing.

        A layer whose class something else has changed since (torch.nn.utils.parametrize does) is not touched and stays
        in `swapped`, so that this may be called once more when that is taken off. A RuntimeWarning names it.
        """
        self._joined = part(self._joined)
        kept = []
        for layer in self._swapped:
            if type(layer.module) is layer.ours:
                set_class(layer.module, layer.own)
            elif type(layer.module) is not layer.own:
                kept.append(layer)
        self._swapped = kept
        if kept:
            names = ", ".join([f"{layer.name or 'the model'} (now a {type(layer.module).__name__})" for layer in kept])
            msg = f"undo: something else has since changed the class of {names}. Take that off and call undo() again."
            warnings.warn(msg, RuntimeWarning, stacklevel=users_level())

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        lines = [f"Acceleration: {len(self._swapped)} swapped, {len(self.left)} left"]
        if self._gain:
            lines.append(f"  {self._gain}")
        lines += [self._line(layer) for layer in self._swapped]
        lines += [f"  {_called(name)}: left, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)

    def _line(self, layer: _Layer) -> str:
        joined = any(layer.module is norm for one in self._joined for norm in one.norms)
        relu = ", with the ReLU after it" if joined else ""
        return f"  {_called(layer.name)}: {layer}{relu}{self._timed(layer.name)}"

    def _timed(self, name: str) -> str:
        if name in self.times:
            return f": {self.times[name]}"
        return ": no step on the batch calls it" if self._gain else ""


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
        The model takes steps on it, by the layers' own code and by anynorm's in turn, some seconds and fifteen steps of
        each at least: forward and backward if it is in training mode and gradients are enabled, else forward alone.
        A layer that is faster by its own code is left. Parameters, buffers, gradients and random states are afterwards
        what they were.
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
            f"accelerate: eagerly, {len(slow)} of the layers swapped run by the {slow[0]}, many times as long as by "
            "their own code. accelerate(model, measure=batch) keeps those that are faster."
        )
        warnings.warn(msg, RuntimeWarning, stacklevel=users_level())
