"""Running a job on addresses of a device's memory: the argument of its kernels, and one launch after the other."""

from __future__ import annotations

from collections.abc import Callable

from anynorm.backend import Ints, formula
from anynorm_cuda import _geometry as at
from anynorm_cuda._jobs import Job
from anynorm_cuda._program import Launch

# Runs a kernel with its packed argument, after all that was launched before.
Launcher = Callable[[Launch, bytes], None]

NUMBER = 4  # bytes


def forward(
    job: Job,
    launch: Launcher,
    *,
    x: int,
    y: int,
    weight: int,
    bias: int,
    saved: int,
    work: int,
    eps: float,
    given: tuple[int, int] = (0, 0),
) -> None:
    """Normalize the array at address x into that at y; y is 0 if it is only to be measured.

    Statistics are stored at `saved`, five planes of a float32 for each set, unless it is 0, which it may be only if the
    job does not keep them. `given` are the addresses of a mean and a variance for each set. `work` is memory of
    `job.work` bytes.
    """
    partial, means = given if job.given else (work, 0)
    _run(job, launch, (x, 0, y, weight, bias, saved, partial, means, 0, 0, 0, 0), eps)


def backward(
    job: Job,
    launch: Launcher,
    *,
    x: int,
    dy: int,
    dx: int,
    weight: int,
    saved: int,
    work: int,
    dweight: int,
    dbias: int,
) -> None:
    """Write dx, and the gradients of weight and bias, float32 without gaps, unless their address is 0."""
    means = work + NUMBER * job.partial
    to_weight = means + NUMBER * 2 * job.sets
    to_bias = to_weight + NUMBER * job.sums
    if not job.sums:  # planes of `partial`: of Σdy, and of Σdy·x̂
        to_weight, to_bias = work + NUMBER * job.partial // 2, work
    _run(job, launch, (x, dy, dx, weight, 0, saved, work, means, to_weight, to_bias, dweight, dbias), 0.0)


def _run(job: Job, launch: Launcher, addresses: Ints, eps: float) -> None:
    """Launch a job's kernels; addresses in the order of `_geometry.ADDRESSES`."""
    argument = at.pack(addresses, job.counts, job.steps, eps, formula.rsqrt_eps(eps))
    for its in job.launches:
        launch(its, argument)
