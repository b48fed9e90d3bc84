"""The five norms as this command line applies them to a batch: what each reduces, in words and in numbers.

Also how far results are from the exact one and from one another, in units of the contract's bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import anynorm
from anynorm import _reference, _reference_gradients
from anynorm._core.arrays import Array
from anynorm._reference import NumPyArray

# In longdouble, whose temporaries take some 100 bytes per element.
_ELEMENTS_AT_ONCE = 2**21

# The contract says nothing of larger sets.
LARGEST_SET = 2**24


@dataclass(frozen=True)
class Layout:
    """Which axis of a batch is what: the samples lie along axis 0, the channels along `channel_axis`."""

    shape: tuple[int, ...]
    channel_axis: int
    groups: int

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return self.shape[self.channel_axis]

    @property
    def axis_names(self) -> list[str]:
        """The field's letter for each axis."""
        places = len(self.shape) - 2
        names = {0: "", 1: "L", 2: "HW", 3: "DHW"}.get(places)
        rest = list(names) if names is not None else [f"S{place}" for place in range(1, places + 1)]
        rest.insert(self.channel_axis - 1, "C")
        return ["N", *rest]

    @property
    def places(self) -> tuple[int, ...]:
        """The axes that are neither samples nor channels."""
        return tuple([axis for axis in range(1, len(self.shape)) if axis != self.channel_axis])


@dataclass(frozen=True)
class Norm:
    """A public function of anynorm with all its arguments but the arrays."""

    name: str
    words: str  # which elements share a statistic
    reduced: tuple[int, ...]  # axes of the batch; group norm reduces a part of the channel axis as well
    statistics: int
    parameter_shape: tuple[int, ...]
    arguments: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """How many elements the weight and bias of a layer have; RMS norm's layer has no bias."""
        return math.prod(self.parameter_shape) * (1 if self.name == "rms_norm" else 2)

    @property
    def title(self) -> str:
        """The norm's name as it is written in a sentence."""
        return {"rms_norm": "RMS norm"}.get(self.name, self.name.replace("_", " ").capitalize())

    def _call(self, function: Callable[..., Any], *arrays: Any, **parameters: Any) -> Any:
        return function(*arrays, *self.arguments, **parameters, **self.options)

    def __call__(self, x: Array, weight: Array | None = None, bias: Array | None = None) -> Any:
        """Normalize x."""
        return self._call(getattr(anynorm, self.name), x, weight=weight, bias=bias)

    def vjp(self, x: Array, weight: Array | None, bias: Array | None) -> Any:
        """Normalize x; return the result and its pullback."""
        return self._call(anynorm.vjp, getattr(anynorm, self.name), x, weight=weight, bias=bias)

    def explain(self, x: Array, weight: Array | None = None, bias: Array | None = None) -> Any:
        """Return which path serves this call, and why no faster one does."""
        return self._call(anynorm.explain, getattr(anynorm, self.name), x, weight=weight, bias=bias)

    def reference(self, x: NumPyArray, weight: NumPyArray | None = None, bias: NumPyArray | None = None) -> Any:
        """Return the exact result and the contract's bound."""
        return self._call(getattr(_reference, self.name), x, weight=weight, bias=bias)

    def gradients(self, dy: NumPyArray, x: NumPyArray, weight: NumPyArray | None, bias: NumPyArray | None) -> Any:
        """Return the exact gradients and the contract's bounds."""
        return self._call(_reference_gradients.gradients, self.name, dy, x, weight=weight, bias=bias)

    def set_size(self, layout: Layout) -> int:
        """Return how many elements share a statistic."""
        return math.prod(layout.shape) // max(self.statistics, 1)

    def reduced_names(self, layout: Layout) -> str:
        """Return the letters of the reduced axes."""
        names = [layout.axis_names[axis] for axis in self.reduced]
        if self.name == "group_norm" and layout.groups < layout.channels:
            names.insert(0, "C" if layout.groups == 1 else f"C/{layout.groups}")
        return ", ".join(names) or "nothing"


def five_norms(layout: Layout) -> list[Norm]:
    """Return the five norms, as they apply to a batch of this layout."""
    samples, channels = layout.shape[0], layout.channels
    everything_else = tuple(sorted((0, *layout.places)))

    def by_sample(name: str, words: str) -> Norm:
        axes = tuple(range(1, len(layout.shape)))
        return Norm(name, words, axes, samples, layout.shape[1:], options={"axis": axes})

    def by_channel(name: str, words: str, axes: tuple[int, ...], statistics: int, *groups: int) -> Norm:
        return Norm(name, words, axes, statistics, (channels,), groups, {"channel_axis": layout.channel_axis})

    group = f"each group of {counted(channels // layout.groups, 'channel')} of each sample"
    return [
        by_channel("batch_norm", "each channel, over all samples", everything_else, channels),
        by_sample("layer_norm", "each sample, over all channels"),
        by_channel("instance_norm", "each channel of each sample", layout.places, samples * channels),
        by_channel("group_norm", group, layout.places, samples * layout.groups, layout.groups),
        by_sample("rms_norm", "each sample, no mean subtracted"),
    ]


def counted(count: int, noun: str) -> str:
    """Return a count and its noun: 1 value, 2 values."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def judge(norm: Norm, x: NumPyArray, outputs: list[Any], layout: Layout) -> tuple[list[float], float]:
    """Return each output's largest error, and the largest difference between any two, in units of the bound.

    Infinite where NaN or infinity is out of place. x and the outputs are NumPy arrays; weight and bias are not used.
    """
    errors, difference = [0.0] * len(outputs), 0.0
    for part in _independent_parts(norm, layout):
        reference = norm.reference(x[part])
        parts = [y[part] for y in outputs]
        errors = [max(error, reference.units(y)) for error, y in zip(errors, parts, strict=True)]
        difference = max(difference, spread(parts, reference.bound))
    return errors, difference


def spread(outputs: list[Any], bound: NumPyArray) -> float:
    """Return the largest difference between any two of the outputs, in units of the bound."""
    wide = [y.astype(np.longdouble) for y in outputs]
    highest, lowest = np.maximum.reduce(wide), np.minimum.reduce(wide)  # both carry a NaN on
    everywhere = np.logical_and.reduce([np.isnan(y) for y in wide])
    with np.errstate(invalid="ignore"):
        apart = np.where(highest == lowest, 0, (highest - lowest) / bound)
    apart = np.where(np.isnan(apart), np.where(everywhere, 0, np.inf), apart)
    return float(np.max(apart, initial=0))


def _independent_parts(norm: Norm, layout: Layout) -> Iterator[tuple[slice, ...]]:
    """Cut a batch between sets, so that the exact result never needs much memory at once."""
    axis = layout.channel_axis if norm.name == "batch_norm" else 0
    length = layout.shape[axis]
    size = math.prod(layout.shape) // max(length, 1)
    step = max(1, _ELEMENTS_AT_ONCE // max(size, 1))
    for start in range(0, length, step):
        yield (*[slice(None)] * axis, slice(start, start + step))
