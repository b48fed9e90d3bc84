"""Array libraries that nobody has tried: what follows the standard is served right, and what does not is refused.

The libraries are stand-ins, so that nothing has to be installed; the real ones they stand for are named.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import bare_library
import numpy as np
import pytest
from bare_library import UNKNOWN, Bare, bare, opened
from inputs import NORMS, Norm, make_case, verify

import anynorm as an
from anynorm import _reference, _reference_gradients
from anynorm._core import formula, unknown

X = np.random.default_rng(0).normal(3, 2, size=(4, 6, 5)).astype("float32")
OPEN = np.random.default_rng(1).normal(3, 2, size=(UNKNOWN, 6, 5)).astype("float32")
W = np.linspace(1, 2, 6).astype("float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", NORMS, ids=[norm.name for norm in NORMS])
def test_the_standard_is_enough(norm: Norm, dtype: str) -> None:
    """A library with the standard's functions alone, no device, and no value to look at, is served to the contract."""
    case = make_case(norm, dtype)
    y = case.function()({name: bare(array) for name, array in case.arrays.items()})
    assert type(y) is Bare
    verify(opened(y), case.arrays["x"], case.reference())


OPEN_CALLS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], _reference.Reference]]] = {
    "layer": (lambda x, w: an.layer_norm(x, w, axis=1), lambda x, w: _reference.layer_norm(x, w, axis=1)),
    "rms": (lambda x, _: an.rms_norm(x, x), lambda x, _: _reference.rms_norm(x, x)),
    "group": (lambda x, w: an.group_norm(x, 2, w, w), lambda x, w: _reference.group_norm(x, 2, w, w)),
    "instance": (lambda x, w: an.instance_norm(x, weight=w), lambda x, w: _reference.instance_norm(x, w)),
    "batch-given": (
        lambda x, w: an.batch_norm(x, mean=w, var=w),
        lambda x, w: _reference.batch_norm(x, mean=w, var=w),
    ),
}


@pytest.mark.parametrize("name", list(OPEN_CALLS))
def test_unknown_lengths_along_kept_axes(name: str) -> None:
    """A length that is None, as of ndonnx's arguments, need not be known where nothing is summed over it."""
    call, reference = OPEN_CALLS[name]
    y = call(bare(OPEN), bare(W))
    assert y.shape[0] is None
    verify(opened(y), OPEN, reference(OPEN, W))


def test_gradients_over_unknown_lengths() -> None:
    """Gradients of weight and bias are summed over a batch of unknown length too."""
    dy = np.random.default_rng(2).normal(size=OPEN.shape).astype("float32")
    y, pullback = an.vjp(an.group_norm, bare(OPEN), 2, bare(W), bare(W))
    exact = _reference_gradients.gradients("group_norm", dy, OPEN, 2, weight=W, bias=W)
    for got, expected in zip(pullback(bare(dy)), exact, strict=True):
        assert type(got) is Bare
        assert expected is not None
        assert expected.units(opened(got)) <= 1
    assert y.shape == (None, 6, 5)


def test_unknown_lengths_that_are_needed() -> None:
    """Where a length must be known, the error says which, and no advice of another library stands alone."""
    with pytest.raises(ValueError, match=r"axis 0, which is reduced, is not known: x has shape \(\?, 6, 5\)\. Make it"):
        an.batch_norm(bare(OPEN))
    both = np.ones((UNKNOWN, 6, UNKNOWN), "float32")
    with pytest.raises(ValueError, match=r"^anynorm: bare has no reshape to \(None, 2, 3, None\).* at most one"):
        an.group_norm(bare(both), 2, batch_axis=(0, 2))


def test_arrays_that_nobody_writes_to() -> None:
    """Without item assignment, as in cubed, an out is refused for what it is and not for being read-only."""
    for call in (
        lambda: an.layer_norm(bare(X), out=bare(X)),
        lambda: an.vjp(an.layer_norm, bare(X))[1](bare(X), out=bare(X)),
    ):
        with pytest.raises(TypeError, match=r"bare arrays cannot be written to, so out must be None"):
            call()


def test_state_without_a_way_to_numpy() -> None:
    """An array of which NumPy makes an object has no place in a file, and the error says so."""
    with pytest.raises(
        TypeError,
        match=r"^save_state: weight, .* cannot be read: arrays of bare cannot become NumPy's: NumPy makes objects",
    ):
        an.save_state({"weight": bare(W)}, "never-written")


def another(changes: dict[str, Any], **attributes: Any) -> Any:
    """Return X as an array of another library, whose namespace or arrays differ from the bare one's."""
    spoilt = vars(bare_library.xp) | {"__name__": "another"} | changes
    namespace = SimpleNamespace(**{name: value for name, value in spoilt.items() if value is not None})

    def own(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            found = function(*arguments, **options)
            return cls(opened(found)) if type(found) is Bare else found

        return wrapped

    def space(self: Any, api_version: Any = None) -> Any:  # noqa: ARG001
        return namespace

    arithmetic = [name for name in vars(Bare) if callable(getattr(Bare, name)) and name not in vars(object)]
    methods = {name: own(getattr(Bare, name)) for name in arithmetic if name != "__init__"}
    cls: Any = type("Another", (Bare,), methods | attributes | {"__array_namespace__": space})
    for name, var in vars(namespace).items():
        if callable(var):
            setattr(namespace, name, own(var))
    return cls(X)


def test_another_library_is_served() -> None:
    """The stand-in that the next tests spoil is served as it is."""
    y = an.layer_norm(another({}))
    verify(opened(y), X, _reference.layer_norm(X))


UNSUITED: dict[str, tuple[dict[str, Any], str]] = {
    "masked": ({"mask": False}, r"is masked, and a norm cannot leave elements out\. Fill it with NaN"),
    "sparse": ({"nnz": 7, "todense": None}, r"missing zeros a norm would fill\. Convert it first, with \.todense\(\)"),
    "unit": ({"unit": "m", "value": X}, r"has a unit, and eps has none\. Pass its numbers, with \.value"),
}


@pytest.mark.parametrize("name", list(UNSUITED))
def test_arrays_that_mean_more_than_numbers(name: str) -> None:
    """Masks, missing zeros and units, as marray, sparse and unyt have them, are refused: a norm would drop them."""
    attributes, said = UNSUITED[name]
    if name != "masked":
        said = said.replace("is masked", "")
    with pytest.raises(TypeError, match=rf"^batch_norm: x is tests?[\w.]*Another, .*{said}"):
        an.batch_norm(another({}, **attributes))


def _numpy_max(x: Any, **options: Any) -> Any:
    return opened(bare_library.xp.max(x, **options))


def _raises(*_: Any, **__: Any) -> Any:
    msg = "where"
    raise KeyError(msg)


@pytest.mark.parametrize(
    "changes",
    [{"max": _numpy_max}, {"where": _raises}, {"ones": None}],
    ids=["reduces-to-numpy", "raises", "lacks"],
)
@pytest.mark.parametrize("call", [an.layer_norm, an.moments, lambda x: an.batch_norm(x, mean=x, var=x)])
def test_libraries_against_the_standard(changes: dict[str, Any], call: Callable[[Any], Any]) -> None:
    """One that reduces to arrays of another library, as blosc2 does, is refused before it gives a wrong number."""
    with pytest.raises(TypeError, match=r"x is .*Another, whose library does not follow the array API standard: .*"):
        call(another(changes))


def test_a_function_that_is_missing() -> None:
    """What fails on the way names the library, keeps the library's own error, and no internal error gets out."""
    with pytest.raises(TypeError, match=r"^anynorm: another does not follow the array API standard.*sqrt") as caught:
        an.layer_norm(another({"sqrt": None}))
    assert caught.value.__cause__ is not None
    out_of_memory = MemoryError("the library's own")

    def full(*_: Any, **__: Any) -> Any:
        raise out_of_memory

    with pytest.raises(MemoryError, match="the library's own"):
        an.layer_norm(another({"sqrt": full}))


def _misspelt(*_: Any, **__: Any) -> Any:
    return None.shape  # type: ignore[attr-defined]


def _looked_up_in_vain(*_: Any, **__: Any) -> Any:
    nothing: dict[str, Any] = {}
    return nothing["scale"]


def _refusing(*_: Any, **__: Any) -> Any:
    msg = "layer_norm: eps must be a real number."
    raise TypeError(msg)


@pytest.mark.parametrize(
    ("fault", "error"),
    [(_misspelt, AttributeError), (_looked_up_in_vain, KeyError), (_refusing, TypeError)],
)
def test_own_errors_blame_nobody(fault: Any, error: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in anynorm's own lines, and what it refuses, is said as it is, not of a library."""
    ours = FunctionType(fault.__code__, vars(formula))
    monkeypatch.setattr(formula, "normalize", ours)
    with pytest.raises(error) as caught:
        an.layer_norm(another({}))
    assert type(caught.value) is error
    assert "standard" not in str(caught.value)


def _lacks_operator(self: Any, other: Any) -> Any:  # noqa: ARG001
    return NotImplemented


def test_what_python_says_of_a_library_in_our_line() -> None:
    """An operand or a keyword that a library does not take raises in anynorm's line, and is the library's fault."""
    for spoilt in (another({}, __sub__=_lacks_operator), another({"full_like": lambda: None})):
        with pytest.raises(TypeError, match=r"^anynorm: another does not follow the array API standard"):
            an.layer_norm(spoilt)


def test_results_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a function gives the library's own arrays is asked once for each type; of another function, anew."""
    asked = []
    original = unknown._check_own

    def check(array: Any, name: str) -> None:
        asked.append(name)
        original(array, name)

    monkeypatch.setattr(unknown, "_check_own", check)
    x = another({})
    an.layer_norm(x)
    first = len(asked)
    an.layer_norm(x)
    an.batch_norm(x)
    assert len(asked) == first > 0
    an.moments(x)
    assert len(asked) > first


class WithUnit:
    """What pint's quantities have."""

    magnitude = X


WithUnit.__module__ = "pint.testing"


class NoArray:
    """What jax.experimental's sparse arrays have."""

    def todense(self) -> Any:
        """Return all elements."""
        return X


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (WithUnit(), r"Pass its numbers, {}\.magnitude"),
        (NoArray(), r"missing elements are meant as zeros.*pass {}\.todense\(\)"),
    ],
)
def test_what_wraps_an_array(value: Any, said: str) -> None:
    """Of a wrapper numpy.asarray would drop the unit or make an object; the advice is another."""
    calls: dict[str, Callable[[], Any]] = {"x": lambda: an.layer_norm(value), "weight": lambda: an.layer_norm(X, value)}
    for argument, call in calls.items():
        with pytest.raises(TypeError, match=rf"^layer_norm: {argument} must be an array .*{said.format(argument)}"):
            call()
