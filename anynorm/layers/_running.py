"""How a batch enters running statistics in training: not at all where it is not finite. Pure functions, no layer."""

from __future__ import annotations

from typing import Any

from anynorm._core.arrays import A, Array, Operand
from anynorm._core.backends import ops_of
from anynorm._core.dispatch import Bound
from anynorm._core.merge import over_sets
from anynorm._core.ops import Ops
from anynorm._core.plan import settled
from anynorm.backend import AnyResiduals, RunningStatistics
from anynorm.batch_norm import update_running
from anynorm.moments import Moments, at_least, is_array, measured, moments_of, variance_of


def entered(
    call: Bound,
    residuals: AnyResiduals,
    running: RunningStatistics,
    *,
    momentum: float | None,
    correction: int = 1,
    samples: tuple[int, ...] = (),
) -> RunningStatistics:
    """Return running statistics that the batch of a call has entered, whose forward pass left these residuals.

    Parameters
    ----------
    call, residuals
        A call of batch or instance norm, and what its forward pass kept.
    running
        The statistics so far.
    momentum, correction
        As in `update_running`; without momentum the statistics become the average of all batches that were counted.
    samples : tuple of int
        The axes of the moments along which each sample has its own: its mean over these enters.

    """
    found = None
    if not samples:
        found = call.entry.executable.update_running(residuals, running, momentum, correction, in_place=False)
    return found or entered_by_moments(call, residuals, running, momentum, correction, samples)


def entered_by_moments(
    call: Bound,
    residuals: AnyResiduals,
    running: RunningStatistics,
    momentum: float | None,
    correction: int,
    samples: tuple[int, ...],
) -> RunningStatistics:
    """Return what `entered` does, where no engine moves running statistics."""
    ops = call.entry.backend.ops
    batch = over_samples(moments_of(call.entry.plan, ops, call.x, residuals), samples)
    mean, var, *counters = running
    share = cumulative_share(running.num_batches_tracked, mean, batch) if momentum is None else momentum
    mean, var, accepted = accumulate(mean, var, batch, momentum=share, correction=correction)
    return RunningStatistics(mean, var, *ops.on_device(mean, _counted, accepted, counters, ops))


def _counted(accepted: Any, counters: list[Any], ops: Ops) -> list[Any]:
    """Return both counters after a batch that entered, or did not; None for one that is not kept."""
    xp = ops.xp
    # asarray, because NumPy's 0-d arrays become scalars under arithmetic.
    return [
        None if counter is None else xp.asarray(counter + xp.astype(counts, counter.dtype))
        for counter, counts in zip(counters, (accepted, ~accepted), strict=True)
    ]


def accumulate(
    running_mean: A, running_var: A, batch: Moments, *, momentum: float | Array, correction: int = 1
) -> tuple[A, A, Any]:
    """Return running statistics moved towards those of a batch, and whether they were moved.

    As `update_running`, but a NaN or infinity in any channel's mean, deviation or new statistics rejects the batch as a
    whole: one step that overflowed must not spoil every later evaluation. A batch of n ≤ correction has no variance and
    is rejected too. Then every bit of the old statistics is returned. The last result, a 0-d bool, says if the batch
    was accepted. No Python branch depends on a value, so that compilers and schedulers can trace it and no GPU is
    waited for.
    """
    ops = ops_of("accumulate", "running_mean", running_mean)
    return ops.on_device(  # type: ignore[no-any-return]
        running_mean, _accumulated, running_mean, running_var, batch, momentum, correction, ops
    )


def _accumulated(
    running_mean: Operand, running_var: Operand, batch: Moments, momentum: float | Array, correction: int, ops: Ops
) -> tuple[Any, Any, Any]:
    xp = ops.xp
    moved = update_running(running_mean, running_var, batch, momentum=momentum, correction=correction)
    # Of the new statistics: what a float32 batch measures may be infinite in float16.
    accepted = xp.all(xp.isfinite(moved[0]) & xp.isfinite(moved[1]))
    known = settled((batch.n,))
    if known and batch.n <= correction:
        accepted = xp.zeros_like(accepted)
    elif not (known and isinstance(momentum, float) and momentum > 0):
        # Some of it may not have entered.
        accepted = accepted & _finite(batch, ops)
    if not known:
        # An array, or a length that is open: no branch depends on it.
        counts = batch.n if is_array(batch.n) else xp.full_like(batch.mean, batch.n)
        accepted = accepted & xp.any(counts > correction)
    return xp.where(accepted, moved[0], running_mean), xp.where(accepted, moved[1], running_var), accepted


def _finite(batch: Moments, ops: Ops) -> Any:
    """Say whether a batch is finite, as a 0-d bool.

    By its deviation, and not m2 or the variance: these may be infinite in the batch's dtype where what enters is not.
    """
    xp, some = ops.xp, at_least(batch.n, 1, batch.mean, ops)
    deviation = variance_of(batch, some, 0, batch.mean.dtype, ops, root=True)
    return xp.all(xp.isfinite(batch.mean) & xp.isfinite(deviation))


def cumulative_share(tracked: Operand, running_mean: Operand, batch: Moments) -> Any:
    """Return the weight of a new batch, after `tracked` others, that makes running statistics the average of all."""
    ops = ops_of("cumulative_share", "running_mean", running_mean)
    compute = ops.xp.result_type(ops.compute_dtype(running_mean.dtype), batch.mean.dtype)
    return ops.on_device(running_mean, lambda: 1 / ops.xp.astype(tracked + 1, compute))


def over_samples(batch: Moments, axes: tuple[int, ...]) -> Moments:
    """Return the mean over the samples, which lie along `axes`, of their mean and m2 (and so of their variance).

    That is what instance norm tracks in torch, not the statistics of all values.
    """
    if not axes:
        return batch
    ops = ops_of("over_samples", "batch.mean", batch.mean)
    return ops.on_device(batch.mean, _over_samples, batch, axes, ops)  # type: ignore[no-any-return]


def _over_samples(batch: Moments, axes: tuple[int, ...], ops: Ops) -> Moments:
    xp = ops.xp
    if 0 in ops.shape(batch.mean):
        nothing = xp.sum(batch.mean, axis=axes)
        return Moments(0, nothing, nothing)
    own = measured(batch, xp)
    return Moments(batch.n, *ops.fused(batch.mean, over_sets, own, axes=axes, ops=ops))
