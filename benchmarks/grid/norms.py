"""The norms of the grid with the shapes they are called on, and their arguments on one array library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import anynorm as an
from benchmarks.grid.data import NumPyArray, Shape, numbers, placed

Make = Callable[[NumPyArray], Any]


class Norm(NamedTuple):
    """A function on x of a shape, with what it is given beside arrays."""

    function: str
    shape: Shape
    args: tuple[int, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def parameter_shape(self) -> Shape:
        """The shape of weight and bias."""
        options, ndim = dict(self.options), len(self.shape)
        if self.function in ("layer_norm", "rms_norm"):
            axis = options.get("axis", -1)
            axes = range(ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
            return tuple([self.shape[one] for one in sorted([one % ndim for one in axes])])
        return (self.shape[options.get("channel_axis", 1)],)

    def __str__(self) -> str:
        given = ", ".join([*map(str, self.args), *[f"{name}={value}" for name, value in self.options]])
        return f"{self.function}({self.shape}{', ' if given else ''}{given})"


def layer(*shape: int, axis: Any = -1) -> Norm:
    """Return layer norm on a shape."""
    return Norm("layer_norm", shape, (), (("axis", axis),))


def rms(*shape: int, axis: Any = -1) -> Norm:
    """Return RMS norm on a shape."""
    return Norm("rms_norm", shape, (), (("axis", axis),))


def batch(*shape: int, channel_axis: int = 1) -> Norm:
    """Return batch norm on a shape."""
    return Norm("batch_norm", shape, (), (("channel_axis", channel_axis),))


def instance(*shape: int, channel_axis: int = 1, batch_axis: Any = 0) -> Norm:
    """Return instance norm on a shape."""
    return Norm("instance_norm", shape, (), (("channel_axis", channel_axis), ("batch_axis", batch_axis)))


def group(groups: int, *shape: int, channel_axis: int = 1, batch_axis: Any = 0) -> Norm:
    """Return group norm on a shape."""
    return Norm("group_norm", shape, (groups,), (("channel_axis", channel_axis), ("batch_axis", batch_axis)))


# One of each, and of each way in which sets lie in memory.
SMALL = (
    layer(8, 64),
    layer(4, 6, 5, axis=(-2, -1)),
    layer(4, 6, 5, 3, axis=1),
    layer(4, 6, 5, 3, axis=(0, 2)),
    layer(3, 4, 5, axis=None),
    layer(7, 1),
    layer(33, 17, axis=0),
    rms(8, 64),
    rms(4, 6, 5, axis=(1, 2)),
    rms(4, 6, 5, axis=1),
    batch(8, 64),
    batch(4, 6, 5),
    batch(4, 6, 9, 8),
    batch(4, 9, 8, 6, channel_axis=-1),
    instance(4, 6, 9, 8),
    instance(4, 9, 8, 6, channel_axis=-1),
    instance(6, 40, channel_axis=0, batch_axis=None),
    group(3, 4, 6, 9, 8),
    group(2, 4, 9, 8, 6, channel_axis=-1),
    group(6, 5, 6),
    group(1, 4, 6, 5, batch_axis=(0, 2)),
)
# Several threads, chunks, and tasks per set: long sets, few sets, wide and narrow tables, images.
LARGE = (
    layer(64, 1024),
    layer(512, 768),
    layer(1, 300_007),
    layer(3, 50_000),
    layer(30_000, 8),
    layer(40_000, 3),
    layer(8, 32, 28, 28, axis=(1, 2, 3)),
    layer(8, 32, 28, 28, axis=1),
    layer(20_000, 5, axis=0),
    layer(5000, 130, axis=0),
    layer(200_001, 1, axis=0),
    layer(400, 1100, axis=None),
    rms(128, 2048),
    rms(2, 100_003),
    rms(9001, 40, axis=0),
    batch(6000, 17),
    batch(300, 1500),
    batch(8, 32, 28, 28),
    batch(8, 28, 28, 32, channel_axis=-1),
    batch(2, 3, 200, 201),
    batch(500, 40, 5),
    batch(16, 60, 60, 3, channel_axis=-1),
    instance(8, 32, 28, 28),
    instance(8, 28, 28, 32, channel_axis=-1),
    instance(1, 2, 400, 301),
    group(8, 8, 32, 28, 28),
    group(8, 8, 28, 28, 32, channel_axis=-1),
    group(2, 2, 4, 200, 201),
)
# Images just large enough for several threads.
THREADED = (layer(4, 16, 28, 28, axis=(1, 2, 3)), layer(4, 16, 28, 28, axis=1), batch(4, 16, 28, 28))
# More than a chunk of 4096 elements per set, and little else.
LONG = (layer(2, 9001), layer(9001, 5, axis=0), batch(3, 2, 51, 61))
EMPTY = (
    layer(0, 64),
    layer(8, 0),
    rms(0, 3),
    batch(0, 5),
    batch(4, 0, 3),
    instance(0, 3, 4),
    group(3, 0, 6, 2),
)

# How weight and bias may be given.
PARAMETERS = ("none", "weight", "bias", "both", "per_sample", "other_dtype", "strided", "mixed_dtypes", "ones_wide")


def parameters(norm: Norm, dtype: str, variant: str, make: Make) -> dict[str, Any]:
    """Return weight and bias, whichever there are, in one of the variants."""
    shape, other = norm.parameter_shape, "float32" if dtype != "float32" else "float64"
    dtypes = (dtype, dtype)
    if variant == "none":
        return {}
    if variant == "per_sample":
        shape = norm.shape
    elif variant == "ones_wide":
        shape = tuple([length if axis % 2 else 1 for axis, length in enumerate(norm.shape)])
    elif variant in ("other_dtype", "mixed_dtypes"):
        dtypes = (other, other if variant == "other_dtype" else dtype)
    layout = "stepped" if variant == "strided" else "C"
    names = ("weight", "bias") if variant not in ("weight", "bias") else (variant,)
    return {
        name: make(placed(numbers("normal", shape, dtypes[name == "bias"], salt=3 + (name == "bias")), layout))
        for name in names
    }


def function(norm: Norm) -> Callable[..., Any]:
    """Return the public function."""
    return getattr(an, norm.function)  # type: ignore[no-any-return]


def elements(norm: Norm) -> int:
    """Return how many elements x has."""
    return math.prod(norm.shape)
