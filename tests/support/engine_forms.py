"""How sets can lie for the CPU engine: as runs, in lines, side by side; each as a norm on an x of any lengths.

Which kernel must serve a form is said here too. No test in here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from inputs import Case, Norm
from libraries import NumPyArray, numpy_dtype

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """A norm, and how its sets lie in x."""

    name: str
    function: str
    shape: Callable[[int, int], Shape]  # of x, from how many sets there are and the length of a run
    options: dict[str, Any]
    parameter: Callable[[Shape], Shape]  # the shape of weight and bias, from x's
    rows: Callable[[int], bool] = lambda _: True  # whether the row kernel serves a length, or that of columns
    pairs: bool = False  # the number of sets is even, and a group norm's groups are half as many
    runs: int = 1  # to a set

    def case(
        self, dtype: str, sets: int, length: int, parameters: tuple[str, ...] = ("weight", "bias"), **options: Any
    ) -> Case:
        """Return the form on ordinary numbers; each set has a mean and a spread of its own."""
        sets += sets % 2 if self.pairs else 0
        random = np.random.default_rng(zlib.crc32(f"{self.name} {dtype} {sets} {length}".encode()))
        rows = random.normal(size=(sets, self.runs * length)) * random.uniform(0.5, 2, (sets, 1))
        rows += 10 * random.normal(size=(sets, 1))
        case = self.of(rows.astype(numpy_dtype(dtype)), **options)
        shape = self.parameter(case.arrays["x"].shape)
        drawn = {name: random.normal(size=shape).astype(numpy_dtype(dtype)) for name in parameters}
        return Case(case.norm, case.arrays | drawn)

    def of(self, rows: NumPyArray, **options: Any) -> Case:
        """Return the norm without parameters on an x whose sets are these rows."""
        sets, length = rows.shape
        groups = (sets // 2,) if self.function == "group_norm" else ()
        sets_first, back = self._sets_first(self.shape(sets, length // self.runs))
        x = np.ascontiguousarray(rows.reshape(sets_first).transpose(back))
        return Case(Norm(self.name, self.function, self.options | options, {}, groups), {"x": x})

    def restored(self, x: NumPyArray, sets: int) -> NumPyArray:
        """Return the sets of an x as rows."""
        _, back = self._sets_first(x.shape)
        return x.transpose(np.argsort(back)).reshape(sets, -1)

    def _sets_first(self, shape: Shape) -> tuple[Shape, Shape]:
        """Return x's lengths where its sets come first, and the order of axes that brings them back."""
        order = _ORDERS.get(self.name, tuple(range(len(shape))))
        return tuple([shape[axis] for axis in order]), tuple(np.argsort(order).tolist())


# x's axes, those of sets first, where they do not come first anyhow.
_ORDERS = {
    "batch": (1, 0, 2),
    "batch-last": (1, 0),
    "columns": (1, 0),
    "rms-columns": (1, 0),
    "instance-last": (0, 2, 1),
    "group-last": (0, 2, 1),
}


def _never(_: int) -> bool:
    return False


def _second(shape: Shape) -> Shape:
    return shape[1:2]


def _last(shape: Shape) -> Shape:
    return shape[-1:]


_LAST = {"channel_axis": -1}

_FORMS = (
    Form("rows", "layer_norm", lambda n, m: (n, m), {}, _last),
    Form("rms", "rms_norm", lambda n, m: (n, m), {}, _last),
    # The weight varies from sample to sample, not within one: each run has one.
    Form("runs", "layer_norm", lambda n, m: (n, m), {}, lambda shape: (shape[0], 1)),
    Form("instance", "instance_norm", lambda n, m: (2, n // 2, m), {}, _second, pairs=True),
    # Two channels to a group, so two lines to a set.
    Form("group", "group_norm", lambda n, m: (2, n, m), {}, _second, pairs=True, runs=2),
    # Two samples, so a line of two runs to a set.
    Form("batch", "batch_norm", lambda n, m: (2, n, m), {}, _second, lambda m: m >= 8, runs=2),
    Form("batch-last", "batch_norm", lambda n, m: (m, n), _LAST, _last, _never),
    # The weight varies from row to row of the table.
    Form("columns", "layer_norm", lambda n, m: (m, n), {"axis": 0}, lambda shape: shape[:1], _never),
    Form("rms-columns", "rms_norm", lambda n, m: (m, n), {"axis": 0}, lambda shape: shape[:1], _never),
    Form("instance-last", "instance_norm", lambda n, m: (2, m, n // 2), _LAST, _last, _never, pairs=True),
    # Two channels to a group, side by side.
    Form("group-last", "group_norm", lambda n, m: (2, m, n), _LAST, _last, _never, pairs=True, runs=2),
)

FORMS = {form.name: form for form in _FORMS}
