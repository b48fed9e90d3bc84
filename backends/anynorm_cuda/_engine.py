"""Running a launch config on addresses of a device's memory: the argument of its kernels, one launch after another."""

from __future__ import annotations

from collections.abc import Callable

from anynorm.backend import Ints, formula
from anynorm_cuda import _argument
from anynorm_cuda._build import LaunchConfig
from anynorm_cuda._program import Launch

# Launches a kernel with its packed argument, after all that was launched before.
Run = Callable[[Launch, bytes], None]

FLOAT = 4  # bytes


def forward(
    config: LaunchConfig,
    run: Run,
    x: int,
    y: int,
    weight: int,
    bias: int,
    residuals: int,
    workspace: int,
    eps: float,
    given: tuple[int, int] = (0, 0),
) -> None:
    """Normalize the array at address x into the one at y; y is 0 if x is only measured.

    The address of residuals, (5, sets) float32, may be 0 unless `config.keeps_residuals`. `given` are the addresses of
    a mean and a variance, (sets) float32. The workspace has `config.workspace_bytes`.
    """
    partials, means = given if config.given else (workspace, 0)
    _run(config, run, (x, 0, y, weight, bias, residuals, partials, means, 0, 0, 0, 0), eps)


def backward(
    config: LaunchConfig,
    run: Run,
    x: int,
    dy: int,
    dx: int,
    weight: int,
    residuals: int,
    workspace: int,
    dweight: int,
    dbias: int,
    means: int = 0,
) -> None:
    """Write dx, and dweight and dbias, contiguous, in the config's dtypes, unless their address is 0.

    `means` is the address of the means of g and of g·x̂, (2, sets) float32, which the step "gradient_sums" writes and
    the step "gradient" reads; 0 for a place in the workspace, which has `config.workspace_bytes`.
    """
    own_means = workspace + FLOAT * config.partials
    dweight_partials = own_means + FLOAT * 2 * config.sets
    dbias_partials = dweight_partials + FLOAT * config.parameter_partials
    if not config.parameter_partials:  # the two fields of `partials`, Σdy and Σdy·x̂
        dbias_partials, dweight_partials = workspace, workspace + FLOAT * config.partials // 2
    parameters = dweight_partials, dbias_partials, dweight, dbias
    _run(config, run, (x, dy, dx, weight, 0, residuals, workspace, means or own_means, *parameters), 0.0)


def _run(config: LaunchConfig, run: Run, addresses: Ints, eps: float) -> None:
    """Launch a config's kernels; addresses in the order of `_argument.ADDRESSES`."""
    argument = _argument.pack(addresses, config.counts, config.strides, eps, formula.rsqrt_eps(eps))
    for launch in config.launches:
        run(launch, argument)
