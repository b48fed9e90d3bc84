"""Whether strided arrays overlap in memory, from addresses and strides alone. Knows no array library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

# Steps after which the search gives up and assumes an overlap. Arrays whose axes nest, as slices' do, take two an axis.
PATIENCE = 1000


class Memory(NamedTuple):
    """Where a strided array lies: the address of its first element, and lengths, steps and element size in bytes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int


def refuses_out(out: Any, x: Any | None, others: dict[str, Any], memory_of: Callable[[Any], Memory]) -> str | None:
    """Return why `out` may not be written while the others are read, or None; it may be x itself, if there is an x."""
    return _refuses(memory_of(out), None if x is None else memory_of(x), {n: memory_of(a) for n, a in others.items()})


def _refuses(out: Memory, x: Memory | None, others: dict[str, Memory]) -> str | None:
    if 0 in out.shape:
        return None
    if overlaps_itself(out):
        return "several elements of out share one place in memory. Pass a dense array, e.g. xp.empty_like(x)."
    span = _span(out)
    instead = "an array that shares no memory with the arguments"
    if x is not None:
        if _essence(out) != _essence(x):  # of x itself an element is read before it is written
            others = {"x": x, **others}
        instead = f"x itself, or {instead}"
    for name, array in others.items():
        if not apart(span, [_span(array)]) and overlap(out, array):
            return f"out overlaps {name} in memory. Pass {instead}."
    return None


def may_be_written(
    out: Any,
    x: Any | None,
    others: Sequence[Any],
    span: Callable[[Any], tuple[int, int]],
    memory_of: Callable[[Any], Memory],
) -> bool:
    """Say whether `out` is x or shares no memory with it, and none with the others; x and others may be None.

    `span` tells between which addresses an array lies: most often that says enough.
    """
    given = [array for array in others if array is not None]
    if apart(span(out), [span(array) for array in (given if x is None or out is x else (x, *given))]):
        return True
    # `out` may be a view of x, or other columns of the same array.
    return refuses_out(out, x, {str(place): array for place, array in enumerate(given)}, memory_of) is None


def reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Return how far the elements of an array go below and beyond the first, in the unit of the strides."""
    first = last = 0
    for length, stride in zip(shape, strides, strict=True):
        if stride < 0:
            first += (length - 1) * stride
        else:
            last += (length - 1) * stride
    return first, last


def apart(one: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    """Say whether what lies between two addresses lies outside of all the others."""
    begin, end = one
    for first, last in others:  # noqa: SIM110  a generator takes 1 µs
        if first < end and begin < last:
            return False
    return True


def _span(array: Memory) -> tuple[int, int]:
    """Return between which addresses an array lies."""
    first, last = reach(array.shape, array.strides)
    return array.address + first, array.address + last + array.itemsize


def _essence(array: Memory) -> Memory:
    """Return an array without its axes of length 1, along which a stride leads nowhere."""
    axes = [axis for axis in zip(array.shape, array.strides, strict=True) if axis[0] != 1]
    return array._replace(shape=tuple([length for length, _ in axes]), strides=tuple([step for _, step in axes]))


def overlaps_itself(array: Memory) -> bool:
    """Say whether two elements of an array share a byte. False is certain; True too, but for a lack of patience."""
    axes = sorted(
        [(abs(step), length - 1) for length, step in zip(array.shape, array.strides, strict=True) if length > 1]
    )
    # Each step leads beyond all that the smaller ones reach: so it is in what slicing and transposing can make.
    reach, nested = array.itemsize, True
    for step, last in axes:
        nested = nested and step >= reach
        reach += last * step
    if nested:
        return False
    if axes[0][0] == 0:
        return True
    # Two elements lie Σ k·step apart, |k| ≤ last. Of the k that are not 0 the first may be taken as positive.
    patience = [PATIENCE]
    while axes:
        step, last = axes.pop()
        apart = [(step, 0, last - 1), *[(inner, -most, most) for inner, most in reversed(axes)]]
        if _meet(step, apart, (array.itemsize, array.itemsize), patience):
            return True
    return False


def overlap(a: Memory, b: Memory) -> bool:
    """Say whether two arrays share a byte. False is certain; True too, unless the search ran out of patience."""
    if 0 in a.shape or 0 in b.shape:
        return False
    # An element of a and one of b lie a.address − b.address + Σ k·step apart, each k within its limits.
    limits: dict[int, tuple[int, int]] = {}
    for sign, array in ((1, a), (-1, b)):
        for length, stride in zip(array.shape, array.strides, strict=True):
            step, reach = abs(stride), (length - 1) * sign * (1 if stride > 0 else -1)
            low, high = limits.get(step, (0, 0))
            limits[step] = low + min(reach, 0), high + max(reach, 0)
    axes = [(step, *limits[step]) for step in sorted(limits, reverse=True) if step]
    return _meet(a.address - b.address, axes, (a.itemsize, b.itemsize), [PATIENCE])


def _meet(gap: int, axes: list[tuple[int, int, int]], sizes: tuple[int, int], patience: list[int]) -> bool:
    """Say whether gap + Σ k·step can be as little as the element sizes; `axes` are (step, least k, largest k)."""
    patience[0] -= 1
    if patience[0] < 0:
        return True
    if not axes:
        return -sizes[0] < gap < sizes[1]
    (step, low, high), *inner = axes
    least, most = sum(k * s for s, k, _ in inner), sum(k * s for s, _, k in inner)
    first = max(low, (-sizes[0] - gap - most) // step + 1)
    last = min(high, -((gap + least - sizes[1]) // step) - 1)
    return any(_meet(gap + k * step, inner, sizes, patience) for k in range(first, last + 1))
