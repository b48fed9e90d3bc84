"""Whether strided arrays overlap in memory, from addresses and strides alone. No array enters here."""

from __future__ import annotations

import math
from typing import NamedTuple


class Memory(NamedTuple):
    """Where a strided array lies: the address of its first element, and lengths, steps and element size in bytes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int


def overlap(a: Memory, b: Memory) -> bool:
    """Say whether two arrays may share a byte. False is certain; True may be wrong for exotic pairs of strides."""
    if 0 in a.shape or 0 in b.shape:
        return False
    (a_low, a_high), (b_low, b_high) = _span(a), _span(b)
    if a_high <= b_low or b_high <= a_low:
        return False
    # Interleaved arrays, such as the real and imaginary parts of one: no element of either lies off their lattice.
    lattice = math.gcd(*_steps(a), *_steps(b))
    offset = (b.address - a.address) % lattice if lattice else 0
    return lattice == 0 or offset < a.itemsize or offset + b.itemsize > lattice


def refuses_out(out: Memory, x: Memory, others: dict[str, Memory]) -> str | None:
    """Return why `out` may not be written while the other arrays are read, or None."""
    if 0 in [abs(step) for step in _steps(out)]:
        return "several elements of out share one place in memory. Pass a dense array, e.g. xp.empty_like(x)."
    # x itself is fine: an element is read before it is written.
    named = others if out == x else {"x": x, **others}
    for name, its in named.items():
        if overlap(out, its):
            return (
                f"out overlaps {name} in memory. Pass x itself, or an array that shares no memory with the arguments."
            )
    return None


def _steps(a: Memory) -> list[int]:
    return [step for length, step in zip(a.shape, a.strides, strict=True) if length > 1]


def _span(a: Memory) -> tuple[int, int]:
    reach = [(length - 1) * step for length, step in zip(a.shape, a.strides, strict=True)]
    return a.address + sum(min(r, 0) for r in reach), a.address + sum(max(r, 0) for r in reach) + a.itemsize
