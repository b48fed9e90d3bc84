"""How much of a step a model spends in some of its layers, which bounds what faster ones can save."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.autograd.graph import Node

from benchmarks.timing import Call, Clock


class _Spent:
    """Seconds spent between each begin and its end."""

    def __init__(self, clock: Clock) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._began = 0.0

    def begin(self, *_: object) -> None:
        self._began = self._clock()

    def end(self, *_: object) -> None:
        self.seconds += self._clock() - self._began


def share(model: torch.nn.Module, names: Iterable[str], step: Call, clock: Clock, rounds: int = 5) -> float:
    """Return which part of a step's time is spent in the layers of these names, forward and backward; the median.

    The layers hold no other of these layers. The model keeps the hooks that tell the times.
    """
    spent = _Spent(clock)
    for name in names:
        layer = model.get_submodule(name)
        layer.register_forward_pre_hook(spent.begin)
        layer.register_forward_hook(_after(spent))
    shares = []
    for _ in range(rounds):
        spent.seconds, began = 0.0, clock()
        step()
        shares.append(spent.seconds / (clock() - began))
    return statistics.median(shares)


def _after(spent: _Spent) -> Callable[[torch.nn.Module, Any, Any], None]:
    def hook(_: torch.nn.Module, given: Any, output: Any) -> None:
        spent.end()
        sources = [value.grad_fn for value in given if isinstance(value, torch.Tensor)]
        for node in _nodes(output, sources):
            node.register_prehook(spent.begin)
            node.register_hook(spent.end)

    return hook


def _nodes(output: Any, sources: list[Any]) -> Iterator[Node]:
    """Yield the nodes of the graph between an output and what it was computed from."""
    found, waiting = set(sources), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in found or node.name() == "torch::autograd::AccumulateGrad":
            continue
        found.add(node)
        waiting += [following for following, _ in node.next_functions]
        yield node
