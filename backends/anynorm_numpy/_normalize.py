"""The formula on blocks of sets: in the compute dtype, and once more, with room to spare, for sets that need it.

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

from anynorm import _memory
from anynorm._array import FLOAT32, FLOAT64, Format
from anynorm._formula import LARGE, RESCUES, Saved, rsqrt_eps
from anynorm._plan import Plan
from anynorm._prepare import Known
from anynorm_numba._address import address
from anynorm_numpy import _engine
from anynorm_numpy._affine import Affine
from anynorm_numpy._block import Block, buffers, partition
from anynorm_numpy._sets import Sets

# Where var + eps lies within these, no sum of squares overflowed and none that counts underflowed.
_SAFE = {FLOAT32: (2.0**-100, 2.0**100), FLOAT64: (2.0**-900, 2.0**900)}


def declines(
    plan: Plan,  # noqa: ARG001
    x: Any,
    weight: Any,
    bias: Any,
    *,
    stats: tuple[Any, Any] | None,
    out: Any,
) -> str | None:
    """Return why the formula should serve this call, or None."""
    for its in (x, weight, bias, out, *(stats or ())):
        if type(its) not in _engine.PLAIN and its is not None:
            return f"{type(its).__name__} is a subclass of ndarray, whose own arithmetic the formula respects"
    return None


def path(
    plan: Plan,
    x: Any,
    weight: Any,
    bias: Any,
    *,
    stats: tuple[Any, Any] | None,  # noqa: ARG001
    out: Any,
) -> tuple[str, str | None]:
    """Return which package serves a call that is not declined, and why the engine does not."""
    y = np.empty_like(x, subok=False) if out is None else out
    weight, bias = [_engine.layout(_engine.parameter(its, x)) for its in (weight, bias)]
    job = _engine.job_of(plan, x, weight, bias, (y,))
    return ("anynorm_numpy", job) if isinstance(job, str) else ("anynorm_numba", None)


def refuses_out(out: Any, x: Any, others: dict[str, Any]) -> str | None:
    """Return why `out` may not be written, or None."""
    itself = None if x is None else _where(x)
    return _memory.refuses_out(_where(out), itself, {name: _where(its) for name, its in others.items()})


def _where(a: Any) -> _memory.Memory:
    return _memory.Memory(address(a), a.shape, a.strides, a.itemsize)


def laid_out_like(y: Any, x: Any) -> Any:
    """Return y with its axes in memory as x's are: with several broadcast operands NumPy's arithmetic forgets them."""
    like = np.empty_like(x, subok=False)
    if like.strides == y.strides:
        return y
    if type(y) is not np.ndarray:  # a copy is of y's class, with all that an instance carries
        order = sorted(range(y.ndim), key=lambda axis: -like.strides[axis])
        return y.transpose(order).copy(order="C").transpose(np.argsort(order))
    like[...] = y
    return like


def forward(
    plan: Plan,
    x: Any,
    weight: Any,
    bias: Any,
    eps: float,
    *,
    stats: tuple[Any, Any] | None,
    out: Any,
    save: bool,
) -> tuple[Any, Saved | None]:
    """Return y, and what was learned of the statistics if `save` asks for it."""
    y = np.empty_like(x, subok=False) if out is None else out
    its_weight, its_bias = _engine.parameter(weight, x), _engine.parameter(bias, x)
    job = _engine.job_of(plan, x, _engine.layout(its_weight), _engine.layout(its_bias), (y,))
    if not isinstance(job, str):
        return y, _engine.forward(plan, job, x, y, its_weight, its_bias, eps, stats, save)
    compute = _compute(x)
    target = Sets.of(y, plan)
    affine = Affine(plan, *[None if its is None else its.astype(compute.name, copy=False) for its in (weight, bias)])
    given = None if stats is None else [its.astype(compute.name).astype(np.float64).reshape(1, -1) for its in stats]
    learned = []
    with np.errstate(all="ignore"):
        for lanes in _lanes(plan, x, eps, given):
            _write(lanes, affine, target)
            if save and given is None:
                learned.append(lanes)
        return y, _saved(learned, plan, x) if save and given is None else None


def kind(x: Any, weight: Any, bias: Any, mean: Any, var: Any, out: Any) -> Any:
    """Return all that decides about a call but its values and numbers, or None where it is to be looked at anew."""
    if type(x) is not np.ndarray:
        return None
    its_weight = its_bias = beside = None
    if weight is not None:
        if type(weight) is not np.ndarray:
            return None
        its_weight = weight.dtype, weight.shape, weight.strides, weight.flags.aligned
    if bias is not None:
        if type(bias) is not np.ndarray:
            return None
        its_bias = bias.dtype, bias.shape, bias.strides, bias.flags.aligned
    if mean is not None or out is not None:
        beside = _kind_beside(x, weight, bias, mean, var, out)
        if beside is None:
            return None
    return x.dtype, x.shape, x.strides, x.flags.aligned, its_weight, its_bias, beside


def _kind_beside(x: Any, weight: Any, bias: Any, mean: Any, var: Any, out: Any) -> Any:
    """Return the part of `kind` that given statistics and `out` have in it, or None."""
    beside = mean, var, out
    if any(its is not None and type(its) is not np.ndarray for its in beside):
        return None
    if out is not None and not (out.flags.writeable and _engine.apart(out, x, (weight, bias, mean, var))):
        return None
    return tuple([None if its is None else (its.dtype, its.shape, its.strides, its.flags.aligned) for its in beside])


def again(
    known: Known, x: Any, weight: Any, bias: Any, eps: float, stats: Any, out: Any, save: bool
) -> tuple[Any, Saved | None]:
    """Return what `forward` does, for a call of a known kind."""
    y = np.empty_like(x) if out is None else out
    job, weight_lies, bias_lies = _engine.known_job(known, x, y, weight, bias)
    if job is None:
        return forward(known.plan, x, weight, bias, eps, stats=stats, out=y, save=save)
    if not weight_lies:
        weight = _engine.parameter(weight, x)
    if not bias_lies:
        bias = _engine.parameter(bias, x)
    return y, _engine.forward(known.plan, job, x, y, weight, bias, eps, stats, save)


def moments(plan: Plan, x: Any) -> Saved:
    """Return the statistics of each set."""
    job = _engine.job_of(plan, x, None, None, (x,))
    if not isinstance(job, str):
        return cast(Saved, _engine.forward(plan, job, x, None, None, None, 0.0, None, True))
    with np.errstate(all="ignore"):
        return _saved(list(_lanes(plan, x, 0.0, None)), plan, x)


def _write(lanes: list[_Lane], affine: Affine, target: Sets) -> None:
    """Put the results of a block into the target, those of each set from the lane that serves it."""
    first, sets = lanes[0], lanes[0].block.sets
    # Span by span through all lanes: the target may be the source.
    for (span, e), *again in zip(*[lane.block.read() for lane in lanes], strict=True):
        direct = None if again else target.direct(sets, span, e.dtype)
        y = first.block.scratch(span) if direct is None else direct
        affine.apply(e, first.factor, first.rest, sets, span, out=y)
        for lane, (_, its) in zip(lanes[1:], again, strict=True):
            better = lane.block.scratch(span)
            affine.apply(its, lane.factor, lane.rest, sets, span, out=better)
            np.copyto(y, better, where=~first.serves, casting="unsafe")
        if direct is None:
            target.write(sets, span, y)


def _compute(x: Any) -> Format:
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
        """Return the fields of Saved, in float64, of elements scaled so that the compute dtype can hold them."""
        pivot, rest = [np.zeros_like(self.var) if its is None else its for its in (self.pivot, self.rest)]
        mean = pivot + rest
        part = mean - pivot
        error = (pivot - (mean - part)) + (rest - part)
        more = np.where(self.var == 0, 1.0, _more_scale(self.factor)) if compute is FLOAT32 else 1.0
        found = (mean * more, error * more, self.factor / more, self.scale * more, self.var * n * more * more)
        return np.stack(np.broadcast_arrays(*found))


def _more_scale(factor: Any) -> Any:
    """Return powers of two, 1 but where a factor of normalization or its square is beyond float32."""
    _, exponent = np.frexp(factor)
    extreme = np.isfinite(factor) & (np.abs(exponent) > 50)
    return np.ldexp(1.0, np.where(extreme, np.clip(exponent, -100, 126), 0))


def _lanes(plan: Plan, x: Any, eps: float, given: list[Any] | None) -> Iterator[list[_Lane]]:
    """Yield block after block of x, centred and measured: in the compute dtype, and again if some sets need it."""
    compute, source = _compute(x), Sets.of(x, plan)
    parts = partition(source)
    room = buffers(parts, compute.name)
    wide_room = None
    for sets, spans in parts:
        block = Block(source, sets, spans, room)
        stats = None if given is None else [its[:, sets.start : sets.stop] for its in given]
        lane = _measured(plan, block, eps, compute) if stats is None else _given(block, eps, compute, *stats)
        if lane.serves.all():
            yield [lane]
            continue
        wide_room = wide_room or buffers(parts, np.float64)
        wide = Block(source, sets, spans, wide_room)
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
        for rescue in RESCUES[FLOAT64]:
            if eps < rescue.eps_below:
                scale[rescue.beyond(peak, rescue.bound)] = rescue.scale
        block.restart(scale)
    pivot, rest, var = _centre(plan, block)
    total = var + eps * scale * scale
    # Where the total is 0 so are all elements. What is saved of them is unscaled: 1/√eps, scaled, may be infinite.
    zero = total == 0
    pivot = None if pivot is None else np.where(zero, pivot / scale, pivot)
    return _Lane(block, True, _rsqrt(total, rsqrt_eps(eps)), var, pivot, rest, np.where(zero, 1.0, scale))


def _centre(plan: Plan, block: Block) -> tuple[Any, Any, Any]:
    """Shift the elements close to their mean; return the shift, what is left of the mean, and the variance."""
    n = plan.n
    if not plan.centres:
        return None, None, block.sum_of_squares() / n
    pivot = block.subtract(block.first_mean())
    rest, squares = [its / n for its in block.sums()]
    rough = squares < 5 * rest * rest  # the mean is more than half a standard deviation from the pivot
    if rough.any():
        block.restart()
        pivot = block.subtract(np.where(rough, pivot + rest, pivot))
        rest, squares = [its / n for its in block.sums()]
    return pivot.astype(np.float64), rest, np.maximum(squares - rest * rest, 0)


def _given(block: Block, eps: float, compute: Format, mean: Any, var: Any) -> _Lane:
    """Shift a block by given means; those so large that x − mean may overflow are for the next lane."""
    block.subtract(mean)
    serves = (np.abs(mean) <= LARGE[compute]) & (var <= LARGE[compute])
    return _Lane(block, serves, _rsqrt(var + eps, rsqrt_eps(eps)), None)


def _given_again(block: Block, eps: float, mean: Any, var: Any) -> _Lane:
    """Shift a block by given means in float64, means and variances scaled by a quarter where they are large."""
    scale, shrink = [np.where(np.abs(its) > LARGE[FLOAT64], 0.25, 1.0) for its in (mean, var)]
    block.restart(scale)
    block.subtract(mean * scale)
    return _Lane(block, True, _rsqrt(var * shrink + eps * shrink, rsqrt_eps(eps)) * np.sqrt(shrink) / scale, None)


def _rsqrt(v: Any, where_zero: Any) -> Any:
    """Return 1/√v, and `where_zero` where v is 0."""
    return np.where(v == 0, where_zero, 1 / np.sqrt(v))


def _saved(learned: list[list[_Lane]], plan: Plan, x: Any) -> Saved:
    """Return the statistics of all blocks in the compute dtype, the mean as two numbers of it."""
    compute, shape = _compute(x).name, cast(tuple[int, ...], plan.statistic)
    columns = []
    for lanes in learned:
        found = [lane.statistics(plan.n, _compute(x)) for lane in lanes]
        columns.append(found[0] if len(found) == 1 else np.where(lanes[0].serves, found[0], found[1]))
    mean, correction, rstd, scale, m2 = np.concatenate(columns, axis=2)
    high = mean.astype(compute)
    fields = high, (mean - high) + correction, rstd, scale, m2
    return Saved(*[its.astype(compute).reshape(shape) for its in fields])
