"""From strides to the five-dimensional view that engines run: which axis of memory becomes which canonical axis.

Tuples of ints in, tuples of ints out. No array, no address, no dtype, and nothing of how a kernel runs enters here.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import NamedTuple, cast

from anynorm._core.plan import Plan

Ints = tuple[int, ...]
Five = tuple[int, int, int, int, int]

# A parameter's shape as the caller passed it, and its strides.
Layout = tuple[Ints, Ints]

# A and B are kept; R, S and P are reduced, and along P neither weight nor bias varies.
_CANONICAL = "ARBSP"

# The canonical axes that an axis may become, the best first. Channels within a group may become one alone, so that a
# group is summed channel by channel, in the same order with a weight and without.
_KEPT = "AB"
_CHANNELS = "S"
_VARYING = "SR"  # reduced, and weight or bias varies along it
_UNIFORM = "PRS"  # reduced, and neither does

_REPEATS = "repeats its elements along an axis, with a stride of 0"
_BACKWARDS = "runs backwards along an axis"

_DESCRIPTIONS = {_KEPT: "kept", _CHANNELS: "channels of a group", _VARYING: "reduced with weight", _UNIFORM: "reduced"}


class View(NamedTuple):
    """How loops over (a, r, b, s, p) run through memory: one statistic per (a, b), reduced over (r, s, p).

    Strides are in the unit that `view` was given, 0 along a length of 1 and where a parameter does not vary. Along A
    and B those of a tensor that runs backwards are negative.
    """

    lengths: Five
    strides: tuple[Five, ...]  # of each tensor: of x and y, or of x, dy and dx
    weight: Five | None
    bias: Five | None
    axes: tuple[Ints, ...]  # those of the plan that lie along A, R, B, S, P, outermost first

    @property
    def kept(self) -> Ints:
        """The axes of the plan that sets lie along, outermost first: the order of residuals and of sums over sets."""
        return self.axes[0] + self.axes[2]


class _Axis(NamedTuple):
    length: int
    strides: Ints  # of each tensor, x first, then of weight and of bias
    candidates: str  # the canonical axes that it may become
    members: Ints  # the axes of the plan that it is made of, outermost first


@lru_cache(maxsize=4096)
def view(plan: Plan, shape: Ints, strides: tuple[Ints, ...], weight: Layout | None, bias: Layout | None) -> View | str:
    """Return the view of tensors of one shape, x first, or half a sentence that says why there is none.

    `strides` are those of each tensor on x's own axes, in any one unit. No length may be 0.

    Along kept axes a tensor may run backwards: what is one set, and in which order it lies, is as if it ran forwards.
    """
    for name, own in (("weight", weight), ("bias", bias)):
        fault = None if own is None else _fault(*own, ())
        if fault is not None:
            return f"{name} {fault}"
    layouts: list[Ints | None] = [_along(plan.shape, (shape, own)) for own in strides]
    for which, along in enumerate(layouts):
        fault = _fault(cast("Ints", plan.shape), cast("Ints", along), plan.kept)
        if fault is not None:
            along_reduced = f"{fault} that is reduced" if fault == _BACKWARDS else fault
            return f"{'an array beside x' if which else 'x'} {along_reduced}"
    layouts += [_along(planned, own) for planned, own in ((plan.weight, weight), (plan.bias, bias))]
    axes = _axes(plan, shape, layouts)
    if not _nested(axes):
        return "axes of x overlap in memory"
    axes = _merged(axes)
    canonical = _canonical(axes)
    if canonical is None:
        order = ", ".join([_DESCRIPTIONS[axis.candidates] for axis in axes])
        return f"the order of x's axes in memory, outermost first, is {order}, for which the kernels have no loops"
    taken = dict(zip(canonical, axes, strict=True))
    absent = _Axis(1, (0,) * len(layouts), "", ())
    five = [taken.get(name, absent) for name in _CANONICAL]
    by_array = [cast("Five", own) for own in zip(*[axis.strides for axis in five], strict=True)]
    return View(
        cast("Five", tuple([axis.length for axis in five])),
        tuple(by_array[: len(strides)]),
        None if weight is None else by_array[-2],
        None if bias is None else by_array[-1],
        tuple([axis.members for axis in five]),
    )


def why_apart(run: int, step: int, needed: int, where: str) -> str:
    """Return in half a sentence why runs of this many elements, `step` apart, are not the one memory of `needed`."""
    what = "neighbours in x's innermost axis" if run == 1 else f"sets lie in runs of {run} elements, and those"
    if step == -needed:
        return f"{what} follow each other backwards {where}"
    return f"{what} do not {'lie side by side' if run == 1 else 'follow each other without a gap'} {where}"


def _fault(lengths: Ints, strides: Ints, kept: Ints) -> str | None:
    """Return what is wrong with an array that repeats, or runs backwards along an axis not `kept`; else None."""
    for axis, (length, stride) in enumerate(zip(lengths, strides, strict=True)):
        if length > 1 and stride == 0:
            return _REPEATS
        if length > 1 and stride < 0 and axis not in kept:
            return _BACKWARDS
    return None


def _along(lengths: tuple[int | None, ...] | None, own: Layout | None) -> Ints | None:
    """Return an array's strides along axes of these lengths: its own axes, one of which may be split in two.

    Both run in the same order, and axes of length 1, which one may have where the other has none, lead nowhere.
    """
    if lengths is None or own is None:
        return None
    remaining = [(length, stride) for length, stride in zip(*own, strict=True) if length > 1]
    strides, left, stride = [], 1, 0
    for length in reversed(cast("Ints", lengths)):
        if length > 1 and left == 1:
            left, stride = remaining.pop()
        strides.append(stride if length > 1 else 0)
        left, stride = left // length, stride * length
    return tuple(reversed(strides))


def _axes(plan: Plan, shape: Ints, strides: list[Ints | None]) -> list[_Axis]:
    """Return the axes longer than 1 in the order of the size of x's strides, outermost first."""
    channels = _channels(plan, shape)
    axes = []
    for axis, length in enumerate(cast("Ints", plan.shape)):
        along_axis = tuple([0 if own is None else own[axis] for own in strides])
        if axis in plan.kept:
            candidates = _KEPT
        elif axis == channels:
            candidates = _CHANNELS
        else:
            candidates = _VARYING if any(along_axis[-2:]) else _UNIFORM
        if length > 1:
            axes.append(_Axis(length, along_axis, candidates, (axis,)))
    return sorted(axes, key=lambda axis: -abs(axis.strides[0]))


def _channels(plan: Plan, shape: Ints) -> int | None:
    """Return the axis of a group norm's plan that runs over the channels of a group; None for another norm."""
    if len(plan.shape) == len(shape):
        return None
    known = cast("Ints", plan.shape)
    splits = [
        axis
        for axis in plan.kept
        if axis + 1 in plan.reduced and (*known[:axis], known[axis] * known[axis + 1], *known[axis + 2 :]) == shape
    ]
    # Where lengths of 1 leave it open, all but the last have one channel a group: the last never misses channels.
    return splits[-1] + 1


def _nested(axes: list[_Axis]) -> bool:
    """Say whether each stride of x leads beyond all that the axes inside it reach, so that no two elements are one."""
    reach = 0
    for axis in reversed(axes):
        stride = abs(axis.strides[0])
        if stride <= reach:
            return False
        reach += (axis.length - 1) * stride
    return True


def _merged(axes: list[_Axis]) -> list[_Axis]:
    """Return axes where each that continues the one inside it, in every array, is one with it."""
    merged: list[_Axis] = []
    for inner in axes:
        outer = merged[-1] if merged else None
        beyond = tuple([stride * inner.length for stride in inner.strides])  # one past the end of `inner`
        # Channels within a group, of which there is one axis, share their candidates with none.
        if outer is not None and outer.candidates == inner.candidates and outer.strides == beyond:
            merged[-1] = inner._replace(length=outer.length * inner.length, members=outer.members + inner.members)
        else:
            merged.append(inner)
    return merged


def _canonical(axes: list[_Axis]) -> tuple[str, ...] | None:
    """Return the canonical axis that each axis becomes, in order, or None where they do not fit."""

    def fit(names: tuple[str, ...]) -> bool:
        return all(name in axis.candidates for name, axis in zip(names, axes, strict=True))

    def regret(names: tuple[str, ...]) -> int:
        return sum(axis.candidates.index(name) for name, axis in zip(names, axes, strict=True))

    return min(filter(fit, combinations(_CANONICAL, len(axes))), key=regret, default=None)
