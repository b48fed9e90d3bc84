"""What stands for a library on a GPU where there is none: NumPy arrays and CPU tensors, and known times.

No test is in here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.gpu_arrays import CupyArrays, TorchArrays
from benchmarks.gpu_timing import Entrant


class StandIn:
    """Both kinds of arrays: calls are as long as `takes` says, whatever they do."""

    cache = 3000

    def __init__(self) -> None:
        self.spent = 0.0
        self.copy_seconds = 1e-6
        self.released = 0
        self.made: list[weakref.ref[Any]] = []

    def data(self, problem: Any, count: int) -> Any:
        """Return the data of the library, and remember them."""
        found = super().data(problem, count)  # type: ignore[misc]
        self.made += [weakref.ref(arrays.x) for arrays in found]
        return found

    def events(self, run: Callable[[], object], stall: float) -> float:
        """Return how long the calls take."""
        assert stall >= 0
        self.spent = 0.0
        run()
        return self.spent

    def takes(self, seconds: float, entrant: Entrant) -> Entrant:
        """Return an entrant whose calls take so long."""

        def call(number: int) -> Any:
            self.spent += seconds
            return entrant.call(number)

        return replace(entrant, call=call)

    def synchronize(self) -> None:
        """Have nothing to wait for."""

    def taken(self) -> int:
        """Return a number that tells that it was asked for."""
        return 12345

    def release(self) -> None:
        """Count."""
        self.released += 1


class NumpyAsCupy(StandIn, CupyArrays):
    """NumPy's arrays where CuPy's are expected."""

    def __init__(self) -> None:
        super().__init__()
        self._cupy = np

    def copy(self, source: Any, target: Any) -> None:
        """Copy in a known time."""
        self.spent += self.copy_seconds
        np.copyto(target, source)


class TorchOnCpu(StandIn, TorchArrays):
    """torch's CPU tensors where CUDA's are expected."""

    def __init__(self) -> None:
        super().__init__()
        import torch

        self._torch = torch
        self._device = torch.device("cpu")

    def copy(self, source: Any, target: Any) -> None:
        """Copy in a known time."""
        self.spent += self.copy_seconds
        target.copy_(source)
