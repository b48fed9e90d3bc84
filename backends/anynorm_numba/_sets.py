"""Where sets, their lines and their residuals lie in memory: what all kernels over runs ask of a geometry."""

from __future__ import annotations

import math

from anynorm_numba import _compile
from anynorm_numba._geometry import CHUNK
from anynorm_numba._scalars import compute_itemsize, load, rounded, store


@_compile.part
def set_address(strides, address, a, b):
    """Return where the set (a, b) of an array begins."""
    return address + a * strides.a + b * strides.b


@_compile.part
def set_at(geometry, u):
    """Return (a, b) of set number u."""
    inner = geometry.lengths.b
    return (u, 0) if inner == 1 else (u // inner, u % inner)


@_compile.part
def set_behind(geometry, a, b):
    """Return (a, b) of the set that follows: two divisions take as long as summing 30 float32."""
    return (a + 1, 0) if b + 1 == geometry.lengths.b else (a, b + 1)


@_compile.part
def chunk_end(geometry, chunk):
    """Return the index in a line of the element behind a chunk."""
    return min(chunk * CHUNK + CHUNK, geometry.lengths.r * geometry.run)


@_compile.part
def place_of(geometry, i):
    """Return in which run of a line element i lies, and as which."""
    run = geometry.run
    return (0, i) if geometry.lengths.r == 1 or i == 0 else (i // run, i % run)


@_compile.part
def has_short_lines(geometry):
    """Say whether each line is one run of one chunk. Then lines are taken in a loop that calls no function.

    To call one for each line takes as long as summing or writing 50 float32.
    """
    return geometry.lengths.r == 1 and geometry.chunks == 1 and not geometry.vector


@_compile.part
def floor_of(geometry):
    """Return the number that replaces what is below it: 0 if ReLU follows, NaN, below which nothing is, if not."""
    return 0.0 if geometry.activation else math.nan


@_compile.part
def rounded_residuals(dtype, residuals):
    """Return (mean, correction, rstd, scale, m2) rounded to the compute dtype; the correction takes mean's error."""
    mean = rounded(dtype, residuals[0])
    correction = rounded(dtype, (residuals[0] - mean) + residuals[1])
    return mean, correction, rounded(dtype, residuals[2]), residuals[3], rounded(dtype, residuals[4])


@_compile.part
def store_residuals(dtype, address, stride, residuals):
    """Store the residuals of a set, `stride` bytes apart."""
    for field in range(5):
        store(dtype, address + field * stride, residuals[field])


@_compile.part
def load_residuals(dtype, address, stride):
    """Return (mean, correction, rstd, scale, m2) of a set, stored `stride` bytes apart."""
    mean, correction = load(dtype, address), load(dtype, address + stride)
    rstd, scale = load(dtype, address + 2 * stride), load(dtype, address + 3 * stride)
    return mean, correction, rstd, scale, load(dtype, address + 4 * stride)


@_compile.part
def residuals_of_set(dtype, geometry, residuals, u):
    """Return the residuals of set number u, of all sets' (5, sets)."""
    stride = geometry.lengths.a * geometry.lengths.b * compute_itemsize(dtype)
    return load_residuals(dtype, residuals + u * compute_itemsize(dtype), stride)
