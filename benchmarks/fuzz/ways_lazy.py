"""Ways of calling that JAX and Dask have: traced, mapped and scheduled calls."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from benchmarks.fuzz.case import fail
from benchmarks.fuzz.judge import check_gradients, check_values, check_y, reduced_axes
from benchmarks.fuzz.trial import SkippedError, Trial, Way, an
from benchmarks.fuzz.ways import add_dy


def _jax(module: str = "jax") -> Any:
    return importlib.import_module(module)


def jit(trial: Trial) -> None:
    """Compile the call."""
    check_y(_jax().jit(trial.of)({"x": trial.x, **trial.others}), trial)


def grad(trial: Trial) -> None:
    """Let JAX derive."""
    dy = add_dy(trial)
    if dy.dtype != trial.x.dtype:
        raise SkippedError
    given = {name: array for name, array in trial.arrays.items() if name in ("mean", "var")}
    inputs = {name: array for name, array in trial.arrays.items() if name in ("x", "weight", "bias")}
    y, pullback = _jax().vjp(lambda array: trial.of(array | given), inputs)
    check_y(y, trial)
    (found,) = pullback(dy)
    check_gradients(an.Gradients(**{name: found.get(name) for name in ("x", "weight", "bias")}), trial)


def vmap(trial: Trial) -> None:
    """Map over three of each argument, stacked along any axis."""
    trials = [trial, Trial(trial.case, 1), Trial(trial.case, 2)]
    jnp = _jax("jax.numpy")
    axes = {name: trial.random.randint(0, array.ndim) for name, array in trial.arrays.items()}
    stacked = {name: jnp.stack([other_trial.arrays[name] for other_trial in trials], axis=axes[name]) for name in axes}
    y = _jax().vmap(trial.of, in_axes=(axes,))(stacked)
    for i, other_trial in enumerate(trials):
        check_values(other_trial.home.read(y[i]), other_trial.case, other_trial.exact_arguments(), "y under vmap")


def scan(trial: Trial) -> None:
    """Call within a loop."""
    trials = [trial, Trial(trial.case, 1)]
    xs = _jax("jax.numpy").stack([other_trial.x for other_trial in trials])
    _, y = _jax().lax.scan(lambda carry, x: (carry, trial.of({"x": x, **trial.others})), 0, xs)
    for i, other_trial in enumerate(trials):
        numbers = trial.exact_arguments() | {"x": other_trial.exact_arguments()["x"]}
        check_values(other_trial.home.read(y[i]), other_trial.case, numbers, "y in a loop")


def export(trial: Trial) -> None:
    """Export with the lengths of x left open along which nothing lies, and run it on twice those."""
    case = trial.case
    shape = case.x.shape
    along = {case.options["channel_axis"] % len(shape)} if "channel_axis" in case.options else set(reduced_axes(case))
    if case.function in ("layer_norm", "rms_norm") and len(case.operands) == 1:
        along = set()
    whole = any(
        len(operand.shape) == len(shape) and len(shape) > 1 for name, operand in case.operands.items() if name != "x"
    )
    free = [axis for axis in range(len(shape)) if axis not in along and shape[axis] > 1]
    if whole or not free or 0 in shape:
        raise SkippedError
    jax_export: Any = _jax("jax.export")
    lengths = ", ".join([f"n{axis}" if axis in free else str(length) for axis, length in enumerate(shape)])
    described: dict[str, Any] = {
        name: _jax().ShapeDtypeStruct(other.shape, other.dtype) for name, other in trial.others.items()
    }
    described["x"] = _jax().ShapeDtypeStruct(jax_export.symbolic_shape(lengths), trial.x.dtype)
    exported = jax_export.export(_jax().jit(trial.of))(described)
    x = trial.exact_arguments()["x"]
    for axis in free:
        x = np.concatenate([x, x[::-1]], axis=axis)
    y = exported.call({"x": _jax().device_put(x), **trial.others})
    check_values(trial.home.read(y), case, trial.exact_arguments() | {"x": x}, "y of an exported call of other lengths")


def unknown(trial: Trial) -> None:
    """Normalize an array whose length along a kept axis Dask does not know; along a reduced one it is refused."""
    case = trial.case
    shape = case.x.shape
    if 0 in shape or len(case.operands) > 1:
        raise SkippedError
    da: Any = importlib.import_module("dask.array")
    axis = trial.random.randrange(len(shape))
    keep = trial.numbers.random(shape[axis]) < 0.7
    keep[0] = True
    x = da.compress(da.from_array(keep, chunks=max(1, len(keep) // 2)), trial.x, axis=axis)
    known = np.compress(keep, trial.before["x"], axis=axis)
    counted = axis in reduced_axes(case) or (
        case.function == "group_norm" and axis == case.options["channel_axis"] % len(shape)
    )
    try:
        y = trial.of({"x": x})
    except ValueError as error:
        if counted and "compute_chunk_sizes()" in str(error):
            return
        raise
    if counted:
        fail("an unknown length along a reduced axis is accepted")
    check_values(trial.home.read(y), case, {"x": known}, "y of unknown length")


LAZY: dict[str, Way] = {"jit": jit, "grad": grad, "vmap": vmap, "scan": scan, "jax_export": export, "unknown": unknown}
