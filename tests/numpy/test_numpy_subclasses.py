"""Subclasses of NumPy's arrays, as any argument: the same type, the same numbers or the same refusal on every path.

The paths are the CPU engine, NumPy alone, and the formula with fast paths turned off. What they make of plain arrays is
the matrix's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libraries import NumPyArray, without_engine

import anynorm as an

X = np.random.default_rng(0).normal(3, 2, size=(4, 6, 5)).astype("float32")
DY = np.random.default_rng(1).normal(size=X.shape).astype("float32")
W = np.linspace(1, 2, 6).astype("float32")

PATHS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "engine": lambda: an.fast_paths(True),
    "numpy": without_engine,
    "formula": lambda: an.fast_paths(False),
}


class Labelled(np.ndarray):
    """A subclass that carries something along."""

    label = ""

    def __array_finalize__(self, other: Any) -> None:
        self.label = getattr(other, "label", "")


class Thousandfold(np.ndarray):
    """A subclass with an arithmetic of its own: what it is multiplied by comes out a thousand times as large."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        """Compute as plain arrays do, but for a product."""
        plain = [np.asarray(array) for array in inputs]
        result = getattr(ufunc, method)(*plain, **options, **({} if out is None else {"out": out}))
        if ufunc is np.multiply and out is None:
            result = result * 1000
        return result if out is not None or not isinstance(result, np.ndarray) else result.view(Thousandfold)


class Aloof(np.ndarray):
    """A subclass that NumPy does not compute with."""

    __array_ufunc__ = None  # type: ignore[assignment]


class Metres(np.ndarray):
    """A subclass with a unit, like those of astropy and unyt, which an engine would drop."""

    units = "m"


class Masked(np.ndarray):
    """A masked array that is not NumPy's, like astropy's."""

    mask = False


# Calls in which `its`, of shape (6,) or as x, is the subclass in question.
SMALL: dict[str, Callable[[Any], Any]] = {
    "weight": lambda array: an.batch_norm(X, weight=array),
    "bias": lambda array: an.batch_norm(X, bias=array),
    "mean": lambda array: an.batch_norm(X, mean=array, var=W),
    "var": lambda array: an.batch_norm(X, mean=W, var=array),
    "running_mean": lambda array: an.update_running(array, W, an.moments(X, axis=(0, 2)))[0],
    "dweight": lambda array: an.vjp(an.batch_norm, X, weight=array)[1](DY).weight,
    "dbias": lambda array: an.vjp(an.batch_norm, X, bias=array)[1](DY).bias,
}
LARGE: dict[str, Callable[[Any], Any]] = {
    "x": an.batch_norm,
    "x-transposed": lambda array: an.layer_norm(array.transpose(2, 0, 1), W, axis=2),
    "x-affine": lambda array: an.batch_norm(array, weight=W, bias=W),
    "moments": lambda array: an.moments(array, axis=(0, 2)).m2,
    "dy": lambda array: an.vjp(an.batch_norm, DY)[1](array).x,
    "dy-weight": lambda array: an.vjp(an.batch_norm, DY, weight=W)[1](array).weight,
    "dy-of-x": lambda array: an.vjp(an.batch_norm, array)[1](DY).x,
    "out": lambda array: an.batch_norm(X, out=array.copy()),
    "dx-out": lambda array: an.vjp(an.batch_norm, X)[1](DY, out=array.copy()).x,
}
CALLS = [pytest.param(call, W, id=name) for name, call in SMALL.items()]
CALLS += [pytest.param(call, X, id=name) for name, call in LARGE.items()]


@pytest.mark.parametrize("path", ["engine", "numpy"])
@pytest.mark.parametrize("cls", [Labelled, Thousandfold])
@pytest.mark.parametrize(("call", "values"), CALLS)
def test_every_path_respects_a_subclass(call: Callable[[Any], Any], values: NumPyArray, cls: type, path: str) -> None:
    """A subclass in any place gives type, layout and numbers that the formula gives, whichever path serves the rest."""
    array: Any = values.view(cls)
    with PATHS["formula"]():
        expected = call(array)
    with PATHS[path]():
        y = call(array)
    assert type(y) is type(expected)
    assert y.strides == expected.strides
    plain = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(y), plain, rtol=1e-5, atol=1e-5 * float(np.abs(plain).max()))


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("argument", ["x", "weight"])
def test_what_a_subclass_carries(argument: str, path: str) -> None:
    """A label stays on y whatever the layout, also where it is a weight's and y is laid out anew like a plain x."""
    for x in (X, X.T, X[:, ::2]):
        arguments: dict[str, Any] = {"x": x, "weight": np.ones(x.shape[-1])}
        arguments[argument] = arguments[argument].view(Labelled)
        arguments[argument].label = "kept"
        with PATHS[path]():
            y: Any = an.layer_norm(arguments["x"], arguments["weight"], np.ones(x.shape[-1]))
        assert (type(y), y.label) == (Labelled, "kept")
        assert y.strides == np.empty_like(x).strides
        np.testing.assert_allclose(y, an.layer_norm(x) + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Aloof, r"takes no part in NumPy's arithmetic.*numpy\.asarray"),
        (Metres, r"has a unit, and eps has none.*numpy\.asarray"),
        (Masked, r"is masked.*Fill it with NaN"),
    ],
)
def test_every_path_refuses_alike(name: str, cls: type, said: str, path: str) -> None:
    """What a norm cannot respect is refused in any place and on every path, in anynorm's words."""
    call, values = (SMALL[name], W) if name in SMALL else (LARGE[name], X)
    if name.endswith("out"):  # with what it holds nothing need be done
        said = r"is more than numbers\. Allocate it with xp\.empty_like\(x\)"
    with PATHS[path](), pytest.raises(TypeError, match=rf"^[\w ]+: \w+ is .*{cls.__name__}, which {said}"):
        call(values.view(cls))


class Quantity(np.ndarray):
    """A subclass whose arrays may have a unit, or None."""

    unit: Any = None


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
@pytest.mark.parametrize(("attribute", "said"), [("mask", "is masked"), ("unit", "has a unit")])
def test_each_array_is_asked(name: str, attribute: str, said: str, path: str) -> None:
    """What an array of a type was given itself counts, whatever others of the type were served before it."""
    call, values = (SMALL[name], W) if name in SMALL else (LARGE[name], X)

    class Marked(Quantity):
        def __array_finalize__(self, other: Any) -> None:
            vars(self).update({} if other is None else vars(other) if type(other) is Marked else {})

    array: Any = values.view(Marked)
    said = "is more than numbers" if name.endswith("out") else said
    with PATHS[path]():
        call(array)
        setattr(array, attribute, np.zeros(values.shape, bool))
        with pytest.raises(TypeError, match=said):
            call(array)
        delattr(array, attribute)
        call(array)


@pytest.mark.parametrize("attribute", ["mask", "nnz", "unit", "units"])
def test_none_says_nothing(attribute: str) -> None:
    """A unit or mask of None is none."""
    cls: Any = type("Unmarked", (np.ndarray,), {attribute: None})
    np.testing.assert_allclose(an.layer_norm(X.view(cls)), an.layer_norm(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"unit": "m"}, r"numbers, with numpy\.asarray;"),
        ({"unit": "m", "value": X}, r"numbers, with \.value;"),
        ({"unit": "m", "magnitude": X}, r"numbers, with \.magnitude;"),
        ({"nnz": 3}, r"first, by its library's own function\."),
        ({"nnz": 3, "todense": lambda self: self}, r"first, with \.todense\(\)\."),
    ],
)
def test_advice_names_what_there_is(attributes: dict[str, Any], said: str) -> None:
    """No attribute is advised that the array does not have."""
    cls: Any = type("Marked", (np.ndarray,), attributes)
    with pytest.raises(TypeError, match=said):
        an.layer_norm(X.view(cls))


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize(("call", "values"), CALLS)
def test_memory_maps_are_plain(call: Callable[[Any], Any], values: NumPyArray, path: str, tmp_path: Path) -> None:
    """A memory map in any place gives plain arrays, and the numbers of the array it maps; as `out` it stays a map."""
    mapped: Any = np.memmap(tmp_path / "its", values.dtype, "w+", shape=values.shape)
    mapped[:] = values
    with PATHS[path]():
        y, plain = call(mapped), call(values)
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, plain)
