"""What the core calls an array: its protocol, the dtypes that are accepted, and the sum that needs nothing but `+`.

Knows no library, no norm and no axis rule.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple, Protocol, TypeVar


class Array(Protocol):
    """What the annotations ask of an array: a shape and a dtype. The rest is the array API standard's."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


A = TypeVar("A", bound=Array)


class Operand(Array, Protocol):
    """An array as the core computes with it: by the standard's operators, with arrays of its library and numbers."""

    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __rtruediv__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __ge__(self, other: Any, /) -> Any: ...
    def __le__(self, other: Any, /) -> Any: ...
    def __eq__(self, other: Any, /) -> Any: ...
    def __neg__(self) -> Any: ...
    def __getitem__(self, index: Any, /) -> Any: ...
    def __setitem__(self, index: Any, value: Any, /) -> None: ...


# The type of a library's arrays.
X = TypeVar("X", bound=Operand)


class Namespace(Protocol):
    """An array API namespace: its functions are looked up by name."""

    def __getattr__(self, name: str, /) -> Any: ...


class Scalar(Protocol):
    """What tells the numbers of NumPy from its arrays, to which it gives a `__float__` as well."""

    def __float__(self) -> float: ...

    def is_integer(self) -> bool: ...


# What callers may pass as a number.
Number = float | Real | Scalar

# A length is None where the library does not know it yet (Dask after a boolean selection).
Shape = tuple[int | None, ...]


class Format(NamedTuple):
    """The IEEE 754 facts of a compute dtype that the formula's constants rest on."""

    name: str
    smallest: float  # smallest normal number
    largest: float  # largest finite number


FLOAT32 = Format("float32", 2.0**-126, (2.0 - 2.0**-23) * 2.0**127)
FLOAT64 = Format("float64", 2.0**-1022, (2.0 - 2.0**-52) * 2.0**1023)

# Accepted dtypes, by name, and what each computes in: result_type(dtype, float32).
COMPUTE = {"float16": FLOAT32, "bfloat16": FLOAT32, "float32": FLOAT32, "float64": FLOAT64}
FLOATING = tuple(COMPUTE)


def dtype_name(dtype: object) -> str:
    """Return a dtype's name, the same in every library."""
    # `name` and not `str`: NumPy prints a big-endian float32 as ">f4" but names it float32.
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


def tree_sum(x: Operand, axes: tuple[int, ...]) -> Any:
    """Sum over `axes`, kept as length 1, by a fixed halving tree.

    NumPy's own sum is naive along any axis but the last: a float32 batch of images comes out 0.3 % wrong.
    The tree's error grows with log2(n), in every direction, on every library.
    """
    for axis in axes:
        before = (slice(None),) * axis
        length = x.shape[axis]
        odd = []
        while length > 1:
            half, left_over = divmod(length, 2)
            if left_over:
                odd.append(x[(*before, slice(length - 1, length), ...)])
            x = x[(*before, slice(0, half), ...)] + x[(*before, slice(half, 2 * half), ...)]
            length = half
        for element in reversed(odd):
            x = x + element
    return x


def class_name(value: object) -> str:
    """Return the full name of a value's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def described(value: object) -> str:
    """Return a value as an error shows it: short, whatever it is."""
    name = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "dtype") and not isinstance(value, Real):  # layers have a shape, too
        return f"array of shape {tuple(shape)}, of type {name}"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} of type {name}"
