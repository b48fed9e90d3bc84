"""The kernel that moves running statistics towards those of a batch, all channels at once or none."""

from __future__ import annotations

from typing import Any

from anynorm_numba import _compile
from anynorm_numba._records import counter_at, running_at
from anynorm_numba._scalars import compute_itemsize, load, rounded, store


@_compile.part
def is_finite(value: float) -> bool:
    """Say whether a number is neither NaN nor infinite."""
    return value - value == 0.0


@_compile.part
def batch_statistics(dtype, residuals, channels, channel, divisor):
    """Return the mean and the variance of a channel, from the residuals (5, channels) of a forward pass."""
    size = compute_itemsize(dtype)
    row, begin = channels * size, residuals + channel * size
    back = 1.0 / load(dtype, begin + 3 * row)
    mean = (load(dtype, begin) + load(dtype, begin + row)) * back
    return mean, load(dtype, begin + 4 * row) / divisor * back * back


@_compile.part
def moved(dtype, old, new, share):
    """Return a statistic moved by a share of the way to a new value, as rounded; see `update_running` in anynorm."""
    if share == 0.0:
        return old
    if share <= 0.5:
        # A value that is there already stays; by halves, so that no difference overflows.
        return rounded(dtype, old + 2.0 * share * (0.5 * new - 0.5 * old))
    return old if new == old else rounded(dtype, (1.0 - share) * old + share * new)


@_compile.part
def enters(dtype, task, residuals, share):
    """Say whether a batch is finite, in every channel, and what it moves the statistics to."""
    size = compute_itemsize(dtype)
    for channel in range(task.channels):
        mean, var = batch_statistics(dtype, residuals, task.channels, channel, task.divisor)
        new_mean = moved(dtype, load(dtype, task.mean + channel * size), mean, share)
        new_var = moved(dtype, load(dtype, task.var + channel * size), var, share)
        if not (is_finite(mean) and is_finite(new_mean) and is_finite(new_var)):
            return False
        if share == 0.0 and not is_finite(load(dtype, residuals + (4 * task.channels + channel) * size)):
            return False
    return True


def update_running(
    dtype: Any,
    phase: int,  # noqa: ARG001  every task is given one, and an index
    index: int,  # noqa: ARG001
    running: int,  # a `RUNNING`
    residuals: int,  # (5, channels)
    a2: int,  # noqa: ARG001
    a3: int,  # noqa: ARG001
    a4: int,  # noqa: ARG001
    a5: int,  # noqa: ARG001
    a6: int,  # noqa: ARG001
    a7: int,  # noqa: ARG001
    momentum: float,  # negative for the average of all batches
) -> None:
    """Move running statistics towards those of a batch and count it; or count it as skipped and leave every bit."""
    task = running_at(running)
    share = momentum
    if momentum < 0.0:
        share = 1.0 / (counter_at(task.tracked).count + 1)
    size, accepted = compute_itemsize(dtype), False
    if task.divisor > 0:
        accepted = enters(dtype, task, residuals, share)
    for channel in range(task.channels):
        at, mean, var = channel * size, 0.0, 0.0
        old_mean, old_var = load(dtype, task.mean + at), load(dtype, task.var + at)
        if accepted:
            mean, var = batch_statistics(dtype, residuals, task.channels, channel, task.divisor)
            old_mean, old_var = moved(dtype, old_mean, mean, share), moved(dtype, old_var, var, share)
        store(dtype, task.new_mean + at, old_mean)
        store(dtype, task.new_var + at, old_var)
    address = task.tracked if accepted else task.skipped
    if address:
        counter = counter_at(address)
        counter.count = counter.count + 1
