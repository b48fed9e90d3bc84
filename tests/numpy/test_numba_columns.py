"""Tables of more columns than a block of them has: how they are cut, and the same bits however that is."""

from __future__ import annotations

import ctypes
import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
from engine_forms import FORMS
from engine_runs import both_passes, in_threads
from gradients import bits
from inputs import Case
from libraries import ALL_DTYPES

import anynorm as an
from tests.numpy.test_numba_past_caches import past_caches

pytest.importorskip("numba", reason="numba is not installed")

each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)
SIDE_BY_SIDE = [form for form in FORMS.values() if form.name in ("batch-last", "group-last", "columns")]
each_form = pytest.mark.parametrize("form", SIDE_BY_SIDE, ids=[form.name for form in SIDE_BY_SIDE])


def _all_bits(case: Case) -> tuple[list[bytes | None], list[Any]]:
    """Return the bits of y and of all gradients, and the launch configs."""
    y, found, jobs = both_passes(case)
    return [y.tobytes(), *bits(found)], jobs


def _blocks(jobs: list[Any]) -> list[int]:
    return [int(job.geometry["blocks"]) for job in jobs]


@pytest.mark.parametrize("threads", [3, 4])
@each_form
@each_dtype
def test_few_blocks_of_one_chunk(form: Any, dtype: str, threads: int) -> None:
    """Few blocks of no more rows than a chunk are shared out by rows, and every bit is that of one thread."""
    case = form.case(dtype, 500, 331)
    with in_threads(1):
        expected, whole = _all_bits(case)
    with in_threads(threads):
        found, jobs = _all_bits(case)

    assert found == expected
    assert [job.split for job in whole] == [False] * 2
    assert [job.split for job in jobs] == [True] * 2
    assert min(_blocks(jobs)) > 1


def _array_at(address: int, shape: tuple[int, int]) -> Any:
    return np.ctypeslib.as_array((ctypes.c_double * math.prod(shape)).from_address(address)).reshape(shape)


@pytest.mark.parametrize("backward", [False, True], ids=["y", "dx"])
def test_pieces_are_whole_rows(backward: bool) -> None:
    """A piece that is written is rows from the first column to the last, and each row is in one piece."""
    from anynorm_numba import _geometry as at
    from anynorm_numba import _threads

    random = np.random.default_rng(5)
    x, dy = random.normal(size=(2, 331, 600))
    run, pieces = _threads.run, []

    def seen(kernel: int, phase: int, tasks: int, wanted: int, *rest: int) -> None:
        if phase != at.WRITE:
            run(kernel, phase, tasks, wanted, *rest)
            return
        geometry, arrays = rest[0], rest[1:]
        target = _array_at(arrays[2 if backward else 1], x.shape)
        for index in range(tasks):
            target[...] = np.inf
            _threads.serial(kernel, phase, index, index + 1, geometry, *arrays)
            pieces.append(np.isfinite(target))

    with in_threads(2):
        _, pullback = an.vjp(an.batch_norm, x, channel_axis=-1)
        with mock.patch.object(_threads, "run", seen):
            pullback(dy) if backward else an.batch_norm(x, channel_axis=-1)

    assert len(pieces) > 1
    assert all((piece == piece[:, :1]).all() for piece in pieces)
    assert (sum(piece[:, 0].astype(int) for piece in pieces) == 1).all()


@pytest.mark.parametrize("threads", [1, 2])
@each_form
@each_dtype
def test_wide_tables_past_the_caches(form: Any, dtype: str, threads: int) -> None:
    """A table that no cache holds has the same bits as one that some cache does; blocks are wider unless by rows."""
    case = form.case(dtype, 600, 4097)
    found, blocks = [], []
    for limit in (0, 1 << 40):
        with in_threads(threads), past_caches(limit):
            results, jobs = _all_bits(case)
        found.append(results)
        blocks.append(_blocks(jobs))

    assert found[0] == found[1]
    assert (blocks[0] == blocks[1]) == (form.name == "columns")
