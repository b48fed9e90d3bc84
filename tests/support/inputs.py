"""The norms under test as data, and the one check that every comparison with the reference goes through.

What makes an input hostile is in hostile.py, how it lies in memory in layouts.py.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from libraries import ArrayLibrary, NumPyArray, numpy_dtype

import anynorm as an
from anynorm import _reference

# (N, C, H, W): no two lengths alike, so that an axis taken for another shows.
SHAPE = (3, 6, 5, 8)

FUNCTIONS = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm")


@dataclass(frozen=True, eq=False)
class Norm:
    """A function with its options, and the shapes of its parameters for an x of SHAPE."""

    name: str
    function: str
    options: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    groups: tuple[int, ...] = ()


NORMS = (
    Norm("layer", "layer_norm", {}, {"weight": (8,), "bias": (8,)}),
    Norm("layer-trailing", "layer_norm", {"axis": (-1, 1, 2)}, {"weight": (6, 5, 8), "bias": (6, 5, 8)}),
    Norm("layer-channels", "layer_norm", {"axis": 1}, {"weight": (6,), "bias": (6,)}),
    # Axes that lie apart are one strided range to no engine.
    Norm("layer-apart", "layer_norm", {"axis": (0, 2)}, {"weight": (3, 5)}),
    Norm("layer-all", "layer_norm", {"axis": None, "eps": 1e-3}),
    Norm("layer-modulated", "layer_norm", {}, {"weight": (3, 1, 1, 8), "bias": (3, 6, 1, 8)}),
    Norm("rms", "rms_norm", {}, {"weight": (8,)}),
    Norm("rms-leading", "rms_norm", {"axis": (0, 1)}, {"weight": (3, 6), "bias": (3, 6)}),
    Norm("rms-heads", "rms_norm", {"eps": 0}, {"weight": (1, 6, 1, 8), "bias": (1, 6, 1, 1)}),
    Norm("group", "group_norm", {}, {"weight": (6,), "bias": (6,)}, (3,)),
    Norm("group-last", "group_norm", {"channel_axis": -1}, {"weight": (8,), "bias": (8,)}, (4,)),
    Norm("group-unbatched", "group_norm", {"batch_axis": None}, {"bias": (6,)}, (2,)),
    Norm("group-two-batches", "group_norm", {"channel_axis": 3, "batch_axis": (2, 0)}, {"weight": (3, 1, 1, 8)}, (2,)),
    Norm("instance", "instance_norm", {}, {"weight": (6,), "bias": (6,)}),
    Norm("instance-last", "instance_norm", {"channel_axis": -1}, {"weight": (8,)}),
    Norm("instance-modulated", "instance_norm", {}, {"weight": (3, 6, 1, 1), "bias": (3, 6, 1, 1)}),
    Norm("batch", "batch_norm", {}, {"weight": (6,), "bias": (6,)}),
    Norm("batch-last", "batch_norm", {"channel_axis": -1}),
    Norm("batch-given", "batch_norm", {}, {"weight": (6,), "bias": (6,), "mean": (6,), "var": (6,)}),
    Norm("batch-given-last", "batch_norm", {"channel_axis": 3}, {"mean": (1, 1, 1, 8), "var": (1, 1, 1, 8)}),
)


@dataclass(frozen=True, eq=False)
class Case:
    """A norm on its arguments, as NumPy arrays."""

    norm: Norm
    arrays: dict[str, NumPyArray]

    def function(self, **extra: Any) -> Callable[[dict[str, Any]], Any]:
        """Return the call as a plain function of its arrays, which any compiler can trace."""
        call, groups, options = getattr(an, self.norm.function), self.norm.groups, self.norm.options | extra

        def function(arrays: dict[str, Any]) -> Any:
            others = {name: array for name, array in arrays.items() if name != "x"}
            return call(arrays["x"], *groups, **others, **options)

        return function

    def run(self, library: ArrayLibrary, **extra: Any) -> Any:
        """Return what the library's own arrays give, as its own array."""
        return self.function(**extra)(library.make_all(self.arrays))

    def reference(self, flushes: bool = False) -> _reference.Reference:
        """Return the exact result, of the inputs as a library sees them that flushes subnormal numbers."""
        if self.arrays["x"].dtype.name == "float64" and not _reference.CHECKS_FLOAT64:
            pytest.skip("longdouble is no wider than double here, so float64 has no reference")
        arrays = {name: flushed(array) for name, array in self.arrays.items()} if flushes else self.arrays
        others = {name: array for name, array in arrays.items() if name != "x"}
        reference = getattr(_reference, self.norm.function)(
            arrays["x"], *self.norm.groups, **others, **self.norm.options
        )
        assert isinstance(reference, _reference.Reference)
        return reference

    def flushes(self, library: ArrayLibrary) -> bool:
        """Say whether the call takes subnormal numbers as 0, as a library's own programs may and the CPU engine not."""
        if not library.flushes:
            return False
        others = library.make_all(self.arrays)
        function, x = getattr(an, self.norm.function), others.pop("x")
        return an.explain(function, x, *self.norm.groups, **others, **self.norm.options).path != "anynorm_numba"

    def frozen(self) -> Case:
        """Return the case with arrays that nobody can write to, for tests that share it."""
        for array in self.arrays.values():
            array.flags.writeable = False
        return self

    def with_x(self, x: NumPyArray) -> Case:
        """Return the same call on another x."""
        return replace(self, arrays=self.arrays | {"x": x})


def make_case(norm: Norm, dtype: str, parameters: str | None = None, seed: int = 0) -> Case:
    """Return a norm on ordinary data: every channel and sample has its own mean and spread, around 10 and 1."""
    random = np.random.default_rng([zlib.crc32(f"{norm.name} {dtype}".encode()), seed])
    spread = random.uniform(0.5, 2, size=(SHAPE[0], SHAPE[1], 1, SHAPE[3]))
    x = spread * random.normal(size=SHAPE) + 10 * random.normal(size=spread.shape)
    arrays = {"x": x.astype(numpy_dtype(dtype))}
    for name, shape in norm.parameters.items():
        drawn = random.uniform(0.5, 100, size=shape) if name == "var" else random.normal(size=shape)
        arrays[name] = drawn.astype(numpy_dtype(parameters or dtype))
    return Case(norm, arrays)


def verify(y: NumPyArray, x: NumPyArray, reference: _reference.Reference) -> None:
    """Raise unless y has x's shape and dtype and lies within the contract's bound of the exact result."""
    if (y.dtype, y.shape) != (x.dtype, x.shape):
        msg = f"y has dtype {y.dtype} and shape {y.shape}, x has {x.dtype} and {x.shape}"
        raise AssertionError(msg)
    units = reference.units(y)
    if not units <= 1:
        msg = f"y is off by {units:.3g} units of the contract's bound"
        raise AssertionError(msg)


@functools.lru_cache(maxsize=1)
def shared_reference(case: Case) -> _reference.Reference:
    """Return the exact result of a frozen case of many elements, computed once for the tests that follow each other.

    For inputs without subnormal numbers, so that it is the same for every library.
    """
    assert not any(array.flags.writeable for array in case.arrays.values())
    return case.reference()


def check(case: Case, library: ArrayLibrary, reference: _reference.Reference | None = None, **extra: Any) -> None:
    """Run a case on a library's own arrays and verify the result, against `reference` where that is known already."""
    x = library.make(case.arrays["x"])
    y = case.function(**extra)(library.make_all(case.arrays) | {"x": x})
    if not isinstance(x, type(y)):  # y of a memory map is a plain array
        msg = f"y is a {type(y)}, x a {type(x)}"
        raise AssertionError(msg)  # noqa: TRY004  the verdict of a test
    verify(library.to_numpy(y), case.arrays["x"], reference or case.reference(case.flushes(library)))


def flushed(array: NumPyArray) -> NumPyArray:
    """Return the array with subnormal numbers replaced by zeros of their sign.

    float16 is left alone: its subnormal numbers are normal ones in float32, in which it is computed.
    """
    if array.dtype.name == "float16":
        return array
    smallest = 2.0**-1022 if array.dtype.name == "float64" else 2.0**-126
    return np.where(np.abs(array) < smallest, np.copysign(np.zeros_like(array), array), array)


def pairwise(*factors: Sequence[Any], allowed: Callable[..., bool] = lambda *_: True) -> list[tuple[Any, ...]]:
    """Return few rows in which every allowed pair of values of two factors occurs.

    Greedy and without chance: the next row is, of all allowed, the first in the product's order that covers most of the
    pairs not covered yet.
    """
    fresh = {row: _pairs(row) for row in itertools.product(*factors) if allowed(*row)}
    rows_with: dict[Any, list[tuple[Any, ...]]] = {}
    for row, pairs in fresh.items():
        for pair in pairs:
            rows_with.setdefault(pair, []).append(row)
    rows, chosen = list(fresh), []
    while rows:
        best = max(rows, key=lambda row: len(fresh[row]))
        chosen.append(best)
        for pair in tuple(fresh[best]):
            for row in rows_with[pair]:
                fresh[row].discard(pair)
        rows = [row for row in rows if fresh[row]]
    return chosen


def _pairs(row: Iterable[Any]) -> set[tuple[tuple[int, Any], ...]]:
    return set(itertools.combinations(enumerate(row), 2))
