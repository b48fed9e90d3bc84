"""What is wrong with a result: measured against the exact reference, in units of the contract's bound.

What the contract leaves out is left out by its words: where x̂, x̂·weight or the exact result are out of range.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import anynorm as an
from anynorm import _reference, _reference_gradients
from benchmarks.fuzz.case import OVER_AXES, Case, fail
from benchmarks.fuzz.memory import NumPyArray, native
from benchmarks.fuzz.trial import Trial

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


def compute_name(dtype: str) -> str:
    """Return the dtype in which another is computed."""
    return "float64" if dtype == "float64" else "float32"


def _reference_of(case: Case, numbers: dict[str, NumPyArray], *parameters: str) -> _reference.Reference:
    others = {name: number for name, number in numbers.items() if name in parameters}
    reference = getattr(_reference, case.function)(numbers["x"], *case.groups, **others, **case.options)
    assert isinstance(reference, _reference.Reference)
    return reference


def check_values(y: NumPyArray, case: Case, numbers: dict[str, NumPyArray], what: str = "y") -> None:
    """Raise unless y has x's shape and dtype and keeps the contract's bound."""
    x = numbers["x"]
    y = native(y)
    if (y.dtype, y.shape) != (x.dtype, x.shape):
        fail(f"{what} has another shape or dtype", f"{y.dtype}{y.shape}, x has {x.dtype}{x.shape}")
    if not x.size:
        return
    with np.errstate(all="ignore"):
        reference = _reference_of(case, numbers, "weight", "bias", "mean", "var")
        units = reference.units(y)
        if not units <= 1:
            left_out = _out_of_range(case, numbers)
            units = reference.units(np.where(left_out, reference.exact.astype(y.dtype), y))
    if not units <= 1:
        got, bound = y.astype(np.longdouble), reference.bound
        with np.errstate(all="ignore"):
            wrong = (np.isnan(got) != np.isnan(reference.exact)) | (np.abs(got - reference.exact) > bound)
        where = tuple([int(value[0]) for value in np.nonzero(wrong)])
        detail = f"at {where} {y[where]!r} for {reference.exact[where]!r}, bound {float(bound[where]):.3g}"
        nan = "NaN or infinity out of place" if math.isinf(units) else "off"
        fail(f"{what} is {nan}", f"{units:.3g} bounds, {int(wrong.sum())} of {y.size} elements, {detail}")


def _out_of_range(case: Case, numbers: dict[str, NumPyArray]) -> Any:
    """Return where x̂ or x̂·weight is out of the range of the compute dtype."""
    unit = _reference_of(case, numbers, "mean", "var").exact
    limit = np.finfo(compute_name(case.x.dtype)).max
    scaled = unit
    if "weight" in numbers:
        scaled = _reference_of(case, numbers, "mean", "var", "weight").exact
    return (np.abs(unit) > limit) | (np.abs(scaled) > limit)


def check_y(y: Any, trial: Trial, what: str = "y") -> NumPyArray:
    """Raise unless a library's result is one of its own arrays, lies as x does and keeps the contract."""
    x = trial.x
    # A subclass is respected wherever it is an argument, though not all of NumPy's functions keep that of a variance,
    # and nothing is computed of no elements. Memory maps are plain arrays.
    named = {name: type(array) for name, array in trial.arrays.items() if type(array).__name__ in ("Plain", "Tagged")}
    kept = [own for name, own in named.items() if name in ("x", "weight", "bias") and trial.before["x"].size]
    if not (type(y) in kept if kept else isinstance(x, type(y)) or type(y) in named.values()):
        expected = sorted([own.__name__ for own in kept]) or [type(x).__name__]
        fail(f"{what} is of another type than the arguments", f"{type(y).__name__} instead of {' or '.join(expected)}")
    found = trial.home.read(y)
    if trial.home.strided:
        check_layout(found, trial.placed["x"].array, what)
        if found.dtype.byteorder == "=" and not trial.placed["x"].array.dtype.isnative:
            fail(f"{what} has native byte order, x has not")
    check_values(found, trial.case, trial.exact_arguments(), what)
    return found


def check_layout(y: NumPyArray, x: NumPyArray, what: str = "y") -> None:
    """Raise unless y is dense, and its axes in x's order, where x has one."""
    axes = [axis for axis in range(x.ndim) if x.shape[axis] > 1]
    if not x.size or not axes:
        return
    step = y.itemsize
    for axis in sorted(axes, key=lambda axis: y.strides[axis]):
        if y.strides[axis] != step:
            fail(f"{what} is not dense", f"shape {y.shape}, strides {y.strides}, x has {x.strides}")
        step *= y.shape[axis]
    steps = [abs(x.strides[axis]) for axis in axes]
    if 0 in steps or len(set(steps)) < len(steps):
        return
    if sorted(axes, key=lambda axis: abs(x.strides[axis])) != sorted(axes, key=lambda axis: y.strides[axis]):
        fail(f"{what} has its axes in another order than x", f"{y.shape} {y.strides}, x has {x.strides}")


def check_gradients(found: an.Gradients, trial: Trial, *names: str, times: float = 1.0) -> None:
    """Raise unless gradients have their arguments' shape and dtype and keep the contract's bound."""
    numbers = trial.exact_arguments()
    if times != 1.0:
        numbers = numbers | {"dy": numbers["dy"] * numbers["dy"].dtype.type(times)}
    case = trial.case
    others = {name: number for name, number in numbers.items() if name in ("weight", "bias", "mean", "var")}
    exact = None
    if numbers["x"].size:
        with np.errstate(all="ignore"):
            exact = _reference_gradients.gradients(
                case.function, numbers["dy"], numbers["x"], *case.groups, **others, **case.options
            )
    for name in names or ("x", "weight", "bias"):
        gradient = getattr(found, name)
        if name not in numbers:
            if gradient is not None:
                fail(f"d{name} is not None", f"{gradient!r:.80}")
            continue
        argument = numbers[name]
        got = native(trial.home.read(gradient))
        if (got.dtype, got.shape) != (argument.dtype, argument.shape):
            fail(f"d{name} has another shape or dtype", f"{got.dtype}{got.shape}, {argument.dtype}{argument.shape}")
        if exact is None:
            if got.size and got.any():
                fail(f"d{name} of an empty x is not 0")
            continue
        with np.errstate(all="ignore"):
            reference, compute = getattr(exact, name), compute_name(case.x.dtype)
            # The bound's own sums are in range, or the contract says nothing.
            left_out = reference.bound >= 16 * EPS[compute] * np.finfo(compute).max
            if "mean" in numbers:  # x̂ of measured statistics is always in range
                beyond = np.abs(_reference_of(case, numbers, "mean", "var").exact) > np.finfo(compute).max
                left_out = left_out | (beyond if name == "x" else beyond.any())
            units = reference.units(np.where(left_out, reference.exact.astype(got.dtype), got))
        # By way of float32, a half of a float64 is rounded twice: by 2^-13 of half an ulp more.
        twice = compute == "float64" and got.dtype.itemsize == 2
        if not units <= (1 + 2.0**-12 if twice else 1):
            fail(f"d{name} is off", f"{units:.6g} bounds")


def reduced_axes(case: Case) -> tuple[int, ...]:
    """Return which axes are reduced, of a right call; for group norm those of the channels not among them."""
    ndim = len(case.x.shape)
    if case.function in OVER_AXES:
        axis = case.options["axis"]
        several = range(ndim) if axis is None else (axis if isinstance(axis, tuple) else (axis,))
        return tuple(sorted([value % ndim for value in several]))
    batch = case.options.get("batch_axis", 0) if case.function != "batch_norm" else None
    kept = {case.options["channel_axis"] % ndim}
    kept |= set() if batch is None else {value % ndim for value in (batch if isinstance(batch, tuple) else (batch,))}
    return tuple([axis for axis in range(ndim) if axis not in kept])


def rows_of(x: NumPyArray, reduced: tuple[int, ...]) -> Any:
    """Return one row for each set, in longdouble."""
    moved = np.moveaxis(x.astype(np.longdouble), reduced, range(x.ndim - len(reduced), x.ndim))
    n = math.prod([x.shape[axis] for axis in reduced])
    return moved.reshape(math.prod(x.shape) // n if n else -1, n)


def check_moments(found: an.Moments, trial: Trial, merges: int = 0) -> None:
    """Raise unless moments are as the docstring of Moments has it.

    The mean is right to half its ulp and 4 eps of the deviation, m2 and the variance to 12 eps of themselves; a merge
    adds eps² of the mean to either's share. JAX has no squares that are subnormal.
    """
    case, x = trial.case, trial.exact_arguments()["x"]
    reduced = reduced_axes(case)
    n = math.prod([x.shape[axis] for axis in reduced])
    if int(found.n) != n:
        fail("n of moments is wrong", f"{found.n} for {n}")
    named = {"mean": found.mean, "m2": found.m2} | ({"var": found.var(), "std": found.std()} if n else {})
    read = {what: native(trial.home.read(array)) for what, array in named.items()}
    shape = tuple([length for axis, length in enumerate(x.shape) if axis not in reduced])
    name = compute_name(case.x.dtype)
    for what, array in read.items():
        if array.shape != shape or array.dtype.name != name:
            fail(f"{what} of moments has another shape or dtype", f"{array.dtype}{array.shape}, {name}{shape}")
    if x.size:
        with np.errstate(all="ignore"):
            _check_rows({what: array.reshape(-1) for what, array in read.items()}, rows_of(x, reduced), merges)


def _check_rows(read: dict[str, NumPyArray], rows: Any, merges: int) -> None:
    """Raise unless the statistics of each row are within their bounds, wherever they are normal numbers."""
    n, info = rows.shape[1], np.finfo(read["mean"].dtype)
    eps = np.longdouble(info.eps)
    d = rows - rows[:, :1]
    mean = rows[:, 0] + d.mean(axis=1)
    d = d - d.mean(axis=1)[:, None]
    m2 = (d * d).sum(axis=1)
    deviation = np.sqrt(m2 / n)
    moved = merges * eps**2 * np.abs(mean)
    smallest, largest = np.longdouble(info.smallest_normal), np.longdouble(info.max) * (1 - eps)
    # The exact ones, how far off they may be, and their smallest numbers.
    judged = {
        "mean": (mean, eps / 2 * np.abs(mean) + 4 * eps * deviation + moved + smallest),
        "m2": (m2, 12 * eps * m2 + 2 * n * moved * deviation + smallest),
        "var": (m2 / n, 13 * eps * m2 / n + 2 * moved * deviation + smallest),
        "std": (deviation, 8 * eps * deviation + moved + smallest),
    }
    finite = np.isfinite(rows).all(axis=1)
    for what, (exact, bound) in judged.items():
        got = read[what]
        off = finite & (np.abs(exact) < largest) & ~(np.abs(got - exact) <= bound)
        if off.any():
            i = int(np.flatnonzero(off)[0])
            fail(
                f"{what} of moments is off", f"{got[i]!r} for {exact[i]!r}, of {n}, in {off.sum()} of {len(rows)} sets"
            )
        if what != "mean" and (~finite & np.isfinite(got)).any():
            fail(f"{what} of a set with NaN or infinity is finite")
