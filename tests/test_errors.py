"""What a wrong call says: the same class and the same words on every library, before any work.

Here are calls that must fail. What a right call computes belongs elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import permutations
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
import pytest
from libraries import LIBRARIES, ONE_OF_EACH, ArrayLibrary, each_library

import anynorm
from anynorm import _dispatch
from anynorm._array import Library

an: Any = anynorm  # called here with what its annotations forbid

NUMPY = LIBRARIES["numpy"]
READ_ONLY = ("jax", "dask")
WRITABLE = [name for name in ONE_OF_EACH if name not in READ_ONLY]
NORMS = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm")


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
        args = [_made(its, library) for its in self.args]
        options = {name: _made(its, library) for name, its in self.options.items()}
        with pytest.raises(self.error) as caught:
            getattr(an, self.function)(x, *args, **options)
        assert type(caught.value) is self.error
        return str(caught.value)

    def __str__(self) -> str:
        x = [] if self.x == Of() else [f"x={self.x!r}"]
        options = [f"{name}={its!r:.40}" for name, its in self.options.items()]
        return f"{self.function}({', '.join([*x, *map(repr, self.args), *options])})"


def _made(value: Any, library: ArrayLibrary) -> Any:
    if isinstance(value, anynorm.Moments):
        return anynorm.Moments(*[_made(its, library) for its in value])
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
    for dtype in ("int32", "bool", "complex64"):
        yield wrong(norm, TypeError, f"x must have a {dtypes}", f"got {dtype}", "Cast it", x=Of(dtype=dtype))
    for argument in ("weight", "bias"):
        said = (f"{argument} must have a {dtypes}", "got int32", "Cast it")
        yield wrong(norm, TypeError, *said, **{argument: Of((6,), "int32")})
        for value in ([1.0] * 6, 1.0, "ones"):
            said = (f"{argument} must be an array", f"got {type(value).__name__}", "Convert it")
            yield wrong(norm, TypeError, *said, **{argument: value})
    for value in ([[1.0]], (1.0,), 1.0, None, "x", Frame()):
        yield wrong(norm, TypeError, "x must be an array", type(value).__name__, "Convert it", x=value)
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
        bad = next(its for its in (axis if isinstance(axis, tuple) else [axis]) if type(its) is not int)
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
        said = (f"x of shape {shape} has one value per channel", "Use a larger batch, pass mean= and var=")
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

# An imperative after the rule: what to do.
ADVICE = re.compile(
    r"[.,:;] (?:Allocate|Call|Cast|Choose|Convert|Fill|Give|Leave|Move|Name|Pass|Reshape|Use)\b|must have shape \(",
    re.IGNORECASE,
)


def words(message: str) -> str:
    """Return a message without the names by which a library calls its own dtypes and arrays."""
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


@each_library(ONE_OF_EACH)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_message(case: Case, library: ArrayLibrary) -> None:
    """A wrong call names function, argument, rule, what came and what to do, in the same words on every library."""
    with computing_nothing(library):
        message = words(case.call(library))

    assert message.startswith(f"{case.function}: ")
    for part in case.said:
        assert part in message
    assert message == words(case.call(NUMPY))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_message_says_what_to_do(case: Case) -> None:
    """Every message ends with what to do."""
    assert ADVICE.search(case.call(NUMPY))


@each_library([name for name in ONE_OF_EACH if name != "dask"])
@pytest.mark.parametrize("case", [case for case in CASES if case.x == Of()], ids=str)
def test_before_any_work(case: Case, library: ArrayLibrary) -> None:
    """A wrong call is refused without computing or allocating: also with an x on which neither would succeed."""
    assert case.call(library, usable=False).startswith(f"{case.function}: ")


@each_library(ONE_OF_EACH)
@pytest.mark.parametrize("norm", NORMS)
def test_right_call_is_not_refused(norm: str, library: ArrayLibrary) -> None:
    """Integers and numbers of other types than Python's own are integers and numbers."""
    options: dict[str, Any] = {"channel_axis": np.int64(1)}
    if norm in ("layer_norm", "rms_norm"):
        options = {"axis": (np.int64(1), np.int32(-1))}
    elif norm != "batch_norm":
        options["batch_axis"] = (np.int8(0),)
    args = (np.int64(3),) if norm == "group_norm" else ()

    for eps in (0, 1, np.float32(1e-5), np.float64(1e-5)):
        assert getattr(an, norm)(Of().make(library), *args, eps=eps, **options).shape == (4, 6, 5)


@each_library(ONE_OF_EACH)
@pytest.mark.parametrize(("right", "like_it"), [(1, 1.0), (1, True), (0, 0.0), (0, False)])
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda x, axis: an.layer_norm(x, axis=axis), id="axis"),
        pytest.param(lambda x, axis: an.rms_norm(x, axis=(axis, 2)), id="axes"),
        pytest.param(lambda x, axis: an.moments(x, axis=axis), id="moments"),
        pytest.param(lambda x, axis: an.batch_norm(x, channel_axis=axis), id="batch_norm"),
        pytest.param(lambda x, axis: an.group_norm(x, 1, channel_axis=axis, batch_axis=2), id="group_norm"),
        pytest.param(lambda x, axis: an.instance_norm(x, channel_axis=2, batch_axis=axis), id="instance_norm"),
    ],
)
def test_caches_do_not_confuse_types(
    call: Callable[[Any, Any], Any], right: int, like_it: Any, library: ArrayLibrary
) -> None:
    """1.0 and True are refused, also right after the 1 that they are equal to was used."""
    x = Of((4, 6, 5)).make(library)
    call(x, right)

    with pytest.raises(TypeError, match="must be an integer"):
        call(x, like_it)


@pytest.mark.parametrize("like_it", [2.0, np.float64(2)])
def test_caches_do_not_confuse_groups(like_it: Any) -> None:
    """2.0 groups are refused, also right after 2 were used."""
    x = Of().make(NUMPY)
    an.group_norm(x, 2)

    with pytest.raises(TypeError, match="num_groups must be an integer"):
        an.group_norm(x, like_it)


def test_axis_error() -> None:
    """An axis that is not there is caught as ValueError and as IndexError, as NumPy's is."""
    for caught in (ValueError, IndexError):
        with pytest.raises(caught, match="axis=2 is out of range"):
            an.layer_norm(np.ones((2, 3)), axis=2)


@each_library(ONE_OF_EACH)
@pytest.mark.parametrize("function", ["batch_norm", "instance_norm"])
def test_torch_positional_order(function: str, library: ArrayLibrary) -> None:
    """The order of torch, running mean and variance second and third, fails instead of computing something else."""
    x, one = Of().make(library), Of((6,)).make(library)
    for args in ((one,), (one, one), (one, one, one, one, True, 0.1, 1e-5)):
        with pytest.raises(TypeError, match=rf"{function}\(\) takes 1 positional argument"):
            getattr(an, function)(x, *args)


@pytest.mark.parametrize(
    "function",
    [np.mean, anynorm.update_running, "layer_norm", None, np.ones(3)],
    ids=lambda its: getattr(its, "__name__", str(its)),
)
def test_explain_of_a_foreign_function(function: Any) -> None:
    """What is none of the functions explain knows, an array passed by mistake too, is a TypeError that names them."""
    with pytest.raises(TypeError, match=r"^explain: function must be one of .*layer_norm, rms_norm, group_norm"):
        an.explain(function, np.ones((2, 3)))


def present(name: str) -> ArrayLibrary:
    """Return a library, or skip the test where it is not there."""
    library = LIBRARIES[name]
    reason = library.missing()
    if reason is not None:
        pytest.skip(reason)
    return library


@pytest.mark.parametrize(
    ("argument", "here", "there"),
    [
        (argument, *pair)
        for argument in ("weight", "bias", "mean", "out")
        for pair in permutations(ONE_OF_EACH, 2)
        if argument != "out" or pair[0] in WRITABLE
    ],
)
def test_mixed_libraries(argument: str, here: str, there: str) -> None:
    """An argument of another library than x is a TypeError that says which is whose."""
    ours, theirs = present(here), present(there)
    x, other, one = Of().make(ours), Of((6,)).make(theirs), Of((6,)).make(ours)
    options = {argument: other} | ({"var": one} if argument == "mean" else {})
    names = [library.family.removesuffix("_cuda") for library in (ours, theirs)]
    if names[0] == names[1]:
        pytest.skip("one library on two devices is no mixture")

    with pytest.raises(TypeError) as caught:
        an.batch_norm(x, **options)

    assert str(caught.value) == (
        f"batch_norm: x is an array of {names[0]} but {argument} is one of {names[1]}. "
        f"Nothing is converted silently: convert {argument} to {names[0]} first."
    )


@each_library([name for name in ONE_OF_EACH if name != "numpy"])
def test_numpy_scalar_is_a_numpy_array(library: ArrayLibrary) -> None:
    """A NumPy scalar as weight is of another library than x; beside a NumPy x it is a weight without axes."""
    with pytest.raises(TypeError, match="but weight is one of numpy"):
        an.layer_norm(Of().make(library), np.float32(1))
    with pytest.raises(ValueError, match=r"weight has shape \(\), which does not fit"):
        an.layer_norm(Of().make(NUMPY), np.float32(1))


def on_two_devices(name: str) -> tuple[Any, Any, Any]:
    """Return a namespace and two of its devices that every machine has."""
    xp = pytest.importorskip(name)
    if name == "torch":
        return xp, xp.device("cpu"), xp.device("meta")
    return xp, xp.Device("CPU_DEVICE"), xp.Device("device1")


@pytest.mark.parametrize("argument", ["weight", "bias", "var", "out", "running_mean"])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", ["torch", "array_api_strict"])
def test_mixed_devices(name: str, swapped: bool, argument: str) -> None:
    """An argument on another device than x is a ValueError that says what lies where."""
    xp, here, there = on_two_devices(name)
    if swapped:
        here, there = there, here
    x, at_x, elsewhere = xp.ones((2, 2), device=here), xp.ones(2, device=here), xp.ones(2, device=there)

    def call() -> None:
        if argument == "running_mean":
            an.update_running(elsewhere, at_x, anynorm.Moments(2, at_x, at_x))
        else:
            an.batch_norm(x, **{argument: elsewhere}, **({"mean": at_x} if argument == "var" else {}))

    with pytest.raises(ValueError, match=f"{argument} is on device") as caught:
        call()

    function, beside = ("update_running", "batch.mean") if argument == "running_mean" else ("batch_norm", "x")
    assert str(caught.value) == (
        f"{function}: {beside} is on device {here} but {argument} is on device {there}. "
        f"Nothing is moved silently: move {argument} to {here} first."
    )


def with_backend(monkeypatch: pytest.MonkeyPatch, **hooks: Any) -> Any:
    """Return the namespace of array-api-strict, served by a stranger's backend that offers these hooks alone."""
    xp = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    package = ModuleType("anynorm_stranger")
    vars(package).update(hooks)
    library = Library("array_api_strict", xp, package)
    monkeypatch.setattr(_dispatch, "_libraries", {type(xp.ones(1)): library})
    return xp


def test_a_backend_may_say_that_its_library_places_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `places_itself` devices are the library's own business; without it they are checked."""
    for places_itself, error in ((False, "anynorm"), (True, "array_api_strict")):
        xp = with_backend(monkeypatch, places_itself=places_itself)
        x, weight = xp.ones((2, 3)), xp.ones(3, device=xp.Device("device1"))
        with pytest.raises((ValueError, RuntimeError)) as caught:
            an.layer_norm(x, weight)
        assert ("Nothing is moved silently" in str(caught.value)) == (error == "anynorm")


def test_a_backend_may_say_that_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `immutable` an out is refused for its library, with `writable` for itself; without them it is taken."""
    xp = with_backend(monkeypatch)
    x = xp.asarray([[1.0, 3.0]])
    out = xp.zeros((1, 2))
    assert an.layer_norm(x, out=out) is out
    with_backend(monkeypatch, immutable=True)
    with pytest.raises(
        TypeError, match=r"^layer_norm: array_api_strict arrays cannot be written to.* Use the returned"
    ):
        an.layer_norm(x, out=xp.zeros((1, 2)))
    with_backend(monkeypatch, writable=lambda array: array is not out)
    assert an.layer_norm(x, out=x) is x
    with pytest.raises(ValueError, match=r"^layer_norm: out is read-only\. Pass a writable array"):
        an.layer_norm(x, out=out)


def test_a_backend_may_leave_lengths_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `shape` a length can be None: an axis of that length cannot be reduced."""
    xp = with_backend(monkeypatch, shape=lambda array: (None, *array.shape[1:]))
    with pytest.raises(ValueError, match="length of x along axis 0, which is reduced, is not known"):
        an.layer_norm(xp.ones((2, 3)), axis=0)


@each_library(WRITABLE)
@pytest.mark.parametrize(
    ("out", "error", "said"),
    [
        (Of((4, 6, 4)), ValueError, "out must have x's shape (4, 6, 5), got (4, 6, 4). Allocate it"),
        (Of(()), ValueError, "out must have x's shape (4, 6, 5), got (). Allocate it"),
        (Of(dtype="float64"), TypeError, "out must have x's dtype float32, got float64. Allocate it"),
        (Of(dtype="int32"), TypeError, "out must have x's dtype float32, got int32. Allocate it"),
        (
            [0.0],
            TypeError,
            "out must be an array of a library that follows the array API standard, got list. Convert it",
        ),
        (
            1.0,
            TypeError,
            "out must be an array of a library that follows the array API standard, got float. Convert it",
        ),
    ],
    ids=["shape", "no-axes", "float64", "int32", "list", "float"],
)
def test_out_does_not_fit(out: Any, error: type[Exception], said: str, library: ArrayLibrary) -> None:
    """An out that is not like x is refused and left as it was."""
    made = _made(out, library)

    with pytest.raises(error) as caught:
        an.layer_norm(library.make(np.arange(120, dtype="float32").reshape(4, 6, 5)), out=made)

    assert type(caught.value) is error
    assert said in words(str(caught.value))
    if isinstance(out, Of):
        np.testing.assert_array_equal(library.to_numpy(made), 0)


@each_library(READ_ONLY)
@pytest.mark.parametrize(
    "out",
    [Of(), Of((3,)), Of(dtype="float64"), Of(dtype="int32"), np.zeros((4, 6, 5), "float32")],
    ids=["fits", "shape", "float64", "int32", "of-numpy"],
)
def test_out_that_cannot_be_written(out: Any, library: ArrayLibrary) -> None:
    """JAX and Dask arrays cannot be written to: a TypeError that says so, whatever out is."""
    said = rf"^layer_norm: {library.family} arrays cannot be written to.* Use the returned"
    with pytest.raises(TypeError, match=said):
        an.layer_norm(Of().make(library), out=_made(out, library))


@each_library(WRITABLE)
@pytest.mark.parametrize("options", [{"axis": 3}, {"eps": -1.0}, {"weight": Of((7,))}, {"bias": 1.0}], ids=str)
def test_out_is_untouched_by_an_error(options: dict[str, Any], library: ArrayLibrary) -> None:
    """A wrong call writes nothing to out."""
    out = library.make(np.full((4, 6, 5), 7, "float32"))

    with pytest.raises((TypeError, ValueError)):
        an.layer_norm(Of().make(library), out=out, **{name: _made(its, library) for name, its in options.items()})

    np.testing.assert_array_equal(library.to_numpy(out), 7)


@pytest.mark.parametrize(
    "case", ["read-only", "ahead", "behind", "weight", "bias", "mean", "var", "repeats", "windows", "reversed"]
)
def test_out_shares_memory(case: str) -> None:
    """An out that is read-only, meets another argument in memory or itself is a ValueError, and nothing changes."""
    memory = np.arange(50, dtype="float32")
    before = memory.copy()
    x, options, out = memory[:40].reshape(5, 8), {}, memory[10:].reshape(5, 8)
    if case == "read-only":
        out = np.zeros_like(x)
        out.flags.writeable = False
    elif case == "ahead":
        x, out = out, x
    elif case == "repeats":
        out = np.lib.stride_tricks.as_strided(np.zeros(8, "float32"), (5, 8), (0, 4))
    elif case == "windows":
        out = np.lib.stride_tricks.as_strided(np.zeros(20, "float32"), (5, 8), (12, 4))
    elif case == "reversed":
        out = x[::-1]
    elif case != "behind":
        x, options = np.zeros_like(x), {"mean": np.zeros(8, "float32"), "var": np.ones(8, "float32"), case: out[1]}

    with pytest.raises(ValueError, match=r"^batch_norm: (several elements of )?out .* Pass "):
        an.batch_norm(x, out=out, **options)

    np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("argument", ["x", "weight", "bias", "out"])
def test_out_beside_gradients(argument: str) -> None:
    """On torch, an out beside anything that requires a gradient is a ValueError that says what; not under no_grad."""
    torch = pytest.importorskip("torch")
    arguments = {"x": torch.ones(4, 6), "weight": torch.ones(6), "bias": torch.ones(6), "out": torch.zeros(4, 6)}
    arguments[argument].requires_grad_()
    x = arguments.pop("x")

    with pytest.raises(ValueError, match=rf"^layer_norm: .*gradient.*\b{argument} requires one.*\. [A-Z]"):
        an.layer_norm(x, **arguments)
    assert not arguments["out"].any()
    with torch.no_grad():
        assert an.layer_norm(x, **arguments) is arguments["out"]
    assert (arguments["out"] == 1).all()


@pytest.mark.parametrize("argument", ["x", "weight", "out"])
@pytest.mark.parametrize(
    ("kind", "advice"), [("ma.MaskedArray", "mask would be ignored: fill it"), ("matrix", "Convert it first")]
)
@pytest.mark.filterwarnings("ignore:the matrix subclass is not the recommended way:PendingDeprecationWarning")
def test_arrays_that_mean_something_else(kind: str, advice: str, argument: str) -> None:
    """A masked array and a matrix are no arrays to anynorm: it would drop the mask, and `*` would multiply matrices."""
    plain = np.zeros((4, 6))
    special = np.ma.MaskedArray(plain, plain == 0) if kind == "ma.MaskedArray" else plain.view(np.matrix)

    with pytest.raises(TypeError, match=rf"^layer_norm: {argument} must be an array .* got numpy\.{kind}\. .*{advice}"):
        an.layer_norm(special) if argument == "x" else an.layer_norm(plain, **{argument: special})


@pytest.mark.parametrize(
    "dtype", ["longdouble", "O", "U1", "M8[s]", "m8[s]", "clongdouble", [("r", "f4")], "uint8"], ids=str
)
def test_numpy_dtypes(dtype: Any) -> None:
    """What NumPy has beside the four real floating dtypes is a TypeError, as x and as a weight."""
    special, x = np.zeros((2, 3), dtype), np.zeros((2, 3))

    for argument, args in (("x", (special,)), ("weight", (x, special))):
        with pytest.raises(TypeError, match=f"^layer_norm: {argument} must have a real floating dtype") as caught:
            an.layer_norm(*args)
        assert f"got {special.dtype}. Cast it first" in str(caught.value)


@each_library(["numpy", "torch", "jax"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bits(dtype: str, library: ArrayLibrary) -> None:
    """Floats of eight bits are a TypeError."""
    name = "ml_dtypes" if library.family == "numpy" else {"jax": "jax.numpy"}.get(library.family, library.family)
    eight_bits = getattr(pytest.importorskip(name), dtype)
    x = Of().make(library)
    x = x.to(eight_bits) if library.family == "torch" else x.astype(eight_bits)

    with pytest.raises(TypeError, match=f"^rms_norm: x must have a real floating dtype .*{dtype}"):
        an.rms_norm(x)


def test_unknown_lengths() -> None:
    """Dask lengths that must be known and are not: a ValueError that names the axis and what makes them known."""
    da: Any = pytest.importorskip("dask.array")
    x = da.zeros((8, 6), chunks=4)
    rows = x[da.from_array(np.arange(8) % 2 == 0, chunks=4)]  # shape (?, 6)

    with computing_nothing(LIBRARIES["dask"]):
        calls: list[Callable[[], Any]] = [
            lambda: an.layer_norm(rows, axis=0),
            lambda: an.rms_norm(rows, axis=None),
            lambda: an.batch_norm(rows),
            lambda: an.moments(rows, axis=0),
            lambda: an.instance_norm(rows.T, batch_axis=None, channel_axis=0),
            lambda: an.group_norm(rows.T, 2, batch_axis=0),
        ]
        said = r"axis [01].* is not known.*\?.* Call x\.compute_chunk_sizes\(\) first"
        for call in calls:
            with pytest.raises(ValueError, match=said):
                call()
