"""How gradients are asked for and judged: the one check that every comparison with their reference goes through.

The norms and their inputs are in inputs.py, how memory lies in layouts.py. No test in here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from inputs import Case, flushed
from libraries import ArrayLibrary, NumPyArray, numpy_dtype

import anynorm as an
from anynorm import _reference
from anynorm._reference_gradients import Gradients, gradients

NAMES = ("x", "weight", "bias")


def cotangent(case: Case, dtype: str | None = None) -> NumPyArray:
    """Return a dy for a case, in x's dtype unless told otherwise; it has a mean, and so has its product with x̂."""
    x = case.arrays["x"]
    random = np.random.default_rng(zlib.crc32(f"{case.norm.name} {x.dtype} {dtype}".encode()))
    dy: NumPyArray = np.asarray(random.normal(0.5, 1, size=x.shape))
    return dy.astype(numpy_dtype(dtype) if dtype else x.dtype)


def exact_gradients(case: Case, dy: NumPyArray, flushes: bool = False) -> Gradients:
    """Return the exact gradients, of the inputs as a library sees them that flushes subnormal numbers."""
    if case.arrays["x"].dtype.name == "float64" and not _reference.CHECKS_FLOAT64:
        pytest.skip("longdouble is no wider than double here, so float64 has no reference")
    arrays = case.arrays | {"dy": dy}
    if flushes:
        arrays = {name: flushed(array) for name, array in arrays.items()}
    others = {name: array for name, array in arrays.items() if name not in ("x", "dy")}
    return gradients(case.norm.function, arrays["dy"], arrays["x"], *case.norm.groups, **others, **case.norm.options)


def vjp(case: Case, arrays: dict[str, Any], **extra: Any) -> tuple[Any, Callable[[Any], an.Gradients]]:
    """Call `anynorm.vjp` on a library's own arrays."""
    others = {name: array for name, array in arrays.items() if name != "x"}
    function: Callable[..., Any] = getattr(an, case.norm.function)
    return an.vjp(function, arrays["x"], *case.norm.groups, **others, **case.norm.options, **extra)


def pull(case: Case, library: ArrayLibrary, dy: NumPyArray) -> an.Gradients:
    """Return the gradients that a library computes, as NumPy arrays."""
    _, pullback = vjp(case, library.make_all(case.arrays))
    return to_numpy(pullback(library.make(dy)), library)


def to_numpy(found: an.Gradients, library: ArrayLibrary) -> an.Gradients:
    """Return gradients as NumPy arrays, None as None."""
    return an.Gradients(*[None if result is None else library.to_numpy(result) for result in found])


def verify_gradients(found: an.Gradients, case: Case, reference: Gradients) -> None:
    """Raise unless each gradient has its argument's shape and dtype and lies within the bound of the exact one."""
    for name in NAMES:
        argument, array, expected = case.arrays.get(name), getattr(found, name), getattr(reference, name)
        if argument is None:
            if array is not None:
                msg = f"{name} was None, its gradient is {array!r}"
                raise AssertionError(msg)
            continue
        if (array.dtype, array.shape) != (argument.dtype, argument.shape):
            msg = (
                f"d{name} has dtype {array.dtype} and shape {array.shape}, {name} {argument.dtype} and {argument.shape}"
            )
            raise AssertionError(msg)
        units = expected.units(array)
        if not units <= 1:
            msg = f"d{name} is off by {units:.3g} units of the contract's bound"
            raise AssertionError(msg)


def check_gradients(case: Case, library: ArrayLibrary, dy: NumPyArray, exact: Gradients | None = None) -> an.Gradients:
    """Run a case forward and backward on a library's own arrays, verify the gradients and return them as NumPy's.

    `exact` are the gradients to verify against, where they are known already.
    """
    arrays = library.make_all(case.arrays)
    _, pullback = vjp(case, arrays)
    found = pullback(library.make(dy))
    if type(found) is not an.Gradients:
        msg = f"the pullback returned a {type(found)}"
        raise AssertionError(msg)
    for name in NAMES:
        array = getattr(found, name)
        # The gradient of a memory map is a plain array.
        if array is not None and not (
            isinstance(arrays[name], type(array)) and _device(array) == _device(arrays[name])
        ):
            argument = arrays[name]
            msg = f"d{name} is a {type(array)} on {_device(array)}, {name} a {type(argument)} on {_device(argument)}"
            raise AssertionError(msg)
    verified = to_numpy(found, library)
    verify_gradients(verified, case, exact or exact_gradients(case, dy, case.flushes(library)))
    return verified


def _device(array: Any) -> str:
    return str(getattr(array, "device", None))


def bits(found: an.Gradients) -> list[bytes | None]:
    """Return the bits of gradients that are NumPy arrays."""
    return [None if result is None else result.tobytes() for result in found]
