"""The formula on blocks of sets: in the compute dtype, and once more, with range to spare, for sets that need it.

A set is shifted by p, the mean of its first chunk, before it is measured: then mean = p + c and var = Σ(x − p)²/n − c²
with c = Σ(x − p)/n. Where c is not small beside the spread, p was a bad guess and p + c replaces it. So what is
subtracted is exact or small, equal values give exactly 0, and the two passes over the data are those of statistics and
result. Sets whose variance leaves the range in which squares are safe are computed again: float32 in float64, float64
scaled by a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np

from anynorm.backend import FLOAT32, FLOAT64, Executable, Format, Plan, Residuals, Statistics, formula
from anynorm_numba.engine import Array, Given, Maybe
from anynorm_numpy._affine import Affine
from anynorm_numpy._block import Block, buffers, partition
from anynorm_numpy._sets import Sets

# Where var + eps lies within these, no sum of squares overflowed and none that counts underflowed.
_SAFE = {FLOAT32: (2.0**-100, 2.0**100), FLOAT64: (2.0**-900, 2.0**900)}


class Blocks(Executable[Array]):
    """A forward pass in NumPy alone."""

    engine = "anynorm_numpy"

    def forward(
        self, x: Array, weight: Maybe, bias: Maybe, eps: float, given: Given, out: Maybe, save: bool
    ) -> tuple[Any, Residuals | None]:
        plan, compute = self.plan, _compute(x)
        y = np.empty_like(x, subok=False) if out is None else out
        target = Sets.of(y, plan)
        measured = []
        with np.errstate(all="ignore"):
            parameters = [None if p is None else p.astype(compute.name, copy=False) for p in (weight, bias)]
            affine = Affine(plan, *parameters)
            flat = None if given is None else [_flat(statistic, compute) for statistic in given]
            for lanes in _lanes(plan, x, eps, flat):
                _write(lanes, affine, target)
                if save and given is None:
                    measured.append(lanes)
            if not save:
                return y, None
            if given is not None:
                residuals = formula.residuals_of_given(plan, given, eps, x, ops=self.ops)
            else:
                residuals = _residuals(measured, plan, x)
            return y, residuals if plan.activation is None else residuals._replace(bias=bias)

    def measure(self, x: Array, eps: float = 0.0) -> Statistics:
        with np.errstate(all="ignore"):
            found = _residuals(list(_lanes(self.plan, x, eps, None)), self.plan, x)
        return Statistics(self.plan.n, found.mean, found.correction, found.m2, found.scale)


def _flat(statistic: Array, compute: Format) -> Any:
    """Return a given statistic as float64, as it is rounded to the compute dtype: an array (1, sets)."""
    return statistic.astype(compute.name).astype(np.float64).reshape(1, -1)


def _write(lanes: list[_Lane], affine: Affine, target: Sets) -> None:
    """Put the results of a block into the target, those of each set from the lane that serves it."""
    first, sets = lanes[0], lanes[0].block.sets
    # Span by span through all lanes: the target may be the source.
    for (span, e), *again in zip(*[lane.block.read() for lane in lanes], strict=True):
        direct = None if again else target.direct(sets, span, e.dtype)
        y = first.block.scratch(span) if direct is None else direct
        affine.apply(e, first.factor, first.rest, sets, span, out=y)
        for lane, (_, again_e) in zip(lanes[1:], again, strict=True):
            better = lane.block.scratch(span)
            affine.apply(again_e, lane.factor, lane.rest, sets, span, out=better)
            np.copyto(y, better, where=~first.serves, casting="unsafe")
        if direct is None:
            target.write(sets, span, y)


def _compute(x: Array) -> Format:
    # Of the accepted dtypes only float64 has eight bytes; a comparison would miss the big-endian one.
    return FLOAT64 if x.dtype.itemsize == 8 else FLOAT32


class _Lane(NamedTuple):
    """A block of sets, in one dtype and scale, with what was found of them in float64."""

    block: Block  # its elements are (x − pivot)·scale
    serves: Any  # which sets this lane is right for
    factor: Any  # 1/√(var + eps) of the scaled elements
    var: Any  # of the scaled elements; None where it was given
    pivot: Any = None  # None for 0, as is rest
    rest: Any = None  # pivot + rest is the mean
    scale: Any = 1.0

    def statistics(self, n: int, compute: Format) -> Any:
        """Return the fields of Residuals, in float64, of elements scaled so that the compute dtype can hold them."""
        pivot, rest = [np.zeros_like(self.var) if part is None else part for part in (self.pivot, self.rest)]
        mean = pivot + rest
        part = mean - pivot
        error = (pivot - (mean - part)) + (rest - part)
        more = np.where(self.var == 0, 1.0, _more_scale(self.factor)) if compute is FLOAT32 else 1.0
        found = (mean * more, error * more, self.factor / more, self.scale * more, self.var * n * more * more)
        return np.stack(np.broadcast_arrays(*found))


def _more_scale(factor: Array) -> Any:
    """Return powers of two, 1 but where a factor of normalization or its square is beyond float32."""
    _, exponent = np.frexp(factor)
    extreme = np.isfinite(factor) & (np.abs(exponent) > 50)
    return np.ldexp(1.0, np.where(extreme, np.clip(exponent, -100, 126), 0))


def _lanes(plan: Plan, x: Array, eps: float, given: list[Any] | None) -> Iterator[list[_Lane]]:
    """Yield block after block of x, centred and measured: in the compute dtype, and again if some sets need it."""
    compute, source = _compute(x), Sets.of(x, plan)
    parts = partition(source)
    workspace = buffers(parts, compute.name)
    wide_workspace = None
    for sets, spans in parts:
        block = Block(source, sets, spans, workspace)
        stats = None if given is None else [statistic[:, sets.start : sets.stop] for statistic in given]
        lane = _measured(plan, block, eps, compute) if stats is None else _given(block, eps, compute, *stats)
        if lane.serves.all():
            yield [lane]
            continue
        wide_workspace = wide_workspace or buffers(parts, np.float64)
        wide = Block(source, sets, spans, wide_workspace)
        yield [lane, _measured_again(plan, wide, eps, compute) if stats is None else _given_again(wide, eps, *stats)]


def _measured(plan: Plan, block: Block, eps: float, compute: Format) -> _Lane:
    """Measure a block in the compute dtype."""
    pivot, rest, var = _centre(plan, block)
    total = var + eps
    low, high = _SAFE[compute]
    return _Lane(block, (total >= low) & (total <= high), 1 / np.sqrt(total), var, pivot, rest)


def _measured_again(plan: Plan, block: Block, eps: float, compute: Format) -> _Lane:
    """Measure a block in float64, which holds the squares of every float32; those of float64 once it is scaled."""
    scale: Any = 1.0
    if compute is FLOAT64:
        peak = block.peak()
        scale = np.ones_like(peak)
        for rescue in formula.RESCUES[FLOAT64]:
            if eps < rescue.eps_below:
                scale[rescue.beyond(peak, rescue.bound)] = rescue.scale
        block.restart(scale)
    pivot, rest, var = _centre(plan, block)
    total = var + eps * scale * scale
    # Where the total is 0 so are all elements. What is saved of them is unscaled: 1/√eps, scaled, may be infinite.
    zero = total == 0
    pivot = None if pivot is None else np.where(zero, pivot / scale, pivot)
    return _Lane(block, True, _rsqrt(total, formula.rsqrt_eps(eps)), var, pivot, rest, np.where(zero, 1.0, scale))


def _centre(plan: Plan, block: Block) -> tuple[Any, Any, Any]:
    """Shift the elements close to their mean; return the shift, what is left of the mean, and the variance."""
    n = plan.n
    if not plan.centres:
        return None, None, block.sum_of_squares() / n
    pivot = block.subtract(block.first_mean())
    rest, squares = [total / n for total in block.sums()]
    rough = squares < 5 * rest * rest  # the mean is more than half a standard deviation from the pivot
    if rough.any():
        block.restart()
        pivot = block.subtract(np.where(rough, pivot + rest, pivot))
        rest, squares = [total / n for total in block.sums()]
    return pivot.astype(np.float64), rest, np.maximum(squares - rest * rest, 0)


def _given(block: Block, eps: float, compute: Format, mean: Array, var: Array) -> _Lane:
    """Shift a block by given means; those so large that x − mean may overflow are for the next lane."""
    block.subtract(mean)
    serves = (np.abs(mean) <= formula.LARGE[compute]) & (var <= formula.LARGE[compute])
    return _Lane(block, serves, _rsqrt(var + eps, formula.rsqrt_eps(eps)), None)


def _given_again(block: Block, eps: float, mean: Array, var: Array) -> _Lane:
    """Shift a block by given means in float64, means and variances scaled by a quarter where they are large."""
    scale, shrink = [np.where(np.abs(a) > formula.LARGE[FLOAT64], 0.25, 1.0) for a in (mean, var)]
    block.restart(scale)
    block.subtract(mean * scale)
    return _Lane(
        block, True, _rsqrt(var * shrink + eps * shrink, formula.rsqrt_eps(eps)) * np.sqrt(shrink) / scale, None
    )


def _rsqrt(v: Array, where_zero: float) -> Any:
    """Return 1/√v, and `where_zero` where v is 0."""
    return np.where(v == 0, where_zero, 1 / np.sqrt(v))


def _residuals(measured: list[list[_Lane]], plan: Plan, x: Array) -> Residuals:
    """Return the statistics of all blocks in the compute dtype, the mean as two numbers of it."""
    compute, shape = _compute(x).name, cast(tuple[int, ...], plan.statistic)
    columns = []
    for lanes in measured:
        found = [lane.statistics(plan.n, _compute(x)) for lane in lanes]
        columns.append(found[0] if len(found) == 1 else np.where(lanes[0].serves, found[0], found[1]))
    mean, correction, rstd, scale, m2 = np.concatenate(columns, axis=2)
    high = mean.astype(compute)
    fields = high, (mean - high) + correction, rstd, scale, m2
    return Residuals(*[field.astype(compute).reshape(shape) for field in fields])
