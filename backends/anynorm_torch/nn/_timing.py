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
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from anynorm_torch.nn._swap import Swap
from anynorm_torch.nn._twins import tensors_of
from anynorm_torch.nn._verdicts import signature

# Both kinds of steps are timed in turn for so many seconds, and in so many rounds.
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 3.0, 7, 50


class Times(NamedTuple):
    """Seconds that a layer takes in a step, by its own class and by anynorm's."""

    own: float
    ours: float
    shape: tuple[int, ...]  # of the first input
    faster: bool  # by anynorm's, in three of four pairs of steps

    @property
    def ratio(self) -> float:
        """Return how many times as fast anynorm's class is."""
        return self.own / self.ours

    def __str__(self) -> str:
        ours, own = self.ours * 1e6, self.own * 1e6
        return f"{self.ratio:.2f} times as fast on {self.shape}, {ours:.3g} instead of {own:.3g} \u00b5s a step"


class Trial:
    """Steps of a model on a batch: forward and backward in training with gradients enabled, else forward alone.

    Within a `with` block, at whose end nothing of the model has changed, and no random state of torch's.
    """

    def __init__(self, model: torch.nn.Module, batch: Any, swaps: Sequence[Swap]) -> None:
        self.step = "training" if model.training and torch.is_grad_enabled() else "inference"
        self._model, self._swaps = getattr(model, "_orig_mod", model), swaps  # of torch.compile, whose own runs eagerly
        self._arguments = _arguments(batch)
        lazy = next((name for name, value in model.named_parameters() if torch.nn.parameter.is_lazy(value)), None)
        if lazy is not None:
            msg = f"accelerate: the parameter {lazy} is not initialized yet. Call the model on a batch first."
            raise ValueError(msg)
        values = [*model.parameters(), *model.buffers(), *_tensors_in(batch)]
        devices = {value.device for value in values if value.device.type not in ("cpu", "meta")}
        self._now = partial(_now, devices)
        self._generators = _Generators(devices)
        self._unchanged = _unchanged(model, [swap.module for swap in swaps], self._generators)

    def __enter__(self) -> Trial:
        self._unchanged.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._unchanged.__exit__(*error)

    def layers(self) -> list[Times | None]:
        """Return how long each layer takes; None of one that no step calls. Layers that are alike count as one."""
        watch = Watch([swap.module for swap in self._swaps], self._now)
        rounds: list[list[dict[int, float]]] = []
        with watch:
            self._in_turn(self._swaps, watch.of, rounds.append)
        kinds: dict[Hashable, list[int]] = {}
        for swap in self._swaps:
            if id(swap.module) in watch.shapes:
                kinds.setdefault(self._kind(swap, watch), []).append(id(swap.module))
        times: dict[int, Times] = {}
        for members in kinds.values():
            pairs = [[sum([side.get(one, 0.0) for one in members]) for side in both] for both in rounds]
            pairs = [pair for pair in pairs if min(pair) > 0]  # not every step calls every layer
            if len(pairs) < 2:
                continue
            own = statistics.median([first for first, _ in pairs]) / len(members)
            low, ratio, _ = _quartiles(pairs)
            times |= {one: Times(own, own / ratio, watch.shapes[one][0], low > 1) for one in members}
        return [times.get(id(swap.module)) for swap in self._swaps]

    @staticmethod
    def _kind(swap: Swap, watch: Watch) -> Hashable:
        module = swap.module
        lengths = tuple([(value.shape, value.device) for value in tensors_of(module).values()])
        return signature(module), swap.ours, module.training, lengths, tuple(watch.shapes[id(module)])

    def steps(self, swaps: Sequence[Swap]) -> tuple[float, float]:
        """Return the seconds of a step without and with anynorm's classes."""
        rounds: list[list[float]] = []
        self._in_turn(swaps, self._seconds, rounds.append)
        own = statistics.median([first for first, _ in rounds])
        return own, own / _quartiles(rounds)[1]

    def _seconds(self, run: Callable[[], None]) -> float:
        began = self._now()
        run()
        return self._now() - began

    def _in_turn(self, swaps: Sequence[Swap], measured: Callable[[Callable[[], None]], Any], note: Any) -> None:
        """Run steps by the layers' own classes and by anynorm's in turn, and note pairs of what is measured of each."""

        def step(ours: bool) -> Any:
            for swap in swaps:
                swap.apply() if ours else swap.revert()
            self._fresh()()  # in use a step follows another of its kind, whose code the caches still hold
            return measured(self._fresh())

        try:
            for ours in (False, True):  # compiles
                step(ours)
            ends, number = time.perf_counter() + _SECONDS, 0
            while number < _LEAST_ROUNDS or (time.perf_counter() < ends and number < _MOST_ROUNDS):
                # A B, B A: the second finds in the caches what the first has left there.
                note([step(False), step(True)] if number % 2 == 0 else [step(True), step(False)][::-1])
                number += 1
        finally:
            for swap in swaps:
                swap.revert()

    def _fresh(self) -> Callable[[], None]:
        """Return a step without an optimizer, on a copy of the batch, in the random state that all steps begin in."""
        args, kwargs = _copied(self._arguments)
        self._generators.restore()
        self._model.zero_grad(set_to_none=True)

        def run() -> None:
            output = self._model(*args, **kwargs)
            if self.step == "inference":
                return
            results = [value for value in _tensors_in(output) if value.requires_grad]
            if not results:
                msg = (
                    "accelerate: nothing that the model returns requires a gradient, or no tensor is found in it. Let "
                    "it return tensors, or tuples, lists, mappings or dataclasses of them; or time it in eval() mode."
                )
                raise ValueError(msg)
            torch.autograd.backward(results, [torch.randn_like(value) for value in results])

        return run


def _quartiles(pairs: Sequence[Sequence[float]]) -> list[float]:
    """Return the quartiles of the ratios of the first to the second."""
    return statistics.quantiles([first / second for first, second in pairs], n=4)


class Watch:
    """Tells how long layers take in a step, forward and backward, by hooks that it has within a `with` block."""

    def __init__(self, layers: Sequence[torch.nn.Module], now: Callable[[], float]) -> None:
        self.shapes: dict[int, list[tuple[int, ...]]] = {}  # of the inputs of those that are called
        self._layers, self._now = layers, now
        self._seconds: dict[int, float] = {}
        self._hooks: list[Any] = []
        self._begun: list[float] = []  # of calls that have not ended

    def __enter__(self) -> Watch:
        for layer in self._layers:
            self._hooks.append(layer.register_forward_pre_hook(self._before, with_kwargs=True))
            self._hooks.append(layer.register_forward_hook(self._after, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def of(self, run: Callable[[], object]) -> dict[int, float]:
        """Return the seconds of each layer that a step calls, by id."""
        self._seconds, self._begun = {}, []
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
        self._begun.append(self._now())

    def _end(self, layer: torch.nn.Module) -> None:
        self._seconds[id(layer)] += self._now() - self._begun.pop()


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


def _now(devices: set[torch.device]) -> float:
    """Return the time at which devices have done what they were asked for."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        else:
            getattr(torch, device.type).synchronize()
    return time.perf_counter()


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch if type(batch) is tuple else (batch,)), {}


def _copied(value: Any) -> Any:
    """Return a copy of a batch: a step may write to it, and its tensors may be parts of a graph."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (tuple, list):
        return type(value)([_copied(part) for part in value])
    return {name: _copied(part) for name, part in value.items()} if type(value) is dict else value


def _tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in what models take and return: tuples, lists, mappings and dataclasses of them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    return [tensor for part in value for tensor in _tensors_in(part)] if isinstance(value, tuple | list) else []


class _Generators:
    """The states of torch's random generators, as they were when this was made."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._state = torch.get_rng_state()
        self._of_cards = {card: torch.cuda.get_rng_state(card) for card in devices if card.type == "cuda"}

    def restore(self) -> None:
        torch.set_rng_state(self._state)
        for card, state in self._of_cards.items():
            torch.cuda.set_rng_state(state, card)


@contextmanager
def _unchanged(model: torch.nn.Module, layers: Sequence[torch.nn.Module], generators: _Generators) -> Iterator[None]:
    """Put back what steps change: buffers, norm layers' statistics, gradients, and torch's random states."""
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    tensors = [value for _, of_module in buffers for value in of_module.values() if value is not None]
    tensors += [value for layer in layers for value in tensors_of(layer).values()]
    saved = [(value, value.detach().clone(), _version(value)) for value in tensors]
    gradients = [(value, value.grad) for value in model.parameters()]
    try:
        yield
    finally:
        generators.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, of_module in buffers:
            module._buffers.update(of_module)
        with torch.no_grad():
            for value, old, version in saved:
                if _version(value) != version:  # else a graph that was made before stays valid
                    if value.shape != old.shape:
                        value.resize_(old.shape)
                    value.copy_(old)


def _version(value: Tensor) -> int | None:
    """Return how often a tensor was written to; None of one of inference mode, which outside of it cannot be."""
    return None if value.is_inference() else value._version
