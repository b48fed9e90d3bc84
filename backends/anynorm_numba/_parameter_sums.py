"""The last step of a backward pass: gradients of weight and bias from the sums that the others left."""

from __future__ import annotations

from numba import njit

from anynorm_numba import _geometry as at
from anynorm_numba._scalars import computed_bytes, field, put_number, real
from anynorm_numba._statistics import two_sum, whole


@njit(error_model="numpy")
def put_gradient(kind, geometry, lengths, sums, target):
    """Sum float64 over the first and the last of three lengths and put what is left, as numbers of C, at target."""
    outer, kept = field(kind, geometry, lengths), field(kind, geometry, lengths + 1)
    inner = field(kind, geometry, lengths + 2)
    for j in range(kept):
        total = lost = 0.0
        for i in range(outer):
            address = sums + 8 * (i * kept + j) * inner
            for k in range(inner):
                total, more = two_sum(total, real(kind, address + 8 * k))
                lost += more
        put_number(kind, target + j * computed_bytes(kind), whole((total, lost)))


@njit(error_model="numpy")
def put_gradients(kind, geometry, sums, dweight, dbias):
    """Put the gradients of weight and bias at their addresses, unless these are 0 or their lengths are."""
    if dweight:
        put_gradient(kind, geometry, at.OF_WEIGHT, sums, dweight)
    if dbias:
        put_gradient(kind, geometry, at.OF_BIAS, sums + 8 * field(kind, geometry, at.SUMS), dbias)
