"""Running a launch config on addresses: which steps a kernel is asked for, and the memory it works in."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable
from functools import cache
from struct import Struct
from typing import Any

import numpy as np

from anynorm.backend import Ints, Layout, Plan, View
from anynorm_numba import _compile, _threads
from anynorm_numba import _geometry as at
from anynorm_numba._address import Array, address
from anynorm_numba._configs import LaunchConfig, configure
from anynorm_numba._parameters import reduce

# Dtypes of which weight and bias are cast to the compute dtype before a kernel reads them.
HALVES = ("float16", "bfloat16")

# Bytes of a cache line. A vector that lies across two takes twice as long to read.
LINE = 64

# What a kernel is given beside phase, index and eps: the addresses of its geometry and of seven arrays.
Arguments = tuple[int, int, int, int, int, int, int, int]

# Writes the fields of a `GRADIENT_SUMS`: in 0.15 µs, a quarter of the time that NumPy takes.
_put_gradient_sums = Struct("5q").pack_into

# Writes a `RUNNING`.
_put_running = Struct("8q").pack_into


class Configs:
    """The launch configs of one signature, by number of threads."""

    def __init__(
        self,
        plan: Plan,
        dtype: str,
        shape: Ints,
        strides: tuple[Ints, ...],
        weight: Layout | None,
        bias: Layout | None,
    ) -> None:
        self._arguments = plan, dtype, shape, strides, weight, bias
        self.dtype = dtype
        self._elements = math.prod(shape)
        self._by_threads: dict[int, LaunchConfig] = {}
        self.serial: LaunchConfig | None = None  # where there is never more than one thread

    def prepare(self) -> str | None:
        """Keep the config for one thread, and return None, or half a sentence why no kernel serves these layouts."""
        found = configure(*self._arguments, 1)
        if isinstance(found, str):
            return found
        self._by_threads[1] = found
        self.serial = found if _threads.always_serial(self._elements) else None
        return None

    @property
    def view(self) -> View:
        """The view of all configs, once they are prepared."""
        return self._by_threads[1].view

    @property
    def sets(self) -> int:
        """How many sets there are."""
        return self._by_threads[1].sets

    def now(self) -> LaunchConfig:
        """Return the config for as many threads as a call of this moment may use."""
        threads = _threads.threads_for(self._elements)
        if threads not in self._by_threads:
            config = configure(*self._arguments, threads)
            assert not isinstance(config, str)  # `prepare` was asked
            self._by_threads[threads] = config
        return self._by_threads[threads]


def forward(
    config: LaunchConfig,
    x: int,
    y: int,
    weight: int,
    bias: int,
    residuals: int,
    eps: float,
    *,
    given_residuals: int = 0,
) -> None:
    """Normalize the array at address x into that at y, with weight and bias in the compute dtype.

    Parameters
    ----------
    config : LaunchConfig
        Made for arrays of these layouts.
    x, y : int
        Addresses. y may be 0: then x is only measured.
    weight, bias : int
        Those of a parameter that is absent are the config's; without y neither is read.
    residuals : int
        The address of (5, sets) in the compute dtype, to be written; may be 0 unless the config splits sets.
    eps : float
        Added to the variance.
    given_residuals : int
        The address of residuals to be read instead of measuring, or 0: see `apply`.

    """
    kernel = config.kernel[0] if config.kernel else _kernel(config)
    space: Array | None = None
    workspace = 0
    if config.workspace_bytes:
        space = np.empty((config.workspace_bytes + LINE) // 8)
        workspace = address(space)
        workspace += -workspace % LINE
    if config.split:
        arrays = config.address, x, y, weight, bias, residuals, given_residuals, workspace
        _forward_in_steps(config, kernel, space, arrays, eps)
    elif config.threads == 1:
        _threads.serial(
            kernel,
            at.WHOLE,
            0,
            config.tasks,
            config.address,
            x,
            y,
            weight,
            bias,
            residuals,
            given_residuals,
            workspace,
            eps,
        )
    else:
        arrays = config.address, x, y, weight, bias, residuals, given_residuals, workspace
        _threads.run(kernel, at.WHOLE, config.tasks, config.threads, *arrays, eps)


def measure(config: LaunchConfig, x: int, residuals: int, eps: float) -> None:
    """Write the residuals (5, sets) of the array at address x, the first half of `forward`."""
    forward(config, x, 0, 0, 0, residuals, eps)


def apply(config: LaunchConfig, x: int, y: int, weight: int, bias: int, residuals: int) -> None:
    """Write y by residuals (5, sets), the second half of `forward`: the same bits as in one pass."""
    forward(config, x, y, weight, bias, 0, 0.0, given_residuals=residuals)


def _forward_in_steps(config: LaunchConfig, kernel: int, space: Array | None, arrays: Arguments, eps: float) -> None:
    """Run START, SUM and FINALIZE until no set is pending, then WRITE; given residuals leave START and WRITE."""
    run, pieces = _threads.run, config.units * config.pieces
    _, _, y, _, _, _, given, _ = arrays
    assert space is not None  # a config that splits sets has a workspace
    run(kernel, at.START, config.units, 1, *arrays, eps)
    while not given:
        run(kernel, at.SUM, pieces, config.threads, *arrays, eps)
        run(kernel, at.FINALIZE, config.units, 1, *arrays, eps)
        if not _pending(config, space):
            break
    if y:
        run(kernel, at.WRITE, pieces, config.threads, *arrays, eps)


def _pending(config: LaunchConfig, space: Array) -> bool:
    """Say whether some unit is to be measured again."""
    skipped = -address(space) % LINE // 8
    workspace = space[skipped : skipped + config.workspace_bytes // 8]
    if config.rows:
        states = workspace.reshape(config.units, -1)[:, : at.SET_STATE.itemsize // 8]
        return bool((_fields(states, at.SET_STATE)["finalized"] == 0).any())
    table = int(config.geometry["block_bytes"]) // 8
    tables = workspace[: config.units * table].reshape(config.units, table)
    return bool((_fields(tables[:, -at.BLOCK_STATE.itemsize // 8 :], at.BLOCK_STATE)["pending"] != 0).any())


def _fields(numbers: Array, dtype: np.dtype[np.void]) -> Array:
    """Return rows of float64 as records."""
    return np.ascontiguousarray(numbers).view(dtype)


def backward(
    config: LaunchConfig,
    x: int,
    dy: int,
    dx: int,
    weight: int,
    residuals: int,
    dweight: int,
    dbias: int,
    bias: int = 0,
) -> None:
    """Write dx, and dweight and dbias, dense and in the compute dtype, unless their address is 0.

    bias, laid out as dbias, is read where the plan has an activation.
    """
    _backward(config, x, dy, dx, weight, residuals, dweight, dbias, 0, 0, bias)


def gradient_sums(
    config: LaunchConfig,
    x: int,
    dy: int,
    weight: int,
    residuals: int,
    sums: int,
    dweight: int,
    dbias: int,
    bias: int = 0,
) -> None:
    """Write Σg and Σ(g·x̂) of each set, (2, sets) float64, and dweight and dbias: the first half of `backward`."""
    _backward(config, x, dy, 0, weight, residuals, dweight, dbias, sums, 0, bias)


def gradient(
    config: LaunchConfig, x: int, dy: int, weight: int, residuals: int, sums: int, dx: int, bias: int = 0
) -> None:
    """Write dx by the sums of each set, the second half of `backward`: the same bits as in one pass."""
    _backward(config, x, dy, dx, weight, residuals, 0, 0, 0, sums, bias)


def _backward(
    config: LaunchConfig,
    x: int,
    dy: int,
    dx: int,
    weight: int,
    residuals: int,
    dweight: int,
    dbias: int,
    of_sets: int,
    given: int,
    bias: int,
) -> None:
    kernel = config.kernel[0] if config.kernel else _kernel(config)
    parameters = bool(dweight or dbias)
    left = config.sums if parameters and not config.direct else 0
    header = at.GRADIENT_SUMS.itemsize + -(-16 * left // LINE) * LINE
    space = np.empty((header + config.workspace_bytes + LINE) // 8)
    begin = address(space)
    skipped = -begin % LINE
    _put_gradient_sums(space, skipped, dweight, dbias, of_sets, given, bias)  # type: ignore[arg-type]  # an array is a buffer
    sums = begin + skipped
    arrays = config.address, x, dy, dx, weight, residuals, sums, sums + header
    whole, slices = config.tasks, config.slices if parameters else 0
    if config.split:
        _backward_in_steps(config, kernel, arrays, summed=bool(given), written=bool(dx), parameters=parameters)
        whole = slices = 0
    elif config.threads > 1:
        _threads.run(kernel, at.WHOLE, whole, config.threads, *arrays, 0.0)
        if slices > 1:
            _threads.run(kernel, at.REDUCE, slices, _threads.threads_for(2 * config.sums * whole), *arrays, 0.0)
            slices = 0
        whole = 0
    if whole or slices or left:
        _threads.gradients(kernel, whole, slices, 1 if left else 0, *arrays)
    if config.reduces_in_numpy and parameters:
        first = (skipped + at.GRADIENT_SUMS.itemsize) // 8
        both = space[first : first + 2 * left].reshape(2, left)
        for reduction, target, of_one in zip(config.reductions, (dweight, dbias), both, strict=True):
            if target and reduction is not None and reduction.lengths is None:
                reduce(reduction, of_one, _array_at(target, config.dtype, math.prod(reduction.kept)))


def _backward_in_steps(
    config: LaunchConfig, kernel: int, arrays: Arguments, *, summed: bool, written: bool, parameters: bool
) -> None:
    """Run START, SUM, FINALIZE and WRITE, each for all pieces; of these SUM or WRITE alone for a step apart."""
    run, pieces = _threads.run, config.units * config.pieces
    run(kernel, at.START, 0 if config.rows else config.units, 1, *arrays, 0.0)
    if not summed:
        run(kernel, at.SUM, pieces, config.threads, *arrays, 0.0)
    run(kernel, at.FINALIZE, config.units, 1, *arrays, 0.0)
    if written or (parameters and config.sums_while_writing):
        run(kernel, at.WRITE, config.tasks if config.slices else pieces, config.threads, *arrays, 0.0)


def _array_at(begin: int, dtype: str, length: int) -> Array:
    """Return the numbers in the compute dtype at an address as an array."""
    number: Any = ctypes.c_double if dtype == "float64" else ctypes.c_float
    return np.ctypeslib.as_array((number * length).from_address(begin))


def take_given(dtype: str, n: int, mean: int, var: int, residuals: int, eps: float) -> None:
    """Write the residuals (5, n) of given means (n,) and variances (n,), all dense and in the compute dtype."""
    kernel = _kernel_named("take_given", dtype)
    _threads.serial(kernel, at.WHOLE, 0, 1, n, mean, var, residuals, 0, 0, 0, 0, eps)


def update_running(
    dtype: str,
    residuals: int,
    old: tuple[int, int],
    new: tuple[int, int, int, int],
    channels: int,
    divisor: int,
    momentum: float,
) -> None:
    """Move running statistics towards those of a batch, unless it is not finite or has no variance, and count it.

    Parameters
    ----------
    dtype : str
        Of the batch.
    residuals : int
        The address of the batch's (5, channels).
    old, new : tuple of int
        The addresses of mean and var, (channels,) in the compute dtype, the new ones perhaps the old ones; and of two
        int64, or 0, which count the batches that entered and those that did not.
    channels, divisor : int
        How many statistics there are of each; n − correction.
    momentum : float
        The weight of the new value; negative for what makes the statistics the average of all batches.

    """
    kernel = _kernel_named("update_running", dtype)
    running = np.empty(8)
    _put_running(running, 0, *old, *new, channels, divisor)  # type: ignore[arg-type]  # an array is a buffer
    _threads.serial(kernel, at.WHOLE, 0, 1, address(running), residuals, 0, 0, 0, 0, 0, 0, momentum)


def upcast_halves(
    dtype: str, n: int, source: int, target: int, other_n: int, other_source: int, other_target: int
) -> None:
    """Cast n elements to the compute dtype, and other_n others: two casts, as it is the call that takes time."""
    kernel = _kernel_named("upcast_two", dtype)
    _threads.serial(kernel, at.WHOLE, 0, 1, n, source, target, other_n, other_source, other_target, 0, 0, 0.0)


def compile_all(dtypes: Iterable[str], *, gradients: bool) -> None:
    """Compile or load every kernel of these dtypes, and what runs them."""
    for dtype in dtypes:
        names = ["rows", "columns", "take_given", "update_running"]
        names += ["row_gradients", "column_gradients"] if gradients else []
        names += ["upcast_two"] if dtype in HALVES else []
        for name in names:
            _kernel_named(name, dtype)
    _threads.start()


def _kernel(config: LaunchConfig) -> int:
    """Return the address of the kernel that runs a config, compiled or loaded at the first call."""
    if not config.kernel:
        names = ("columns", "rows") if len(config.view.strides) == 2 else ("column_gradients", "row_gradients")
        config.kernel.append(_kernel_named(names[config.rows], config.dtype))
    return config.kernel[0]


@cache
def _kernel_named(name: str, dtype: str) -> int:
    """Return the address of a kernel, compiled or loaded at the first call for a dtype."""
    with _compile.alone():  # these import numba, amid which no process must be forked
        from anynorm_numba._casts import upcast_two
        from anynorm_numba._column_gradients import column_gradients
        from anynorm_numba._columns import columns
        from anynorm_numba._row_gradients import row_gradients
        from anynorm_numba._rows import rows
        from anynorm_numba._running import update_running
        from anynorm_numba._statistics import take_given
    kernels = (rows, columns, row_gradients, column_gradients, take_given, update_running, upcast_two)
    (found,) = [kernel for kernel in kernels if kernel.__name__ == name]
    return _compile.task(found, dtype)
