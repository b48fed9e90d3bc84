"""Calls made wrong on purpose, and the rule, from the documentation alone, which calls must be refused and how."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from typing import Any

import anynorm as an
from benchmarks.fuzz.case import DTYPES, NO_ARRAYS, OVER_AXES, Case, Operand

# What eps can be in each compute dtype.
_NORMAL = {"float32": (2.0**-126, (2.0 - 2.0**-23) * 2.0**127), "float64": (2.0**-1022, (2.0 - 2.0**-52) * 2.0**1023)}
_EPS: tuple[Any, ...] = (math.nan, -1e-5, math.inf, 1e-50, 1e39, "1e-5", None, True, [1e-5])


def spoiled(case: Case, random: Random) -> Case:
    """Return the call with one argument made wrong; another may make it right again by chance."""
    ways = ["x_dtype", "x_kind", "x_0d", "axes"]
    ways += [] if case.function == "moments" else ["eps", "parameter_shape", "parameter_kind", "parameter_dtype"]
    ways += ["groups"] if case.function == "group_norm" else []
    ways += ["half_given", "statistic_shape"] if case.function == "batch_norm" else []
    ways += ["dy_shape", "dy_dtype"] if case.way == "vjp" else []
    ways += ["out_shape", "out_dtype", "out_read_only"] if case.way in ("out", "vjp_out") else []
    what = random.choice(ways)
    if what in ("x_0d", "x_kind") and case.way in ("jit", "backward"):
        what = "axes"
    if what in ("x_dtype", "parameter_dtype", "parameter_kind") and case.way in ("jit", "backward"):
        what = "eps"
    if what == "out_read_only" and case.library in ("torch", "array_api_strict"):
        what = "out_shape"
    return replace(_spoiled(case, what, random), wrong=what)


def _spoiled(case: Case, what: str, random: Random) -> Case:
    if what.startswith("x_"):
        return _with(case, "x", _wrong_x(case, what, random))
    if what in ("axes", "groups"):
        return _with_axes(case, what, random)
    if what == "eps":
        return replace(case, options=case.options | {"eps": random.choice(_EPS)})
    if what.startswith("parameter"):
        name = random.choice(("weight", "bias"))
        own = case.operands.get(name, Operand((3,), case.x.dtype, "ordinary"))
        return _with(case, name, _wrong_parameter(case, own, what, random))
    if what == "half_given":
        others = {name: operand for name, operand in case.operands.items() if name not in ("mean", "var")}
        shape = (case.x.shape[case.options["channel_axis"]],)
        var = Operand(shape, case.x.dtype, "variance")
        return replace(case, operands=others | {random.choice(("mean", "var")): var})
    if what == "statistic_shape":
        length = case.x.shape[case.options["channel_axis"]]
        right, bad = [Operand((value,), case.x.dtype, "variance") for value in (length, length + 1)]
        first, second = (right, bad) if random.random() < 0.5 else (bad, right)
        return replace(case, operands=case.operands | {"mean": first, "var": second})
    return case  # dy and out are made by the ways


def _with(case: Case, name: str, operand: Operand) -> Case:
    return replace(case, operands=case.operands | {name: operand})


def _wrong_x(case: Case, what: str, random: Random) -> Operand:
    if what == "x_0d":
        return Operand((), case.x.dtype, "ordinary")
    if what == "x_dtype":
        return Operand(case.x.shape, random.choice(("int32", "bool", "complex64")), "integers")
    return replace(case.x, kind=random.choice(("list", "float")), dtype="float32", values="ordinary")


def _wrong_parameter(case: Case, own: Operand, what: str, random: Random) -> Operand:
    if what == "parameter_dtype":
        return replace(own, dtype=random.choice(("int32", "bool", "complex64")), values="integers")
    if what == "parameter_kind":
        kinds = NO_ARRAYS if case.library in ("numpy", "numpy_alone") else ("list", "float", "other_library")
        return Operand(own.shape, "float32", "ordinary", kind=random.choice(kinds))
    shape = list(own.shape)
    if shape and random.random() < 0.6:
        shape[random.randrange(len(shape))] += random.choice((1, 2))
    else:
        shape = [*shape, 1] if random.random() < 0.5 else [2, *shape]
    return replace(own, shape=tuple(shape))


def _with_axes(case: Case, what: str, random: Random) -> Case:
    ndim = len(case.x.shape)
    strange: tuple[Any, ...] = (ndim, -ndim - 1, 1.0, True, "1", [0])
    if what == "groups":
        groups = random.choice((0, -1, case.groups[0] + 1, 1.0, True, None, (2,)))
        return replace(case, groups=(groups,))
    if case.function in OVER_AXES:
        axis = random.choice((*strange, (), (0, -ndim), (0, ndim), (0, 1.0)))
        return replace(case, options=case.options | {"axis": axis})
    if "batch_axis" in case.options and random.random() < 0.5:
        channel = case.options["channel_axis"]
        return replace(case, options=case.options | {"batch_axis": random.choice((*strange, channel, (0, -ndim)))})
    return replace(case, options=case.options | {"channel_axis": random.choice((*strange, None, (0,)))})


def refusals(case: Case) -> set[type[Exception]]:
    """Return the errors of which one must be raised; none where the call is right."""
    found: set[type[Exception]] = set()
    for name, operand in case.operands.items():
        if operand.kind != "array" or operand.dtype not in DTYPES:
            found.add(TypeError)
        if name == "x" and not operand.shape:
            found.add(ValueError)
    if case.function != "moments":
        found |= _of_eps(case)
    if case.x.kind == "array" and case.x.shape:
        found |= _of_axes(case) or _of_shapes(case)
    if ("mean" in case.operands) != ("var" in case.operands):
        found.add(ValueError)
    if case.wrong in ("dy_shape", "out_shape", "out_read_only"):
        found.add(ValueError)
    # An out that is read-only does not have the byte order of such an x.
    if case.wrong in ("dy_dtype", "out_dtype") or (case.wrong, case.x.layout.odd) == ("out_read_only", "big_endian"):
        found.add(TypeError)
    if case.way in ("out", "vjp_out") and case.library in ("jax", "dask"):
        found.add(TypeError)
    return found


def _of_eps(case: Case) -> set[type[Exception]]:
    eps = case.eps
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        return {TypeError}
    least, most = _NORMAL["float64" if case.x.dtype == "float64" else "float32"]
    return set() if eps == 0 or least <= eps <= most else {ValueError}


def _of_axes(case: Case) -> set[type[Exception]]:
    ndim, found = len(case.x.shape), set[type[Exception]]()
    for name in ("axis", "channel_axis", "batch_axis"):
        value = case.options.get(name)
        if name not in case.options or (value is None and name != "channel_axis"):
            continue
        several = value if isinstance(value, tuple) and name != "channel_axis" else (value,)
        if any(type(axis) is not int for axis in several):
            found.add(TypeError)
        elif any(not -ndim <= axis < ndim for axis in several):
            found.add(an.AxisError)
        elif len({axis % ndim for axis in several}) < len(several) or (name == "axis" and not several):
            found.add(ValueError)
    if not found and isinstance(case.options.get("batch_axis"), int | tuple):
        batch = case.options["batch_axis"]
        if case.options["channel_axis"] % ndim in [
            axis % ndim for axis in (batch if isinstance(batch, tuple) else (batch,))
        ]:
            found.add(ValueError)
    if case.function == "group_norm" and type(case.groups[0]) is not int:
        found.add(TypeError)
    elif case.function == "group_norm" and case.groups[0] < 1:
        found.add(ValueError)
    return found


def _of_shapes(case: Case) -> set[type[Exception]]:
    """Ask whether lengths fit, of axes that are right."""
    shape = case.x.shape
    ndim = len(shape)
    if case.function in OVER_AXES:
        axis = case.options["axis"]
        along = (
            range(ndim)
            if axis is None
            else sorted([value % ndim for value in (axis if isinstance(axis, tuple) else (axis,))])
        )
    else:
        along = [case.options["channel_axis"] % ndim]
    laid = tuple([shape[axis] for axis in along])
    channels = math.prod(laid)
    if case.function == "group_norm" and channels % case.groups[0]:
        return {ValueError}
    each = math.prod([length for axis, length in enumerate(shape) if axis not in along])
    if case.function == "batch_norm" and each == 1 and not case.operands.keys() & {"mean", "var"}:
        return {ValueError}
    for name, operand in case.operands.items():
        if name in ("weight", "bias") and operand.kind == "array":
            fits = operand.shape == laid
            if len(operand.shape) == ndim:
                fits = all(own in (1, length) for own, length in zip(operand.shape, shape, strict=True))
            if not fits:
                return {ValueError}
        whole = tuple([length if axis in along else 1 for axis, length in enumerate(shape)])
        if name in ("mean", "var") and operand.shape not in (laid, whole):
            return {ValueError}
    return set()
