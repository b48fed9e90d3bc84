"""How long a model's norm layers take in its steps, and the steps, by their own classes and by anynorm's.

The steps are the model's own, on a batch that is given: apart from them, where its code and data are at hand, a small
layer takes half the time that it takes between others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from anynorm_torch.nn._twins import tensors_of
from anynorm_torch.nn._verdicts import signature

# Both kinds of steps are timed in turn for so many seconds, and in so many rounds.
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 3.0, 7, 50


class Times(NamedTuple):
    """Seconds that a layer takes in a step, by its own class and by anynorm's."""

    own: float
    ours: float
    shape: tuple[int, ...]  # of the first input

    @property
    def ratio(self) -> float:
        """Return how many times as fast anynorm's class is."""
        return self.own / self.ours

    def __str__(self) -> str:
        ours, own = self.ours * 1e6, self.own * 1e6
        return f"{self.ratio:.2f} times as fast on {self.shape}, {ours:.3g} instead of {own:.3g} \u00b5s a step"


class Swap(NamedTuple):
    """A layer, its own class, and anynorm's for it."""

    module: torch.nn.Module
    own: type[torch.nn.Module]
    ours: type[torch.nn.Module]


def set_class(module: torch.nn.Module, cls: type[torch.nn.Module]) -> None:
    """Give a module another class. Keras's layers have a __setattr__ of their own."""
    object.__setattr__(module, "__class__", cls)


class Trial:
    """Steps of a model on a batch: forward and backward in training with gradients enabled, else forward alone.

    Within a `with` block, at whose end nothing of the model has changed, and no random state.
    """

    def __init__(self, model: torch.nn.Module, batch: Any, swaps: Sequence[Swap]) -> None:
        self.step = "training" if model.training and torch.is_grad_enabled() else "inference"
        self._model, self._swaps = model, swaps
        self._args, self._kwargs = _arguments(batch)
        self._unchanged = _unchanged(model, [swap.module for swap in swaps], batch)

    def __enter__(self) -> Trial:
        self._unchanged.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._unchanged.__exit__(*error)

    def layers(self) -> list[Times | None]:
        """Return how long each layer takes; None of one that no step calls. Layers that are alike count as one."""
        watch = _Watch([swap.module for swap in self._swaps])
        rounds: list[list[dict[int, float]]] = []
        with watch:
            self._in_turn(self._swaps, watch.of, rounds.append)
        kinds: dict[Hashable, list[int]] = {}
        for swap in self._swaps:
            if id(swap.module) in watch.shapes:
                kinds.setdefault(self._kind(swap, watch), []).append(id(swap.module))
        times: dict[int, Times] = {}
        for members in kinds.values():
            pairs = [[sum([side[one] for one in members]) for side in both] for both in rounds]
            own = statistics.median([first for first, _ in pairs]) / len(members)
            ratio = statistics.median([first / second for first, second in pairs])
            times |= {one: Times(own, own / ratio, watch.shapes[one][0]) for one in members}
        return [times.get(id(swap.module)) for swap in self._swaps]

    @staticmethod
    def _kind(swap: Swap, watch: _Watch) -> Hashable:
        module = swap.module
        lengths = tuple([(value.shape, value.device) for value in tensors_of(module).values()])
        return signature(module), swap.ours, module.training, lengths, tuple(watch.shapes[id(module)])

    def steps(self, swaps: Sequence[Swap]) -> tuple[float, float, bool]:
        """Return the seconds of a step without and with anynorm's classes, and if that takes longer in 3 of 4 pairs."""
        rounds: list[list[float]] = []
        self._in_turn(swaps, _seconds, rounds.append)
        own = statistics.median([first for first, _ in rounds])
        _, ratio, high = statistics.quantiles([first / second for first, second in rounds], n=4)
        return own, own / ratio, high < 1

    def _in_turn(self, swaps: Sequence[Swap], measured: Callable[[Callable[[], None]], Any], take: Any) -> None:
        """Run steps by the layers' own classes and by anynorm's in turn, and take pairs of what is measured of each."""

        def by(ours: bool) -> Any:
            for module, own, other in swaps:
                set_class(module, other if ours else own)
            self._run()  # in use a step follows another of its kind, whose code is at hand
            return measured(self._run)

        try:
            for ours in (False, True):  # compiles
                by(ours)
            ends, number = time.perf_counter() + _SECONDS, 0
            while number < _LEAST_ROUNDS or (time.perf_counter() < ends and number < _MOST_ROUNDS):
                # A B, B A: the second finds in the caches what the first has left there.
                pair = [by(False), by(True)] if number % 2 == 0 else [by(True), by(False)][::-1]
                take(pair)
                number += 1
        finally:
            for module, own, _ in swaps:
                set_class(module, own)

    def _run(self) -> None:
        """Take a step, without an optimizer."""
        if self.step == "inference":
            with torch.no_grad():
                self._model(*self._args, **self._kwargs)
            return
        self._model.zero_grad(set_to_none=True)
        results = [value for value in _tensors_in(self._model(*self._args, **self._kwargs)) if value.requires_grad]
        torch.autograd.backward(results, [torch.randn_like(value) for value in results])


class _Watch:
    """Tells how long layers take in a step, forward and backward, by hooks that it has within a `with` block."""

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        self.shapes: dict[int, list[tuple[int, ...]]] = {}  # of the inputs of those that are called
        self._layers = layers
        self._seconds: dict[int, float] = {}
        self._hooks: list[Any] = []
        self._began = 0.0

    def __enter__(self) -> None:
        for layer in self._layers:
            self._hooks.append(layer.register_forward_pre_hook(self._before, with_kwargs=True))
            self._hooks.append(layer.register_forward_hook(self._after, with_kwargs=True))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def of(self, run: Callable[[], None]) -> dict[int, float]:
        """Return the seconds of each layer that a step calls."""
        self._seconds = {}
        run()
        return self._seconds

    def _before(self, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if id(layer) not in self._seconds:
            self._seconds[id(layer)], self.shapes[id(layer)] = 0.0, []
        shapes = [tuple(value.shape) for value in _tensors_in((args, kwargs)) if not value.is_nested]
        self.shapes[id(layer)] += shapes or [()]
        self._begin()

    def _after(self, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._end(layer)
        sources = [value.grad_fn for value in _tensors_in((args, kwargs))]
        for node in _nodes(_tensors_in(output), sources):
            node.register_prehook(self._begin)
            node.register_hook(lambda *_: self._end(layer))

    def _begin(self, *_: object) -> None:
        _wait()
        self._began = time.perf_counter()

    def _end(self, layer: torch.nn.Module) -> None:
        _wait()
        self._seconds[id(layer)] += time.perf_counter() - self._began


def _nodes(outputs: Sequence[Tensor], sources: Sequence[Any]) -> Iterator[Node]:
    """Yield the nodes of the graph between what a layer returns and what it was given."""
    found, waiting = set(sources), [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in found or node.name() == "torch::autograd::AccumulateGrad":
            continue
        found.add(node)
        waiting += [following for following, _ in node.next_functions]
        yield node


def _seconds(run: Callable[[], None]) -> float:
    _wait()
    began = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    """Wait until an accelerator has done what it was asked for."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch if isinstance(batch, tuple) else (batch,)), {}


def _tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in what models take and return: tuples, lists, mappings and dataclasses of them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    return [tensor for part in value for tensor in _tensors_in(part)] if isinstance(value, tuple | list) else []


@contextmanager
def _unchanged(model: torch.nn.Module, layers: Sequence[torch.nn.Module], batch: Any) -> Iterator[None]:
    """Put back what steps change: buffers, statistics, gradients, and the states of random generators."""
    buffers = [*model.buffers(), *[value for layer in layers for value in tensors_of(layer).values()]]
    saved = [(buffer, buffer.detach().clone()) for buffer in buffers]
    learned = [*model.parameters(), *[value for value in _tensors_in(batch) if value.requires_grad and value.is_leaf]]
    gradients = [(value, value.grad) for value in learned]
    cards = {value.device.index for value in [*model.parameters(), *buffers] if value.device.type == "cuda"}
    for value in learned:
        value.grad = None
    try:
        with torch.random.fork_rng(cards):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)
        for value, gradient in gradients:
            value.grad = gradient
