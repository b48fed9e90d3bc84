"""`python -m benchmarks gpu`: what is planned, what it counts as, and what the numbers to reach are made of.

Nothing is run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import gpu, gpu_peers
from benchmarks.gpu_peers import NOBODY, PEERS
from benchmarks.gpu_problems import (
    BACKWARD,
    DTYPES,
    FORWARD,
    HOST_BOTH,
    HOST_FORWARD,
    LENGTHS,
    READ,
    ROWS,
    held,
    inputs_for,
    moved,
    resident,
    row_size,
    set_size,
    size,
)
from benchmarks.gpu_summary import summarize
from benchmarks.limit import COPY
from benchmarks.problems import NORMS, Problem

SMALL = Problem("layer_norm", (6, 40))
DIRECTIONS = (FORWARD, BACKWARD)


@pytest.mark.parametrize(
    ("problem", "forward", "backward"),
    [
        pytest.param(Problem("layer_norm", (4, 8), dtype="bfloat16"), 128, 192, id="bfloat16"),
        pytest.param(Problem("rms_norm", (4, 8), dtype="float16"), 128, 192, id="float16"),
        pytest.param(Problem("batch_norm", (2, 3, 4, 5), channels_last=True), 960, 1440, id="float32"),
    ],
)
def test_ideal_bytes(problem: Problem, forward: int, backward: int) -> None:
    """Forward reads x and writes y; backward reads x and dy and writes dx: weights and statistics do not count."""
    assert moved(problem, FORWARD) == forward
    assert moved(problem, BACKWARD) == backward


@pytest.mark.parametrize(
    ("norm", "groups", "elements"),
    [("batch_norm", 1, 2 * 20), ("group_norm", 4, 2 * 20), ("instance_norm", 1, 20)],
)
def test_size_of_a_set(norm: str, groups: int, elements: int) -> None:
    """What shares a statistic decides whether a problem counts as held on the chip."""
    assert set_size(Problem(norm, (2, 8, 4, 5), groups, dtype="float16")) == 2 * elements
    assert row_size(Problem("layer_norm", (6, 40), dtype="float16")) == set_size(SMALL) // 2 == 80
    image = Problem("instance_norm", (64, 8, 512, 512), dtype="float16")
    assert set_size(image) == 2**19
    assert [held(image, direction) for direction in DIRECTIONS] == [True, True]
    assert [held(replace(image, dtype="float32"), direction) for direction in DIRECTIONS] == [True, False]
    assert not held(replace(image, channels_last=True), FORWARD)
    table = Problem("group_norm", (64, 320, 64, 64), 32, channels_last=True)
    assert [held(table, direction) for direction in DIRECTIONS] == [True, True]
    assert [held(replace(table, shape=(64, 320, 64, 65)), direction) for direction in DIRECTIONS] == [False, False]
    assert not held(replace(table, norm="batch_norm"), FORWARD)
    assert [resident(Problem("batch_norm", (32, 16, 160, 160)), way) for way in DIRECTIONS] == [False, False]
    assert [resident(Problem("batch_norm", (16, 16, 160, 160)), way) for way in DIRECTIONS] == [True, False]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_inputs_exceed_the_cache(direction: str) -> None:
    """Inputs take turns over more than twice the second-level cache, and there are two even of large ones."""
    cache = 50 << 20
    for problem in dict.fromkeys([item.problem for item in gpu.plan() if item.direction == direction]):
        count = inputs_for(problem, direction, cache)
        assert count >= 2
        assert count * READ[direction] * size(problem) > 2 * cache
        assert (count - 1) * READ[direction] * size(problem) <= 2 * cache or count == 2


def test_full_run_has_everything() -> None:
    """A full run has all row lengths in all dtypes and directions, all norms, layouts and peers, and no pair twice."""
    items = gpu.plan()
    assert len(items) == len(set(items))
    assert {item.peer for item in items} == {*PEERS, COPY, NOBODY}
    rows = {(item.problem, item.direction) for item in items if item.arrays == "torch" and item.peer == "torch"}
    assert rows >= {(problem, way) for problem in ROWS for way in DIRECTIONS}
    assert len(ROWS) == 2 * len(LENGTHS) * len(DTYPES)
    assert {problem.elements for problem in ROWS} == {2**27}
    kinds = {(item.problem.norm, item.problem.channels_last, item.arrays) for item in items}
    assert len(kinds) == 2 * (2 + 3 * 2)
    assert {item.problem.norm for item in items} == set(NORMS)
    assert {item.direction for item in items} == {*DIRECTIONS, HOST_FORWARD, HOST_BOTH}
    assert all(item.peer in (COPY, NOBODY) or PEERS[item.peer].arrays == item.arrays for item in items)


def test_cells_are_together() -> None:
    """All peers of a problem in one direction follow each other, because they are timed in turn."""
    cells = [(item.problem, item.arrays, item.direction) for item in gpu.plan()]
    changes = [cell for cell, before in zip(cells, [None, *cells], strict=False) if cell != before]
    assert len(changes) == len(set(changes))


def test_plan_is_narrowed() -> None:
    """`--quick` and `--only` time a part of the whole; the pattern is a regular expression."""
    assert set(gpu.plan(few=True)) < set(gpu.plan())
    only = gpu.plan(only=r"^layer norm \(131072, 1024\) bfloat16, cupy arrays, .*against copy$")
    assert [(item.direction, item.problem.shape) for item in only] == [(way, (2**17, 1024)) for way in DIRECTIONS]


def _rows(ratio: float, ours: float) -> list[dict[str, Any]]:
    return [item.row() | {"ratio": ratio, "ours": ours, "path": "a path"} for item in gpu.plan()]


def test_every_number_can_be_decided() -> None:
    """A full run times all that each number to reach is made of; fast is reached and slow is not."""
    for row in summarize(_rows(100.0, 1e-9)):
        assert row["pairs"] == row["of"] > 0
        assert row["reached"] is True
        assert row["worst"]["path"] == "a path"
    assert len(summarize([])) == 13
    assert not any(row["reached"] for row in summarize(_rows(0.1, 1e-3)))
    assert all(row["figure"] is None and row["reached"] is None for row in summarize([]))


def test_numbers_are_those_of_the_table() -> None:
    """The targets are compared with what they are about: percent, ratios, microseconds, each in its unit."""
    by_name = {row["what"]: row for row in summarize(_rows(0.93, 20e-6))}
    verdicts = {what: (row["figure"], row["reached"]) for what, row in by_name.items()}
    assert verdicts["layer and RMS norm, forward, rows of 1 KB to 512 KB"] == (pytest.approx(93), True)
    assert verdicts["against torch's own, mean, forward"] == (pytest.approx(0.93), False)
    assert verdicts[f"{HOST_FORWARD}, CuPy, worst norm"] == (pytest.approx(20), False)
    assert verdicts[f"{HOST_BOTH}, torch, worst norm"] == (pytest.approx(20), True)


def test_numbers_are_not_claimed_from_a_part() -> None:
    """A number over fewer cells than there should be is not said to be reached; a slow cell alone decides the worst."""
    slow = Problem("rms_norm", (2**27 // 8192, 8192), dtype="float16")
    rows = [row for row in _rows(100.0, 1e-9) if row["problem"] != "layer norm (131072, 1024)"]
    names = ("layer and RMS norm, forward, rows of 1 KB to 512 KB", "against torch's own, mean, forward")
    by_name = {row["what"]: row for row in summarize(rows)}
    assert [by_name[name]["reached"] for name in names] == [None, None]
    cell = {"problem": str(slow), "dtype": "float16", "arrays": "torch", "direction": FORWARD, "peer": COPY}
    next(row for row in rows if cell.items() <= row.items())["ratio"] = 0.5
    by_name = {row["what"]: row for row in summarize(rows)}
    assert by_name[names[0]]["reached"] is False
    assert by_name[names[0]]["figure"] == pytest.approx(50)
    assert cell.items() <= by_name[names[0]]["worst"].items()


def test_slow_host_decides() -> None:
    """Of host times the longest counts, and more than the target is a miss even where some are not there."""
    rows = [row for row in _rows(1.0, 1e-9) if row["direction"] == HOST_FORWARD]
    rows[-1]["ours"] = 1.0
    assert (rows[-1]["arrays"], rows[-1]["peer"]) == ("cupy", gpu_peers.PLAIN.name)
    name = f"{HOST_FORWARD}, CuPy, worst norm"
    assert next(row for row in summarize(rows) if row["what"] == name)["reached"] is True
    its = next(row for row in rows if row["arrays"] == "cupy" and row["peer"] == NOBODY)
    its["ours"] = 13e-6
    found = next(row for row in summarize([its]) if row["what"] == name)
    assert (found["reached"], found["pairs"], found["of"]) == (False, 1, 5)
