"""The one argument of every kernel, as bytes. The struct `Call` in kernels/call.cu has these fields in order."""

from __future__ import annotations

import struct

# Addresses on the device, 0 where there is no array; kernels/call.cu has their shapes.
ADDRESSES = (
    "x",
    "dy",
    "y",  # dx in a backward pass
    "weight",
    "bias",
    "residuals",
    "partials",  # the given mean, for the kernel that reads it
    "means",  # the given variance, likewise
    "dweight_partials",
    "dbias_partials",
    "dweight",
    "dbias",
)

COUNTS = (
    "sets",
    "b_length",  # sets along B
    "n",  # elements of a set
    "rows",  # of the table that a kernel goes over
    "columns",
    "chunks",  # of a set
    "field_stride",  # floats of one field of `partials`
    "sets_per_group",  # that a thread group takes one after the other
    "outer",  # partials of dweight and dbias, (outer, kept, inner), are summed over outer and inner
    "kept",
    "inner",
    "line_length",  # elements
    "pieces",  # of a set
    "items",  # vectors of a thread
)

# Divisors: pieces of a line, and lines of an index along R.
DIVISORS = ("per_line", "per_r")

# Strides in elements along A, R, B and S; of `partials` along A, chunks, B and the columns of a set.
STRIDES = ("x_strides", "dy_strides", "y_strides", "weight_strides", "bias_strides", "partial_strides")

NUMBERS = ("eps", "rsqrt_eps")  # rsqrt_eps: 1/√eps, the rstd of a set of equal values; 0 for eps = 0

_PACK = struct.Struct(f"<{len(ADDRESSES)}Q{len(COUNTS) + 3 * len(DIVISORS) + 4 * len(STRIDES)}q{len(NUMBERS)}d")
SIZE = _PACK.size

Ints = tuple[int, ...]


def divisor(number: int) -> tuple[int, int, int]:
    """Return a divisor, its factor and its shift: for 0 <= m < 2³¹, m // number is m * factor >> shift."""
    shift = 31 + (number - 1).bit_length()
    return number, (1 << shift) // number + 1, shift


def pack(addresses: Ints, counts: Ints, strides: Ints, eps: float, rsqrt_eps: float) -> bytes:
    """Return the argument of a kernel; every tuple in the order above, divisors after counts."""
    return _PACK.pack(*addresses, *counts, *strides, eps, rsqrt_eps)
