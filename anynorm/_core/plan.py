"""Which elements share a statistic, and where weight and bias lie: decided from shapes and axes alone.

No array, no stride, no dtype enters here. A plan is built once per (function, shapes, axes), cached, and run by
the formula and by every backend.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, SupportsIndex

from anynorm._core.advice import for_number
from anynorm._core.arrays import Shape, described

# What may follow a channel norm in the same pass.
ACTIVATIONS = ("relu",)

Axes = int | tuple[int, ...] | None

# What callers may pass for such an argument.
AxesLike = SupportsIndex | tuple[SupportsIndex, ...] | None


class AxisError(ValueError, IndexError):
    """An axis that the array does not have. Both a ValueError and an IndexError, as NumPy's is."""


class Plan(NamedTuple):
    """One normalization, decided.

    `shape` is x's own shape, but for group norm, whose channel axis is split into (groups, channels per group).
    `reduced` are the axes of `shape` whose elements share a statistic, `kept` all others. `statistic` is the shape of a
    mean that broadcasts against `shape`; `weight` and `bias` are such shapes too, or None where there is no parameter.
    """

    function: str
    shape: Shape
    reduced: tuple[int, ...]
    n: int  # elements per statistic; 0 where statistics are given
    centres: bool = True  # False: the mean is taken as 0 (RMS norm)
    given: bool = False  # the caller brings mean and var
    weight: Shape | None = None
    bias: Shape | None = None
    kept: tuple[int, ...] = ()
    statistic: Shape = ()
    activation: str | None = None  # what y goes through: one of ACTIVATIONS


def _plan(function: str, shape: Shape, reduced: tuple[int, ...], n: int, **rest: Any) -> Plan:
    """Return a plan with what follows from `shape` and `reduced`."""
    kept = tuple([axis for axis in range(len(shape)) if axis not in reduced])
    statistic = tuple([1 if axis in reduced else length for axis, length in enumerate(shape)])
    return Plan(function, shape, reduced, n, kept=kept, statistic=statistic, **rest)


# What the lengths of a shape are where all of it is settled, or will be by Dask.
_SETTLED = frozenset([int, type(None)])


def settled(shape: Shape | None) -> bool:
    """Say whether no length of a shape is a tracer's symbol, which a program's later calls will bring.

    A symbol may have no hash (torch.SymInt), be itself alone (torch.jit.trace), or refuse to be compared with those of
    another program (jax.export). Not to be asked under torch.compile, where symbols pass for ints.
    """
    return shape is None or _SETTLED.issuperset(map(type, shape))


def cached(build: Callable[..., Plan]) -> Callable[..., Plan]:
    """Cache a plan builder: function, x's shape, what it takes besides, the shapes of weight and bias.

    The first argument says whether a compiler is tracing, which caches confuse. No symbol enters the cache.
    """
    remembered = lru_cache(maxsize=4096)(build)

    def builder(compiling: bool, *key: Any) -> Plan:
        known = not compiling and settled(key[1]) and settled(key[-2]) and settled(key[-1])
        return remembered(*key) if known else build(*key)

    return builder


def axes_argument(function: str, name: str, value: object) -> Axes:
    """Return an axis argument as int, tuple of ints or None; anything else is a TypeError.

    Done before the cache is asked, because 1, 1.0 and True are one key to a dict.
    """
    if type(value) is int or value is None:
        return value
    if isinstance(value, tuple):
        return tuple([axis if type(axis) is int else index_argument(function, name, axis) for axis in value])
    return index_argument(function, name, value)


def index_argument(function: str, name: str, value: object) -> int:
    """Return an integer argument as an int; anything else, a bool too, is a TypeError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        several = name in ("axis", "batch_axis")
        needed = "an integer, a tuple of integers or None" if several else "an integer"
        advice = f"Pass e.g. {name}=1, {name}=(0, 2) or {name}=None." if several else f"Pass e.g. {name}=1."
        if (function, name) == ("group_norm", "num_groups"):  # the one that is positional only
            advice = "Pass it after x, e.g. group_norm(x, 8)."
        msg = f"{function}: {name} must be {needed}, got {described(value)}. {for_number(value, advice)}"
        raise TypeError(msg) from None


def activation_argument(function: str, value: object) -> str | None:
    """Return an activation argument; anything but None and a known name is a ValueError."""
    if value is None or (isinstance(value, str) and value in ACTIVATIONS):
        return value
    known = " or ".join([repr(name) for name in ACTIVATIONS])
    msg = f"{function}: activation must be {known} or None, got {described(value)}. Apply any other to the result."
    raise ValueError(msg)


@cached
def over_axes(function: str, shape: Shape, axis: Axes, centres: bool, weight: Shape | None, bias: Shape | None) -> Plan:
    """Plan a norm that reduces `axis`: layer norm, RMS norm, and the moments."""
    everything = tuple(range(len(shape)))
    reduced = everything if axis is None else _axes(function, "axis", axis, len(shape))
    if not reduced:
        msg = f"{function}: axis=() reduces nothing. Name at least one axis, or pass None for all of them."
        raise ValueError(msg)
    n = _count(function, shape, reduced)
    named = {"weight": weight, "bias": bias}
    parameters = {name: _along(function, name, own, shape, reduced) for name, own in named.items()}
    return _plan(function, shape, reduced, n, centres=centres, **parameters)


@cached
def by_channel(
    function: str,
    shape: Shape,
    channel_axis: int,
    batch_axis: Axes,
    num_groups: int | None,
    given: bool,
    activation: str | None,
    weight: Shape | None,
    bias: Shape | None,
) -> Plan:
    """Plan a norm whose weight lies along `channel_axis`: batch, instance and group norm.

    `batch_axis` is kept beside the channels (batch norm keeps none); `num_groups` splits the channels.
    """
    (channel,) = _axes(function, "channel_axis", channel_axis, len(shape))
    batch = () if batch_axis is None else _axes(function, "batch_axis", batch_axis, len(shape))
    if channel in batch:
        msg = (
            f"{function}: batch_axis={batch_axis} contains channel_axis={channel_axis}; for x of shape {show(shape)} "
            f"both are axis {channel}. Name the axes of the batch alone, or pass batch_axis=None for unbatched input."
        )
        raise ValueError(msg)
    # An int that torch.compile left open goes into no text; `index` makes it a constant.
    named, rule = {"weight": weight, "bias": bias}, f"channel_axis={operator.index(channel_axis)}"
    parameters = {name: _along(function, name, own, shape, (channel,), rule) for name, own in named.items()}
    kept = {channel, *batch}
    n = 0 if given else _count(function, shape, tuple([axis for axis in range(len(shape)) if axis not in kept]))
    if num_groups is not None:
        size = _group_size(function, shape, channel, num_groups)
        parameters = {name: _split(own, channel, num_groups, size) for name, own in parameters.items()}
        shape = (*shape[:channel], num_groups, size, *shape[channel + 1 :])
        kept = {axis + (axis > channel) for axis in kept}
        n *= size
    reduced = tuple([axis for axis in range(len(shape)) if axis not in kept])
    return _plan(function, shape, reduced, n, given=given, activation=activation, **parameters)


def _axes(function: str, name: str, value: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return axes as ascending, non-negative ints."""
    axes = []
    for axis in (value,) if isinstance(value, int) else value:
        if not -ndim <= axis < ndim:
            limits = f"Choose one from {-ndim} to {ndim - 1}."
            msg = f"{function}: {name}={axis} is out of range for x with {ndim} axes. {limits}"
            raise AxisError(msg)
        # Not axis % ndim: torch.compile(dynamic=True) takes an int for a variable, and only an index settles it.
        axes.append(list(range(ndim))[axis])
    if len(set(axes)) < len(axes):
        msg = f"{function}: {name}={value} names an axis twice (x has {ndim} axes). Name each axis once."
        raise ValueError(msg)
    return tuple(sorted(axes))


def _count(function: str, shape: Shape, axes: tuple[int, ...]) -> int:
    """Return how many elements share a statistic."""
    lengths = [shape[axis] for axis in axes]
    for axis, length in zip(axes, lengths, strict=True):
        if length is None:
            msg = (
                f"{function}: the length of x along axis {axis}, which is reduced, is not known: x has shape "
                f"{show(shape)}. Make it known first, on Dask with x.compute_chunk_sizes()."
            )
            raise ValueError(msg)
    return math.prod(lengths)  # type: ignore[arg-type]


def _group_size(function: str, shape: Shape, channel: int, num_groups: int) -> int:
    channels = shape[channel]
    if num_groups < 1:
        msg = (
            f"{function}: num_groups must be at least 1, got {num_groups}. Choose a divisor of the number of channels."
        )
        raise ValueError(msg)
    if channels is None:
        msg = (
            f"{function}: the number of channels of x, its length along axis {channel}, is not known: x has shape "
            f"{show(shape)}. Make it known first, on Dask with x.compute_chunk_sizes()."
        )
        raise ValueError(msg)
    if channels % num_groups:
        msg = (
            f"{function}: x has {channels} channels along axis {channel}, which num_groups={num_groups} does not "
            f"divide. Choose a divisor of {channels}, or give x a number of channels that {num_groups} divides."
        )
        raise ValueError(msg)
    return channels // num_groups


def _along(
    function: str, name: str, given: Shape | None, shape: Shape, axes: tuple[int, ...], rule: str | None = None
) -> Shape | None:
    """Return a parameter's shape as it broadcasts against x, or None where there is no parameter."""
    if given is None:
        return None
    if len(given) == len(shape):
        # A bool, as lengths are tensors under torch.jit.trace, which would note a comparison with False.
        fits = [bool(own == 1 or own == length) for own, length in zip(given, shape, strict=True)].count(False) == 0
        broadcast_shape = given
    else:
        lengths = tuple([shape[axis] for axis in axes])
        fits = given == lengths
        broadcast_shape = tuple([length if axis in axes else 1 for axis, length in enumerate(shape)])
    if not fits:
        where = rule or f"the reduced axes {axes}"
        needed = show(tuple([shape[axis] for axis in axes]))
        msg = (
            f"{function}: {name} has shape {show(given)}, which does not fit x of shape {show(shape)}. It must have "
            f"shape {needed}, along {where}, or as many axes as x and broadcast to x's shape."
        )
        raise ValueError(msg)
    return broadcast_shape


def _split(broadcast_shape: Shape | None, channel: int, groups: int, size: int) -> Shape | None:
    """Return a parameter's shape after the channel axis is split into (groups, size)."""
    if broadcast_shape is None:
        return None
    pair = (1, 1) if broadcast_shape[channel] == 1 else (groups, size)
    return (*broadcast_shape[:channel], *pair, *broadcast_shape[channel + 1 :])


def show(shape: Shape) -> str:
    """Return a shape as an error shows it, with ? for a length that is not known."""
    return str(shape).replace("None", "?")
