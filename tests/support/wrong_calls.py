"""Calls that must fail, and what each must say. No test is in here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import array_api_compat
import numpy as np
import pytest
from libraries import LIBRARIES, ONE_OF_EACH, ArrayLibrary

import anynorm

an: Any = anynorm  # called here with what its annotations forbid

NUMPY = LIBRARIES["numpy"]
READ_ONLY = ("jax", "dask")
WRITABLE = [name for name in ONE_OF_EACH if name not in READ_ONLY]


@dataclass(frozen=True)
class Of:
    """An array of the library under test, of zeros. Its default is an x with six channels along axis 1."""

    shape: tuple[int, ...] = (4, 6, 5)
    dtype: str = "float32"

    def make(self, library: ArrayLibrary) -> Any:
        """Make it."""
        return library.make(np.zeros(self.shape, self.dtype))

    def make_unusable(self, library: ArrayLibrary) -> Any:
        """Make an array that can be looked at but not computed on: there is no memory for the result."""
        if library.family == "jax":
            x = self.make(library)
            x.delete()
            return x
        zero = Of((), self.dtype).make(library)
        return array_api_compat.array_namespace(zero).broadcast_to(zero, (2**25, *self.shape[1:-1], 2**25))

    def __repr__(self) -> str:
        return f"{self.dtype}{self.shape}"


@dataclass(frozen=True)
class Case:
    """A wrong call, the class it must raise, and what the message must contain beside the function's name."""

    function: str
    error: type[Exception]
    said: tuple[str, ...]
    x: Any
    args: tuple[Any, ...]
    options: dict[str, Any] = field(hash=False)

    def call(self, library: ArrayLibrary, *, usable: bool = True) -> str:
        """Make the call and return the message of the error it must raise."""
        x = self.x
        if isinstance(x, Of):
            x = x.make(library) if usable else x.make_unusable(library)
        args = [of_library(arg, library) for arg in self.args]
        options = {name: of_library(option, library) for name, option in self.options.items()}
        with pytest.raises(self.error) as caught:
            getattr(an, self.function)(x, *args, **options)
        assert type(caught.value) is self.error
        return str(caught.value)

    def __str__(self) -> str:
        x = [] if self.x == Of() else [f"x={self.x!r}"]
        options = [f"{name}={option!r:.40}" for name, option in self.options.items()]
        return f"{self.function}({', '.join([*x, *map(repr, self.args), *options])})"


def of_library(value: Any, library: ArrayLibrary) -> Any:
    """Return an argument with every `Of` in it made by a library."""
    if isinstance(value, anynorm.Moments):
        return anynorm.Moments(*[of_library(one, library) for one in value])
    return value.make(library) if isinstance(value, Of) else value


def wrong(
    function: str,
    error: type[Exception],
    *said: str,
    x: Any = Of(),
    args: Any = None,
    **options: Any,
) -> Case:
    """Describe a wrong call; group norm gets two groups unless told otherwise."""
    if args is None:
        args = (2,) if function == "group_norm" else ()
    return Case(function, error, said, x, args, options)


class Frame:
    """What a data frame looks like from outside: a shape, a dtype, a way to become an array, no namespace."""

    shape = (4, 6, 5)
    ndim = 3
    dtype = np.dtype("float32")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """Fail: nothing may be converted silently."""
        raise AssertionError

    def __repr__(self) -> str:
        return "Frame"


def wrong_arrays(norm: str) -> Iterator[Case]:
    """Arguments that are no arrays, or arrays of a wrong dtype or shape."""
    said: tuple[str, ...]
    value: Any
    dtypes = "real floating dtype (float16, bfloat16, float32 or float64)"
    for dtype, advice in (("int32", "Cast it"), ("bool", "Cast it"), ("complex64", "imaginary part")):
        yield wrong(norm, TypeError, f"x must have a {dtypes}", f"got {dtype}", advice, x=Of(dtype=dtype))
    for argument in ("weight", "bias"):
        said = (f"{argument} must have a {dtypes}", "got int32", "Cast it")
        yield wrong(norm, TypeError, *said, **{argument: Of((6,), "int32")})
        for value, advice in (([1.0] * 6, "Convert it"), (1.0, "numpy.full"), ("ones", "Pass an array")):
            said = (f"{argument} must be an array", f"got {type(value).__name__}", advice)
            yield wrong(norm, TypeError, *said, **{argument: value})
    for value in ([[1.0]], (1.0,), Frame()):
        yield wrong(norm, TypeError, "x must be an array", type(value).__name__, "Convert it", x=value)
    for value, advice in ((1.0, "is no set"), (None, "Pass an array"), ("x", "Pass an array")):
        yield wrong(norm, TypeError, "x must be an array", type(value).__name__, advice, x=value)
    yield wrong(norm, ValueError, "x is 0-dimensional", "at least one axis", x=Of(()))
    for argument in ("weight", "bias"):
        for shape in ((7,), (), (1, 1, 1, 6), (4, 6, 7), (8, 6, 5)):
            said = (f"{argument} has shape {shape}", "does not fit x of shape (", "must have shape (")
            yield wrong(norm, ValueError, *said, **{argument: Of(shape)})
    said = ("weight has shape (4, 6, 5)", "does not fit x of shape (4, 6, 1)")  # y never grows
    yield wrong(norm, ValueError, *said, x=Of((4, 6, 1)), weight=Of((4, 6, 5)))


def wrong_eps(norm: str) -> Iterator[Case]:
    """Numbers that float32 cannot hold or a square root cannot take, and what is no number."""
    eps: Any
    for eps in (float("nan"), -1e-5, float("inf"), -float("inf"), 1e-50, 1e39, 10**400):
        yield wrong(norm, ValueError, "eps must be 0 or lie between", "float32", "got ", "Choose a value", eps=eps)
    for eps in ("1e-5", None, True, 1j, [1e-5]):
        yield wrong(norm, TypeError, "eps must be a real number", f"got {eps!r} of type", eps=eps)
    yield wrong(norm, TypeError, "eps must be a real number", eps=Of(()))


def wrong_axes(function: str) -> Iterator[Case]:
    """Axes to reduce that do not exist, come twice or are none."""
    axis: Any
    for axis in (3, -4, (0, 7)):
        yield wrong(function, an.AxisError, "axis=", "out of range for x with 3 axes", "Choose", axis=axis)
    yield wrong(function, ValueError, "axis=(1, -2) names an axis twice", "Name each", axis=(1, -2))
    yield wrong(function, ValueError, "axis=() reduces nothing", "Name at least one", axis=())
    for axis in (1.0, True, "1", [1], np.float64(1), (0, 1.0), (True, 0)):
        bad = next(value for value in (axis if isinstance(axis, tuple) else [axis]) if type(value) is not int)
        yield wrong(function, TypeError, "axis must be an integer", f"got {bad!r} of type", axis=axis)


def wrong_channels(function: str) -> Iterator[Case]:
    """Channel and batch axes that do not exist, meet, or are no integers."""
    for axis in (3, -4):
        yield wrong(function, an.AxisError, f"channel_axis={axis}", "out of range", "Choose", channel_axis=axis)
    for value in (1.0, True, None, (1,), "1"):
        said = ("channel_axis must be an integer, ", f"got {value!r} of type")
        yield wrong(function, TypeError, *said, channel_axis=value)
    if function == "batch_norm":
        return
    yield wrong(function, an.AxisError, "batch_axis=3", "out of range", "Choose", batch_axis=3)
    yield wrong(function, ValueError, "batch_axis=(0, -3)", "twice", "Name each", batch_axis=(0, -3))
    batch: Any
    for batch in (1, (0, -2)):
        said = (f"batch_axis={batch} contains channel_axis=1", "Name the axes of the batch alone")
        yield wrong(function, ValueError, *said, batch_axis=batch)
    for batch in (0.0, False, [0]):
        said = ("batch_axis must be an integer", f"got {batch!r} of type")
        yield wrong(function, TypeError, *said, batch_axis=batch)


def wrong_groups() -> Iterator[Case]:
    """Numbers of groups that do not divide six channels, or are none."""
    said: tuple[str, ...]
    for groups in (0, -1):
        yield wrong(
            "group_norm", ValueError, "num_groups must be at least 1", f"got {groups}", "Choose", args=(groups,)
        )
    for groups in (4, 12):
        said = ("x has 6 channels", f"num_groups={groups} does not divide", "Choose a divisor of 6")
        yield wrong("group_norm", ValueError, *said, args=(groups,))
    for value in (2.0, True, None, "2", (2,)):
        said = ("num_groups must be an integer, ", f"got {value!r} of type")
        yield wrong("group_norm", TypeError, *said, args=(value,))


def wrong_statistics() -> Iterator[Case]:
    """Given statistics that do not fit, and a batch that has none of its own."""
    said: tuple[str, ...]
    one, short, whole = Of((6,)), Of((5,)), Of((6,), "int32")
    yield wrong("batch_norm", ValueError, "mean is given without var", "Give both", mean=one)
    yield wrong("batch_norm", ValueError, "var is given without mean", "Give both", var=one)
    for shape in ((5,), (), (6, 1), (4, 6, 5), (1, 6, 1, 1)):
        said = (f"has shape {shape}", "does not fit x of shape (", "must have shape (6,)")
        yield wrong("batch_norm", ValueError, f"mean {said[0]}", *said[1:], mean=Of(shape), var=one)
        yield wrong("batch_norm", ValueError, f"var {said[0]}", *said[1:], mean=one, var=Of(shape))
    yield wrong("batch_norm", TypeError, "mean must have a real floating dtype", "got int32", mean=whole, var=one)
    yield wrong("batch_norm", TypeError, "var must be an array", "got float", mean=one, var=1.0)
    said = ("return_moments=True measures", "mean and var are given", "Leave them out")
    yield wrong("batch_norm", ValueError, *said, mean=one, var=one, return_moments=True)
    yield wrong("batch_norm", ValueError, "mean is given without var", mean=short, return_moments=True)
    for shape in ((1, 6), (1, 6, 1)):
        said = (f"x of shape {shape} has one value per channel", "Use a larger batch, running statistics (mean=")
        yield wrong("batch_norm", ValueError, *said, x=Of(shape))


def wrong_updates() -> Iterator[Case]:
    """Arguments of update_running that do not fit the batch."""
    said: tuple[str, ...]
    value: Any
    update, one = "update_running", Of((6,))
    batch = anynorm.Moments(8, one, one)
    yield wrong(update, TypeError, "batch must be a Moments", "got tuple", x=one, args=(one, (8, one, one)))
    for argument, pair in (("running_mean", lambda bad: (bad, one)), ("running_var", lambda bad: (one, bad))):
        for bad, error, said in (
            (Of((5,)), ValueError, (f"{argument} has shape (5,)", "batch.mean has shape (6,)")),
            (Of((6,), "int32"), TypeError, (f"{argument} must have a real floating dtype", "got int32")),
            ([0.0] * 6, TypeError, (f"{argument} must be an array", "got list")),
        ):
            first, second = pair(bad)
            yield wrong(update, error, *said, x=first, args=(second, batch))
    for momentum in (-0.1, 1.5, float("nan"), float("inf"), 10**400):
        shown = f"got {momentum}" if isinstance(momentum, float) else "got"
        said = ("momentum must lie in [0, 1]", shown, "pass 1 - m")
        yield wrong(update, ValueError, *said, x=one, args=(one, batch), momentum=momentum)
    for value in ("0.1", None, True, [0.1]):
        said = ("momentum must be", f"got {value!r} of type")
        yield wrong(update, TypeError, *said, x=one, args=(one, batch), momentum=value)
    yield wrong(update, TypeError, "momentum must be", x=one, args=(one, batch), momentum=Of((1,)))
    yield wrong(update, ValueError, "correction must be 0 or more", "got -1", x=one, args=(one, batch), correction=-1)
    for value in (1.0, True, None, "1"):
        said = ("correction must be an integer, ", f"got {value!r} of type")
        yield wrong(update, TypeError, *said, x=one, args=(one, batch), correction=value)


def wrong_a_little(norm: str) -> Iterator[Case]:
    """One of each kind, for the norms whose arrays are checked as those of another."""
    yield wrong(norm, TypeError, "x must have a real floating dtype", "got int32", "Cast it", x=Of(dtype="int32"))
    yield wrong(norm, TypeError, "x must be an array", "list", "Convert it", x=[[1.0]])
    yield wrong(norm, ValueError, "x is 0-dimensional", "at least one axis", x=Of(()))
    yield wrong(norm, TypeError, "weight must have a real floating dtype", "got int32", weight=Of((6,), "int32"))
    yield wrong(
        norm, ValueError, "bias has shape (7,)", "does not fit x of shape (", "must have shape (", bias=Of((7,))
    )
    yield wrong(norm, ValueError, "eps must be 0 or lie between", "got nan", "Choose a value", eps=float("nan"))
    yield wrong(norm, TypeError, "eps must be a real number", "got None of type", eps=None)


CASES = [
    *[case for norm in ("layer_norm", "batch_norm") for case in (*wrong_arrays(norm), *wrong_eps(norm))],
    *[case for norm in ("rms_norm", "group_norm", "instance_norm") for case in wrong_a_little(norm)],
    *[case for function in ("layer_norm", "rms_norm", "moments") for case in wrong_axes(function)],
    *[case for function in ("group_norm", "instance_norm", "batch_norm") for case in wrong_channels(function)],
    *wrong_groups(),
    *wrong_statistics(),
    *wrong_updates(),
]


def words(message: str) -> str:
    """Return a message without the names by which a library calls its own dtypes and arrays, and casts them."""
    message = re.sub(r"(\w+)\.(?:astype\('|to\(torch\.)(float\d\d)'?\)", r"xp.astype(\1, xp.\2)", message)
    message = re.sub(r"(?<!xp\.)\b(x|weight|bias|mean|var)\.(real|imag)\b", r"xp.\2(\1)", message)
    message = re.sub(r"\b(?:torch|array_api_strict|numpy)\.(?=u?int|bfloat|float|bool|complex)", "", message)
    return re.sub(r"got (?:tensor|array|Array|dask)\b.* of type \w+", "got ARRAY", message)


def computing_nothing(library: ArrayLibrary) -> AbstractContextManager[Any]:
    """Return a context in which Dask may build graphs but not compute them."""
    if library.family != "dask":
        return nullcontext()
    import dask

    def scheduler(*_: object, **__: object) -> None:
        raise AssertionError

    return dask.config.set(scheduler=scheduler)
