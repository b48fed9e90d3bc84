"""How much of a step a model spends in some of its layers, which bounds what faster ones can save."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import torch

from anynorm_torch.nn._timing import Watch
from benchmarks.timing import Call, Clock


def share(model: torch.nn.Module, names: Iterable[str], step: Call, clock: Clock, rounds: int = 5) -> float:
    """Return which part of a step's time is spent in the layers of these names, forward and backward; the median.

    The layers hold no other of these layers.
    """
    shares = []
    with Watch([model.get_submodule(name) for name in names], clock) as watch:
        for _ in range(rounds):
            began = clock()
            spent = sum(watch.of(step).values())
            shares.append(spent / (clock() - began))
    return statistics.median(shares)
