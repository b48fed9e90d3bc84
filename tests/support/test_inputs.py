"""The tests' own tools: what chooses the cases of a subset, and what takes subnormal numbers out of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from inputs import flushed, pairwise

FACTORS: tuple[list[Any], ...] = (["a", "b", "c", "d"], [1, 2, 3], ["x", "y"], [True, False])


def test_pairwise_covers_every_pair() -> None:
    """Each pair of values of two factors occurs, in far fewer rows than the product has, and the same each time."""
    rows = pairwise(*FACTORS)
    numbered: list[tuple[int, list[Any]]] = list(enumerate(FACTORS))
    for (i, one), (j, other) in itertools.combinations(numbered, 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(one, other))
    assert len(rows) <= 16
    assert rows == pairwise(*FACTORS)


def test_pairwise_keeps_to_what_is_allowed() -> None:
    """Rows that are not allowed never occur; pairs that an allowed row can hold still do."""

    def allowed(letter: str, number: int, *_: object) -> bool:
        return not (letter == "a" and number > 1)

    rows = pairwise(*FACTORS, allowed=allowed)
    assert all(allowed(*row) for row in rows)
    assert {row[1] for row in rows if row[0] == "b"} == {1, 2, 3}
    assert {row[2] for row in rows if row[0] == "a"} == {"x", "y"}


def test_flushing_takes_subnormal_numbers_alone() -> None:
    """Subnormal numbers become zeros of their sign, the smallest normal stays; float16 is computed in float32."""
    smallest = 2.0**-126
    array = np.asarray([smallest, -smallest / 2, smallest / 4, 1, np.nan], "float32")
    assert flushed(array)[:4].tolist() == [smallest, 0, 0, 1]
    assert np.signbit(flushed(array)[1])
    assert np.isnan(flushed(array)[4])
    assert flushed(np.asarray([2.0**-24], "float16")).tolist() == [2.0**-24]
