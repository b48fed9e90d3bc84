"""A stand-in for array libraries that nobody has tried: the functions of the standard, and nothing beside them.

Its arrays are NumPy's underneath, which nobody outside this file can see. As in a library that builds graphs, a length
may be unknown (every one of `UNKNOWN` elements is), no value can be read, nothing can be written to, and there is no
device.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import array_api_compat.numpy as numpy_namespace
import numpy as np
from libraries import NumPyArray

UNKNOWN = 13

# What a norm asks of a library: for a new function to be asked for, it has to stand here.
FUNCTIONS = (
    *("abs", "sqrt", "isnan", "isfinite", "where", "max", "sum", "squeeze", "reshape"),
    *("full_like", "ones_like", "zeros_like", "empty_like", "ones", "result_type"),
)


class Bare:
    """An array: shape, dtype, arithmetic, comparison and slices, as the standard has them."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

    @property
    def shape(self) -> Any:
        """The lengths, with None for one that is not known."""
        return tuple([None if length == UNKNOWN else length for length in self._values.shape])

    @property
    def dtype(self) -> Any:
        """The dtype."""
        return self._values.dtype

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return self._values.ndim

    def __array_namespace__(self, api_version: Any = None) -> Any:
        return xp

    def __getitem__(self, index: Any) -> Bare:
        for axis, value in enumerate(index):
            if value is Ellipsis:
                break
            if self.shape[axis] is None and value != slice(None):
                msg = "a slice of an unknown length"
                raise IndexError(msg)
        return Bare(self._values[index])

    def __bool__(self) -> bool:
        msg = "the graph is not computed yet"
        raise TypeError(msg)

    __float__ = __int__ = __index__ = __bool__


def _operator(name: str) -> Callable[..., Any]:
    apply = getattr(operator, name.replace("__r", "__") if name in REFLECTED else name)

    def method(self: Bare, *others: Any) -> Any:
        if not all(isinstance(other, Bare | int | float) for other in others):
            return NotImplemented
        values = [opened(other) for other in others]
        return Bare(apply(*values, self._values) if name in REFLECTED else apply(self._values, *values))

    return method


REFLECTED = ("__radd__", "__rmul__", "__rsub__", "__rtruediv__", "__rand__")
for _name in (
    *("__add__", "__mul__", "__sub__", "__truediv__", "__and__", "__neg__"),
    *("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"),
    *REFLECTED,
):
    setattr(Bare, _name, _operator(_name))


def opened(array: Any) -> Any:
    """Return the NumPy array within a bare one; the one way to compute it."""
    return array._values if isinstance(array, Bare) else array


def _function(name: str) -> Callable[..., Any]:
    apply = getattr(numpy_namespace, name)

    def function(*arguments: Any, **options: Any) -> Any:
        for argument in arguments[:1] if name.endswith("_like") or name in ("reshape", "squeeze", "max", "sum") else ():
            assert isinstance(argument, Bare), f"{name} of {type(argument)}"
        assert name != "reshape" or None not in arguments[1], "an unknown length in reshape"
        found = apply(*[opened(argument) for argument in arguments], **options)
        return found if name == "result_type" else Bare(found)

    return function


def _astype(x: Bare, dtype: Any, *, copy: bool = True) -> Bare:
    return Bare(opened(x).astype(dtype, copy=copy))


xp: Any = SimpleNamespace(
    __name__="bare",
    astype=_astype,
    float32=np.dtype("float32"),
    float64=np.dtype("float64"),
    **{_name: _function(_name) for _name in FUNCTIONS},
)


def bare(array: NumPyArray) -> Bare:
    """Return the array as one of this library's."""
    return Bare(array.copy())
