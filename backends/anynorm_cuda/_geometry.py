"""The one argument of every kernel, as bytes. The struct `Call` in kernels/call.cu has its fields in this order."""

from __future__ import annotations

import struct

# Addresses on the device; 0 where there is none.
ADDRESSES = (
    "x",
    "dy",
    "y",  # dx in a backward pass
    "weight",
    "bias",
    "saved",  # five planes of a float for each set: mean, correction, rstd, scale, m2
    "partial",  # what chunks of sets leave, in planes
    "means",  # two planes of a float for each set: the means of g and of g·x̂
    "to_weight",  # what sums up to the gradient of weight, and of bias
    "to_bias",
    "dweight",
    "dbias",
)

# Lengths and counts.
COUNTS = (
    "sets",
    "inner",  # sets along B
    "n",  # elements of a set
    "rows",  # of a table whose columns are sets; or sets, of which teams take several
    "columns",
    "chunks",  # of a set
    "plane",  # numbers in a plane of `partial`
    "share",  # sets that a team takes one after the other
    "outer",  # parameters: sums of (outer, kept, within) over all but `kept`
    "kept",
    "within",
    "run",  # elements of a line
    "pieces",  # of a set
    "items",  # vectors of a thread
)

# What others are divided by: pieces of a line, and lines of a row.
DIVISORS = ("per_line", "per_r")

# Steps in elements along A, R, B and S; in `partial` along A, chunks, B and what a chunk leaves of each set.
TENSORS = ("of_x", "of_dy", "of_y", "of_weight", "of_bias", "of_partial")

NUMBERS = ("eps", "root")  # root: what a set of equal values is multiplied by, 1/√eps, or 0 for eps = 0

_PACK = struct.Struct(f"<{len(ADDRESSES)}Q{len(COUNTS) + 3 * len(DIVISORS) + 4 * len(TENSORS)}q{len(NUMBERS)}d")
SIZE = _PACK.size

Ints = tuple[int, ...]


def divisor(number: int) -> tuple[int, int, int]:
    """Return a number with a factor and a shift: any from 0 to 2³¹ − 1, times factor, shifted, is divided by it."""
    shift = 31 + (number - 1).bit_length()
    return number, (1 << shift) // number + 1, shift


def pack(addresses: Ints, counts: Ints, steps: Ints, eps: float, root: float) -> bytes:
    """Return the argument of a kernel; every tuple in the order above, divisors behind counts."""
    return _PACK.pack(*addresses, *counts, *steps, eps, root)
