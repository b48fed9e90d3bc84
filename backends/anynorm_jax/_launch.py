"""Arrays on the CPU by the engine: it reads their own memory, and JAX takes the memory that it wrote.

NumPy views the buffer of an array and holds it, so that no donation reuses it meanwhile. Aligned memory that
`jax.device_put` is given becomes the buffer of the result: nothing else can reach it.
"""

from __future__ import annotations

from typing import Any, cast

import array_api_compat.numpy
import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from anynorm.backend import (
    AnyResiduals,
    ArrayOps,
    GradientSums,
    Operands,
    PackedResiduals,
    PackedStatistics,
    Plan,
    Statistics,
)
from anynorm_jax._compiled import Compiled, Given, Maybe
from anynorm_jax._placement import Placement, placement_of
from anynorm_jax._sums import with_float64
from anynorm_numba.engine import Array as View
from anynorm_numba.engine import Gradient, Launch, address

# XLA wants buffers at multiples of so many bytes; what lies elsewhere `jax.device_put` copies.
ALIGNMENT = 64

_OPS: ArrayOps[View] = ArrayOps("numpy", array_api_compat.numpy)


class PlacedResiduals(PackedResiduals):
    """Residuals in NumPy's memory, each of which becomes a JAX array when it is read."""

    __slots__ = ("placement",)

    def __init__(self, packed: PackedResiduals, placement: Placement) -> None:
        super().__init__(packed.array, packed.plan, packed.view, packed.eps, packed.bias)
        self.placement = placement

    def _field(self, which: int) -> Any:
        return jax.device_put(super()._field(which), *self.placement)


class ForwardLaunch(Compiled):
    """A forward pass by the engine."""

    engine = "anynorm_numba"

    def __init__(self, plan: Plan, launch: Launch, placement: Placement) -> None:
        super().__init__(plan, None)
        self._launch = launch
        self._placement = placement

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> ForwardLaunch | str:
        """Return what serves calls like this one, or why the engine does not."""
        placement = placement_of(list(operands.arrays().values()))
        if isinstance(placement, str):
            return placement
        launch = Launch.compiled(plan, _viewed(operands), _OPS)
        return launch if isinstance(launch, str) else cls(plan, launch, placement)

    def forward(
        self, x: Array, weight: Maybe, bias: Maybe, eps: float, given: Given, out: Maybe, save: bool
    ) -> tuple[Any, Any]:
        assert out is None  # no JAX array can be written to
        views = _view(x), _maybe_view(weight), _maybe_view(bias)
        statistics = None if given is None else (_view(given[0]), _view(given[1]))
        written, residuals = self._launch.forward(*views, eps, statistics, _empty_like(views[0]), save)
        y = jax.device_put(written, *self._placement)
        if isinstance(y, Tracer):  # x is a constant of what JAX traces, and stays one that is computed there
            return super().forward(x, weight, bias, eps, given, None, save)
        return y, PlacedResiduals(residuals, self._placement) if save else None

    def measure(self, x: Array, eps: float = 0.0) -> Statistics:
        measured = cast("PackedStatistics", self._launch.measure(_view(x), eps))
        statistics = PlacedResiduals(cast("PackedResiduals", measured.packed), self._placement).statistics()
        return super().measure(x, eps) if isinstance(statistics.mean, Tracer) else statistics

    def apply(self, x: Array, weight: Maybe, bias: Maybe, eps: float, statistics: Statistics, out: Maybe) -> Any:
        views = _view(x), _maybe_view(weight), _maybe_view(bias)
        viewed = statistics._replace(**{name: _view(getattr(statistics, name)) for name in Statistics._fields[1:]})
        if isinstance(statistics, PackedStatistics) and isinstance(viewed, PackedStatistics):
            viewed.packed = statistics.packed
        written = self._launch.apply(*views, eps, viewed, _empty_like(views[0]))
        y = jax.device_put(written, *self._placement)
        return super().apply(x, weight, bias, eps, statistics, out) if isinstance(y, Tracer) else y


class BackwardLaunch(Compiled):
    """A backward pass by the engine."""

    engine = "anynorm_numba"

    def __init__(self, plan: Plan, launch: Gradient, placement: Placement) -> None:
        super().__init__(plan, None)
        self._launch = launch
        self._placement = placement

    @classmethod
    def compiled(cls, plan: Plan, operands: Operands) -> BackwardLaunch | str:
        """Return what serves backward passes like this one, or why the engine does not."""
        residuals = operands.residuals
        if not isinstance(residuals, PlacedResiduals):
            return "the forward pass was not the engine's"
        if isinstance(operands.dy, Tracer):
            return "JAX is tracing dy"
        placement = placement_of(list(operands.arrays().values()))
        if isinstance(placement, str):
            return placement
        launch = Gradient.compiled(plan, _viewed(operands), _OPS)
        return launch if isinstance(launch, str) else cls(plan, launch, placement)

    def backward(self, dy: Array, x: Array, weight: Maybe, residuals: AnyResiduals, out: Maybe) -> tuple[Any, Any, Any]:
        view = _view(x)
        written = self._launch.backward(_view(dy), view, _maybe_view(weight), residuals, _empty_like(view))
        found: tuple[Any, Any, Any] = jax.device_put(written, *self._placement)
        return super().backward(dy, x, weight, residuals, out) if isinstance(found[0], Tracer) else found

    def gradient_sums(self, dy: Array, x: Array, weight: Maybe, residuals: AnyResiduals) -> GradientSums:
        written = self._launch.gradient_sums(_view(dy), _view(x), _maybe_view(weight), residuals)
        with with_float64(True):  # or what the sums hold beyond float32 were lost
            found: GradientSums = jax.device_put(written, *self._placement)
        return found

    def gradient(
        self, dy: Array, x: Array, weight: Maybe, residuals: AnyResiduals, sums: GradientSums, out: Maybe
    ) -> Any:
        assert out is None  # no JAX array can be written to
        view, viewed = _view(x), GradientSums(*map(_maybe_view, sums))
        written = self._launch.gradient(_view(dy), view, _maybe_view(weight), residuals, viewed, _empty_like(view))
        return jax.device_put(written, *self._placement)


def _view(array: Array) -> View:
    """Return an array as NumPy's, once it is computed: its own memory, unless a layout of its own is in no C order."""
    view: View = np.asarray(array)
    return view if view.flags.c_contiguous else view.copy()


def _maybe_view(array: Maybe) -> View | None:
    return None if array is None else _view(array)


def _viewed(operands: Operands) -> Operands:
    return operands._replace(**{name: _view(array) for name, array in operands.arrays().items()})


def _empty_like(view: View) -> View:
    """Return memory of the alignment that JAX takes as it is."""
    memory = np.empty(view.nbytes + ALIGNMENT, np.uint8)
    return np.ndarray(view.shape, view.dtype, memory, -address(memory) % ALIGNMENT)
