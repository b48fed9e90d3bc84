"""Which of two classes makes a model's norm layers faster, timed on the calls that a batch causes. Swaps nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from anynorm_torch._memory import PLAIN
from anynorm_torch.nn._twins import tensors_of
from anynorm_torch.nn._verdicts import signature

# A pair is timed for so many seconds, and in so many rounds at least.
_SECONDS, _LEAST_ROUNDS = 0.2, 7
# What lies between two norm layers of a model: bytes that are written, and matrices that are multiplied.
_WRITTEN, _SIDE = 2**23, 128


# Of a layer, the positional and keyword arguments.
_Calls: TypeAlias = list[tuple[tuple[Any, ...], dict[str, Any]]]


class Times(NamedTuple):
    """Seconds that a layer's calls of one step take, by its own code and by anynorm's."""

    own: float
    ours: float
    shape: tuple[int, ...]  # of the first call's input

    @property
    def ratio(self) -> float:
        """Return how many times as fast anynorm's code is."""
        return self.own / self.ours

    def __str__(self) -> str:
        ours, own = self.ours * 1e6, self.own * 1e6
        return f"{self.ratio:.2f} times as fast on {self.shape}, {ours:.3g} instead of {own:.3g} \u00b5s a step"


@dataclass(frozen=True)
class _Form:
    """All that a tensor's values do not tell."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> _Form:
        return cls(tuple(x.shape), x.stride(), x.dtype, x.device)

    def drawn(self) -> Tensor:
        """Return a tensor of this form, of numbers drawn by chance."""
        x = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return x.copy_(torch.randn(self.shape, device=self.device)) if x.is_floating_point() else x.zero_()


def step_of(model: torch.nn.Module) -> str:
    """Return which step of a model is timed: forward and backward in training, else forward alone."""
    return "training" if model.training and torch.is_grad_enabled() else "inference"


def time_layers(
    model: torch.nn.Module, layers: Sequence[torch.nn.Module], others: Sequence[type[torch.nn.Module]], batch: Any
) -> list[Times | str]:
    """Run a model on a batch, and return for each layer how long its calls take by its class and by another.

    Or why that was not timed. Nothing of the model changes, and no random state.
    """
    with _unchanged(model, layers):
        calls = _calls(model, layers, batch)
        timer = _Timer(step_of(model) == "training")
        return [timer.times(*one) for one in zip(layers, others, calls, strict=True)]


class _Timer:
    """The times of layers: those that are alike in all but their numbers are timed once."""

    def __init__(self, training: bool) -> None:
        self._training = training
        self._known: dict[Hashable, tuple[float, float]] = {}

    def times(self, layer: torch.nn.Module, ours: type[torch.nn.Module], calls: _Calls) -> Times | str:
        if not calls:
            return "the batch does not reach it"
        odd = [value for args, kwargs in calls for value in (*args, *kwargs.values()) if _is_odd(value)]
        if odd:
            return f"not timed on input of {type(odd[0]).__name__}"
        pairs = [self._timed(layer, ours, *call) for call in calls]
        own, mine = [sum(part) for part in zip(*pairs, strict=True)]
        return Times(own, mine, _shape(*calls[0]))

    def _timed(
        self, layer: torch.nn.Module, ours: type[torch.nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[float, float]:
        lengths = tuple([(value.shape, value.device) for value in tensors_of(layer).values()])
        key = signature(layer), ours, layer.training, lengths, args, tuple(kwargs.items())
        if key not in self._known:
            pair = [_Step(_bare(layer, cls), args, kwargs, self._training) for cls in (type(layer), ours)]
            self._known[key] = _in_turn(pair)
        return self._known[key]


class _Step:
    """A layer's part in a step of a model: its forward pass, and in training its backward pass."""

    def __init__(self, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> None:
        self.layer, self.training = layer, training
        self.args = [_given(value, training) for value in args]
        self.kwargs = {name: _given(value, training) for name, value in kwargs.items()}
        given = [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]
        self.learned = [*given, *layer.parameters()]
        self.device = given[0].device
        self.dy: Any = None
        self.junk = torch.zeros(_WRITTEN // 4, device="cpu")
        self.matrix = torch.randn(_SIDE, _SIDE, device="cpu")

    def seconds(self) -> float:
        """Run both passes and return how long they take."""
        for value in self.learned:
            value.grad = None
        with torch.set_grad_enabled(self.training):
            taken, y = self._clocked(lambda: self.layer(*self.args, **self.kwargs))
        if not y.requires_grad:
            return taken
        if self.dy is None:
            self.dy = torch.randn_like(y)
        return taken + self._clocked(lambda: torch.autograd.backward(y, self.dy))[0]

    def _clocked(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds of a call that finds the caches as the other layers of a model leave them, and its result.

        Among nothing but its like, a small call takes half the time: its code is at hand.
        """
        torch.mm(self.matrix, self.matrix)
        self.junk.add_(1)
        self._wait()
        began = time.perf_counter()
        found = call()
        self._wait()
        return time.perf_counter() - began, found

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()


def _in_turn(pair: Sequence[_Step]) -> tuple[float, float]:
    """Return the medians of the seconds of two steps, timed in turn."""
    rounds: list[list[float]] = []
    for _ in range(2):  # compiles
        for step in pair:
            step.seconds()
    ends = time.perf_counter() + _SECONDS
    while len(rounds) < _LEAST_ROUNDS or time.perf_counter() < ends:
        rounds.append([step.seconds() for step in pair])
    own = statistics.median([first for first, _ in rounds])
    return own, own / statistics.median([first / second for first, second in rounds])


def _calls(model: torch.nn.Module, layers: Sequence[torch.nn.Module], batch: Any) -> list[_Calls]:
    """Run a model once, and return for each layer what it is called on: for tensors, what they are like."""
    found: dict[int, _Calls] = {id(layer): [] for layer in layers}

    def note(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        noted = tuple([_noted(value) for value in args])
        found[id(layer)].append((noted, {name: _noted(value) for name, value in kwargs.items()}))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            args, kwargs = _arguments(batch)
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[id(layer)] for layer in layers]


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch if isinstance(batch, tuple) else (batch,)), {}


@contextmanager
def _unchanged(model: torch.nn.Module, layers: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Put back what running a model in training mode moves: buffers, statistics, the states of random generators."""
    buffers = [*model.buffers(), *[value for layer in layers for value in tensors_of(layer).values()]]
    saved = [(buffer, buffer.detach().clone()) for buffer in buffers]
    cards = {value.device.index for value in [*model.parameters(), *buffers] if value.device.type == "cuda"}
    try:
        with torch.random.fork_rng(cards):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


def _noted(value: Any) -> Any:
    return _Form.of(value) if type(value) in PLAIN and not value.is_nested else value


def _given(value: Any, training: bool) -> Any:
    if not isinstance(value, _Form):
        return value
    x = value.drawn()
    return x.requires_grad_(training) if x.is_floating_point() else x


def _is_odd(value: Any) -> bool:
    return not isinstance(value, _Form | int | float | str | bool | None)


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    return next((value.shape for value in (*args, *kwargs.values()) if isinstance(value, _Form)), ())


def _bare(module: torch.nn.Module, cls: type[torch.nn.Module]) -> Any:
    """Return a copy of a module, of another class and without hooks, whose numbers may change."""
    bare: Any = object.__new__(cls)
    bare.__dict__.update(vars(module))
    fresh = vars(torch.nn.Module())
    bare.__dict__.update({name: value for name, value in fresh.items() if "hooks" in name})
    bare.__dict__["_parameters"] = {
        name: None if value is None else torch.nn.Parameter(value.detach().clone(), value.requires_grad)
        for name, value in module._parameters.items()
    }
    bare.__dict__["_buffers"] = {
        name: None if value is None else value.detach().clone() for name, value in module._buffers.items()
    }
    bare.__dict__["_modules"] = {
        name: None if child is None else _bare(child, type(child)) for name, child in module._modules.items()
    }
    return bare
