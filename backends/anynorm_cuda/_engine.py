"""Running a launch config on addresses of a device's memory: the argument of its kernels, one launch after another."""

from __future__ import annotations

from collections.abc import Callable

from anynorm.backend import Ints, formula
from anynorm_cuda import _geometry as at
from anynorm_cuda._configure import LaunchConfig
from anynorm_cuda._program import Launch

# Launches a kernel with its packed argument, after all that was launched before.
Run = Callable[[Launch, bytes], None]

NUMBER = 4  # bytes


def forward(
    config: LaunchConfig,
    launch: Run,
    *,
    x: int,
    y: int,
    weight: int,
    bias: int,
    residuals: int,
    workspace: int,
    eps: float,
    given: tuple[int, int] = (0, 0),
) -> None:
    """Normalize the array at address x into that at y; y is 0 if it is only to be measured.

    The address of residuals, (5, sets) float32, may be 0 unless `config.keeps_residuals`. `given` are the addresses of
    a mean and a variance for each set, float32. The workspace has `config.workspace_bytes`.
    """
    partial, means = given if config.given else (workspace, 0)
    _run(config, launch, (x, 0, y, weight, bias, residuals, partial, means, 0, 0, 0, 0), eps)


def backward(
    config: LaunchConfig,
    launch: Run,
    *,
    x: int,
    dy: int,
    dx: int,
    weight: int,
    residuals: int,
    workspace: int,
    dweight: int,
    dbias: int,
) -> None:
    """Write dx, and the gradients of weight and bias, float32 without gaps, unless their address is 0."""
    means = workspace + NUMBER * config.partial
    to_weight = means + NUMBER * 2 * config.sets
    to_bias = to_weight + NUMBER * config.sums
    if not config.sums:  # planes of `partial`: of Σdy, and of Σdy·x̂
        to_weight, to_bias = workspace + NUMBER * config.partial // 2, workspace
    _run(config, launch, (x, dy, dx, weight, 0, residuals, workspace, means, to_weight, to_bias, dweight, dbias), 0.0)


def _run(config: LaunchConfig, run: Run, addresses: Ints, eps: float) -> None:
    """Launch a config's kernels; addresses in the order of `_geometry.ADDRESSES`."""
    argument = at.pack(addresses, config.counts, config.steps, eps, formula.rsqrt_eps(eps))
    for launch in config.launches:
        run(launch, argument)
