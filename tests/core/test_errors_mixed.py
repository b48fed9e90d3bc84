"""Arguments of two libraries or devices, and what a backend may say of its library's arrays. Calls that must fail."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from libraries import LIBRARIES, ONE_OF_EACH, ArrayLibrary, each_library
from wrong_calls import NUMPY, WRITABLE, Of, an

import anynorm
from anynorm._core import backends
from anynorm.backend import ArrayOps, Backend, Executable


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


def with_backend(monkeypatch: pytest.MonkeyPatch, ops: dict[str, Any] | None = None, **own: Any) -> Any:
    """Return the namespace of array-api-strict, served by a stranger's backend that overrides these names alone."""
    xp = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    ops_class = type("StrangersOps", (ArrayOps,), ops or {})
    backend = type("StrangersBackend", (Backend,), own)(ops_class("array_api_strict", xp))
    monkeypatch.setitem(backends.by_type, type(xp.ones(1)), backend)
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
    with_backend(monkeypatch, writable=lambda _, array: array is not out)
    assert an.layer_norm(x, out=x) is x
    with pytest.raises(ValueError, match=r"^layer_norm: out is read-only\. Pass a writable array"):
        an.layer_norm(x, out=out)


def test_a_backend_may_leave_lengths_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `shape` a length can be None: an axis of that length cannot be reduced."""
    xp = with_backend(monkeypatch, ops={"shape": lambda _, array: (None, *array.shape[1:])})
    with pytest.raises(ValueError, match="length of x along axis 0, which is reduced, is not known"):
        an.layer_norm(xp.ones((2, 3)), axis=0)


@pytest.mark.parametrize(
    ("base", "wrong", "nearest"),
    [(Backend, "compil", "compile"), (ArrayOps, "summ", "sum"), (Executable, "mesure", "measure")],
)
def test_a_name_that_nothing_asks_for_is_refused(base: type, wrong: str, nearest: str) -> None:
    """A public name that the base class lacks is a TypeError when the class is made, which names the nearest."""
    with pytest.raises(TypeError, match=f"has no '{wrong}'.* Did you mean '{nearest}'"):
        type("Misspelt", (base,), {wrong: lambda *_: None})
    middle = type("Fine", (base,), {"_helper": lambda *_: None})
    with pytest.raises(TypeError, match=f"{base.__name__} has no '{wrong}'"):
        type("Misspelt", (middle,), {wrong: lambda *_: None})
