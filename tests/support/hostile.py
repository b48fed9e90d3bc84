"""Inputs on which norms go wrong, one set of numbers per row, and how to lay such rows out as the x of each function.

The contract's section on accuracy, made concrete. What must come out is not said here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from inputs import Case, Norm
from libraries import NumPyArray, numpy_dtype

ROWS, LENGTH = 4, 480

# Smallest normal, smallest subnormal and largest number of each dtype, and the smallest eps of its compute dtype.
_SMALLEST = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
_SUBNORMAL = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
LARGEST = {
    "float16": 65504.0,
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
    "float32": (2 - 2.0**-23) * 2.0**127,
    "float64": (2 - 2.0**-52) * 2.0**1023,
}
_WIDE = ("bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Hostile:
    """How to draw the rows for a dtype, and the eps to use."""

    draw: Callable[[np.random.Generator, str], Any]
    eps: float | str = 1e-5  # "smallest": the smallest normal number of the compute dtype
    dtypes: tuple[str, ...] = ("float16", *_WIDE)

    def rows(self, dtype: str) -> NumPyArray:
        """Return the rows, the same each time."""
        drawn = np.asarray(self.draw(np.random.default_rng(7), dtype))
        with np.errstate(over="ignore", under="ignore"):
            return drawn.astype(numpy_dtype(dtype))

    def eps_for(self, dtype: str) -> float:
        """Return eps as a number."""
        if isinstance(self.eps, str):
            return 2.0**-1022 if dtype == "float64" else 2.0**-126
        return self.eps


def _normal(random: np.random.Generator) -> NumPyArray:
    return random.normal(size=(ROWS, LENGTH))


def _offset(ratio: float) -> Hostile:
    # std 0.05, so that a mean of 1e6 standard deviations is in float16's range.
    return Hostile(lambda random, _: 0.05 * (_normal(random) + ratio * random.choice([-1, 1], size=(ROWS, 1))))


def _scaled(scale: float, eps: float | str, *dtypes: str) -> Hostile:
    return Hostile(lambda random, _: scale * _normal(random), eps, dtypes)


def _spike(random: np.random.Generator, dtype: str) -> NumPyArray:
    rows = np.zeros((ROWS, LENGTH))
    rows[range(ROWS), random.integers(LENGTH, size=ROWS)] = [1, -1, LARGEST[dtype], _SMALLEST[dtype]]
    return rows


def _spike_in_noise(random: np.random.Generator, dtype: str) -> NumPyArray:
    rows = _normal(random)
    rows[range(ROWS), random.integers(LENGTH, size=ROWS)] = LARGEST[dtype] * np.asarray([1, -1, 2.0**-7, 2.0**-14])
    return rows


def _every_magnitude(random: np.random.Generator, dtype: str) -> NumPyArray:
    low, high = np.log2(_SMALLEST[dtype]), np.log2(LARGEST[dtype]) - 1
    return random.choice([-1, 1], size=(ROWS, LENGTH)) * np.exp2(random.uniform(low, high, size=(ROWS, LENGTH)))


def _subnormal(random: np.random.Generator, dtype: str) -> NumPyArray:
    return _SUBNORMAL[dtype] * random.integers(-3, 4, size=(ROWS, LENGTH))


def _limits(random: np.random.Generator, dtype: str) -> NumPyArray:
    signs = random.choice([-1.0, 1.0], size=(ROWS, LENGTH))
    limits: NumPyArray = LARGEST[dtype] * random.uniform(0.9, 1, size=(ROWS, LENGTH)) * signs
    return limits


def _limits_of_one_sign(random: np.random.Generator, dtype: str) -> NumPyArray:
    signs = np.asarray([[1.0], [-1.0], [1.0], [-1.0]])
    limits: NumPyArray = LARGEST[dtype] * random.uniform(0.9, 1, size=(ROWS, LENGTH)) * signs
    return limits


def _alternating_limits(_: np.random.Generator, dtype: str) -> NumPyArray:
    return LARGEST[dtype] * np.tile([1.0, -1.0], (ROWS, LENGTH // 2))


def _step(random: np.random.Generator, _: str) -> NumPyArray:
    """Begin with what is a bad guess of the mean: far off, huge beside the rest, constant, or of one element."""
    rows = _normal(random)
    rows[0, :130] += 1e4
    rows[1, :130] *= 1e4
    rows[2, :130] = 1e4
    rows[3, 0] = -6e4
    return rows


def _one_ulp(_: np.random.Generator, dtype: str) -> NumPyArray:
    rows = np.full((ROWS, LENGTH), 1000.0)
    rows[:, -1] += [
        1000 * 2.0 ** -{"float16": 10, "bfloat16": 7, "float32": 23, "float64": 40}[dtype] * k for k in (1, 2, 3, -1)
    ]
    return rows


HOSTILE = {
    "mean_1e2": _offset(1e2),
    "mean_1e3": _offset(1e3),
    "mean_1e4": _offset(1e4),
    "mean_1e5": _offset(1e5),
    "mean_1e6": _offset(1e6),
    "pixels": Hostile(lambda random, _: random.integers(256, size=(ROWS, LENGTH))),
    "ramp": Hostile(lambda _, __: np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)),
    "one_ulp": Hostile(_one_ulp, 0.0),
    "step": Hostile(_step),
    "6e4": Hostile(lambda random, _: 6e4 + 4e3 * random.uniform(-1, 1, size=(ROWS, LENGTH))),
    "1e30": _scaled(1e30, 1e-5, *_WIDE),
    "1e-30": _scaled(1e-30, 0.0, *_WIDE),
    "1e-37": _scaled(1e-37, 0.0, *_WIDE),
    "1e300": _scaled(1e300, 0.0, "float64"),
    "1e-300": _scaled(1e-300, 0.0, "float64"),
    "subnormal": Hostile(_subnormal, 0.0),
    "limits": Hostile(_limits),
    "limits_of_one_sign": Hostile(_limits_of_one_sign),
    "alternating_limits": Hostile(_alternating_limits, 0.0),
    "spike": Hostile(_spike, 0.0),
    "spike_in_noise": Hostile(_spike_in_noise),
    "every_magnitude": Hostile(_every_magnitude, 0.0),
    "zeros": Hostile(lambda _, __: np.zeros((ROWS, LENGTH)), 0.0),
    "zeros_smallest_eps": Hostile(lambda _, __: np.zeros((ROWS, LENGTH)), "smallest"),
    # eps and variance of one size, where both are as small as can be.
    "smallest_eps": _scaled(1.1e-19, "smallest", "bfloat16", "float32"),
    "smallest_eps_float64": _scaled(1.5e-154, "smallest", "float64"),
}


def powers_of_two(dtype: str, step: int = 5) -> NumPyArray:
    """Return one row of normal numbers for each scale of the dtype: every threshold that an implementation may have."""
    low, high = np.log2(_SMALLEST[dtype]), np.log2(LARGEST[dtype])
    scales = np.exp2(np.arange(low + 2, high - 3, step if dtype != "float64" else 8 * step))
    scales = scales[: len(scales) // 2 * 2]
    return (scales[:, None] * np.random.default_rng(11).normal(size=(len(scales), 24))).astype(numpy_dtype(dtype))


# Shapes with the axes to sum over, where libraries fall back to adding one element after the other.
LARGE: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "leading": ((262144, 4), (0,)),
    "trailing": ((4, 262144), (1,)),
    "middle": ((4, 65536, 4), (1,)),
    "two_leading": ((64, 4096, 4), (0, 1)),
    "outer": ((65536, 4, 2), (0, 2)),
    "outer_long": ((512, 4, 512), (0, 2)),
    "every_other": ((16, 4, 128, 4, 32), (0, 2, 4)),
    "everything": ((512, 1024), (0, 1)),
}


def two_values(shape: tuple[int, ...]) -> NumPyArray:
    """Return numbers around 300 with deviations of one size: roundings of a plain sum all go one way and add up."""
    return (300.1 + 0.7 * np.random.default_rng(23).choice([-1.0, 1.0], size=shape)).astype("float32")


@dataclass(frozen=True)
class Arrangement:
    """A function, and how rows of numbers become an x whose sets are those rows."""

    name: str
    norm: Norm
    arrange: Callable[[NumPyArray], NumPyArray]
    restore: Callable[[NumPyArray, int], NumPyArray]  # back to that many rows

    def case(self, rows: NumPyArray, eps: float) -> Case:
        """Return the call whose sets are these rows."""
        options = self.norm.options | {"eps": eps}
        norm = Norm(self.name, self.norm.function, options, {}, self.norm.groups)
        return Case(norm, {"x": np.ascontiguousarray(self.arrange(rows))})


def _flat(x: NumPyArray, rows: int) -> NumPyArray:
    return x.reshape(rows, -1)


def _columns(x: NumPyArray, _: int) -> NumPyArray:
    return x.T


def _in_channels(rows: NumPyArray) -> NumPyArray:
    """Lay rows along the channel axis of an NCHW batch of two (of one, if their length is odd)."""
    samples = 2 if rows.shape[1] % 2 == 0 else 1
    return rows.reshape(rows.shape[0], samples, -1, 1).transpose(1, 0, 2, 3)


def _from_channels(x: NumPyArray, rows: int) -> NumPyArray:
    return x.transpose(1, 0, 2, 3).reshape(rows, -1)


# Sets along the last axis, along leading axes, and split over axes with others between.
ARRANGEMENTS = (
    Arrangement("layer", Norm("", "layer_norm"), lambda rows: rows, _flat),
    Arrangement("layer-leading", Norm("", "layer_norm", {"axis": 0}), lambda rows: rows.T, _columns),
    Arrangement("rms", Norm("", "rms_norm"), lambda rows: rows, _flat),
    Arrangement("group", Norm("", "group_norm", groups=(2,)), lambda rows: rows.reshape(len(rows) // 2, 4, -1), _flat),
    Arrangement("instance", Norm("", "instance_norm"), lambda rows: rows.reshape(len(rows) // 2, 2, -1), _flat),
    Arrangement("batch", Norm("", "batch_norm"), _in_channels, _from_channels),
    Arrangement("batch-last", Norm("", "batch_norm", {"channel_axis": -1}), lambda rows: rows.T, _columns),
)

# The groups of "group", their channels side by side in memory.
GROUP_LAST = Arrangement(
    "group-last",
    Norm("", "group_norm", {"channel_axis": -1}, groups=(2,)),
    lambda rows: rows.reshape(len(rows) // 2, 4, -1).transpose(0, 2, 1),
    lambda x, rows: x.transpose(0, 2, 1).reshape(rows, -1),
)
