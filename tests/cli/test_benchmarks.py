"""`python -m benchmarks numpy` and `cpu`: that they run, what their numbers are made of, and the published ones.

How fast anything is is not tested.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import bounds, cpu, limit, machine, report, rows, timing
from benchmarks.cpu import Item, measure, plan
from benchmarks.peers import FIVE_LINES, OTHERS, PEERS, Peer
from benchmarks.problems import NAMED, Data, Problem
from benchmarks.summary import ARRAYS, summarize
from benchmarks.ways import Run, disagreement

ROOT = Path(__file__).parents[2]
SMALL = Problem("layer_norm", (6, 40))
PROBLEMS = (
    SMALL,
    Problem("rms_norm", (6, 40)),
    *[
        Problem(norm, (3, 8, 5, 4), groups, channels_last)
        for norm, groups in (("batch_norm", 1), ("group_norm", 2), ("instance_norm", 1))
        for channels_last in (False, True)
    ],
)
INFERRING = replace(PROBLEMS[3], given=True)
DIRECTIONS = ("forward", "both")


def _cannot(peer: str, problem: Problem, direction: str) -> bool:
    """Return whether a peer is known not to do this."""
    match peer:
        case "onnxruntime":
            return direction == "both" or problem.channels_last
        case "Keras on NumPy":
            return direction == "both"
        case "thinc":
            return problem.norm != "layer_norm"
        case _:
            return False


def test_all_compute_the_norm() -> None:
    """Each peer that can computes what anynorm does, on every norm and layout, and is timed; results are complete."""
    here = [FIVE_LINES.name, *[peer.name for peer in OTHERS if peer.missing() is None]]
    ways = list(product(PROBLEMS, DIRECTIONS))
    items = [Item(problem, arrays, way, "torch") for problem, way in ways for arrays in ARRAYS]
    items += [Item(problem, "numpy", way, peer) for (problem, way), peer in product(ways[:4] + ways[6:8], here)]
    items += [Item(INFERRING, arrays, "forward", "torch") for arrays in ARRAYS]
    items += [Item(replace(SMALL, dtype="bfloat16"), "torch", "both", "torch")]
    items += [Item(SMALL, arrays, way, bounds.BOUND) for arrays in ARRAYS for way in DIRECTIONS]
    items += [Item(SMALL, "numpy", way, limit.COPY) for way in (limit.OUT, limit.BACKWARD, limit.FRESH)]
    result = measure(items, seconds=1e-4, step=lambda _: None)
    cannot = [item.row() for item in items if _cannot(item.peer, item.problem, item.direction)]
    assert [row | {"reason": ""} for row in result["left_out"]] == [row | {"reason": ""} for row in cannot]
    assert len(result["pairs"]) == len(items) - len(cannot)
    for row in result["pairs"]:
        assert row["ours"] > 0
        assert row["spread"][0] <= row["ratio"] <= row["spread"][1]
        assert ("path" in row) == (row["peer"] not in (limit.COPY, bounds.BOUND))
    assert {"processor", "cores", "python", "packages"} <= set(result["machine"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda y, dx: (y, dx * 1.01), "dx differs", id="scaled"),
        pytest.param(lambda y, dx: (np.full_like(y, np.nan), dx), "y differs", id="nan"),
        pytest.param(lambda y, dx: (y.T, dx), "shape", id="shape"),
        pytest.param(lambda y, _dx: (y,), "1 results", id="missing"),
    ],
)
def test_disagreement_is_seen(spoil: Callable[..., tuple[Any, ...]], words: str) -> None:
    """Results that are off by more than rounding, NaN, of another shape or missing are told."""
    mine = tuple(np.random.default_rng(0).standard_normal((2, 3, 4), dtype=np.float32))
    assert disagreement(SMALL, mine, mine) is None
    assert words in str(disagreement(SMALL, mine, spoil(*mine)))


def _double(problem: Problem, data: Data, direction: str) -> Run:
    run = PEERS["torch"].prepare(problem, data, direction)
    return Run(run.call, lambda result: tuple([2 * array for array in run.read(result)]))


def _raising(_problem: Problem, _data: Data, _direction: str) -> Run:
    msg = "out of order\nand more"
    raise RuntimeError(msg)


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        pytest.param(Peer("it", "anynorm-nobody", _double), "anynorm-nobody is not installed", id="missing"),
        pytest.param(Peer("it", "torch", _raising), "it raises RuntimeError: out of order", id="raising"),
        pytest.param(Peer("it", "torch", _double), "it computes something else: y differs by ", id="wrong"),
    ],
)
def test_what_is_not_timed_is_reported(
    peer: Peer, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer that is missing, raises or computes something else is not timed, which the results say."""
    monkeypatch.setitem(PEERS, "it", peer)
    items = [Item(SMALL, "numpy", "forward", name) for name in ("it", "torch")]
    result = measure(items, seconds=0.001, step=lambda _: None)
    assert [row["peer"] for row in result["pairs"]] == ["torch"]
    assert [row["peer"] for row in result["left_out"]] == ["it"]
    assert result["left_out"][0]["reason"].startswith(reason)
    report.report(result)
    printed = capsys.readouterr().out
    assert reason in printed
    assert "layer norm forward (1)" in printed


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_tensors_and_arrays_are_the_same_memory(problem: Problem) -> None:
    """The tensors that torch is timed on are the NumPy arrays, seen with the channels second; channels_last as said."""
    data = Data(problem)
    assert tuple(data.torch.x.shape) == problem.shape
    assert data.numpy.x.shape == problem.stored
    assert data.torch.x.data_ptr() == data.numpy.x.__array_interface__["data"][0]
    assert data.numpy.x.flags.c_contiguous
    if problem.channels_last:
        assert data.torch.x.is_contiguous(memory_format=torch.channels_last)
        assert data.torch.dy.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("arrays", ARRAYS)
@pytest.mark.parametrize("problem", [SMALL, Problem("batch_norm", (40, 64, 7, 7), channels_last=True)], ids=str)
def test_copies_move_the_same_bytes(problem: Problem, arrays: str) -> None:
    """What bounds a call makes results of the same shapes, y of x's bytes and dx of all of x's and dy's."""
    data = Data(problem)
    x, dy, *_ = data.numpy if arrays == "numpy" else data.torch
    y = bounds.copying(data, "forward", arrays)()
    both: Any = bounds.copying(data, "both", arrays)()
    for tensor, expected in zip((y, *both[:2]), (x, x, x + dy), strict=True):
        assert tensor is not x
        np.testing.assert_array_equal(
            np.asarray(tensor.detach() if arrays == "torch" else tensor), np.asarray(expected)
        )


@pytest.mark.parametrize("way", [limit._by_torch, limit._by_numpy])
def test_limit_is_a_copy(way: Callable[[Any, Any], None]) -> None:
    """The limit is a copy of all of x; a backward pass is allowed half as much again, for it moves three arrays."""
    x = Data(SMALL).numpy.x
    target = np.zeros_like(x)
    way(x, target)
    np.testing.assert_array_equal(target, x)
    factors = {found.direction: found.factor for found in limit.limits(SMALL, Data(SMALL))}
    assert factors == {limit.OUT: 1, limit.BACKWARD: 1.5, limit.FRESH: 1.5}


def test_calls_alternate() -> None:
    """Rounds go A B, B A, so that neither call always comes after the other."""
    seen: list[str] = []
    pair = timing.interleaved(lambda: seen.append("a"), lambda: seen.append("b"), rounds=4, at_least=0)
    assert "".join(seen[-8:]) == "abbaabba"
    assert pair.rounds == 4


def test_ratio_is_the_others_time_over_ours() -> None:
    """A ratio above 1 means that the first call is the faster one."""
    pair = timing.within(lambda: time.sleep(0.001), lambda: time.sleep(0.01), seconds=0.05)
    assert pair.ours < pair.other
    assert 1 < pair.spread[0] <= pair.ratio <= pair.spread[1]
    assert pair.scaled(1.5).ratio == 1.5 * pair.ratio


def test_load_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others used is what kept the cores busy beside this process; above a tenth of a core it disturbs."""
    told = iter([(10.0, 3.0, 1.0), (12.0, 6.0, 1.5)])
    monkeypatch.setattr(machine, "_used", lambda: next(told))
    assert machine.Load().others() == pytest.approx((3.0 - 0.5) / 2.0)
    assert [machine.disturbed(others) for others in (None, 0.05, 0.2)] == [False, False, True]


def _rows(ratio: float) -> list[dict[str, Any]]:
    return [item.row() | {"ratio": ratio, "others": 0.0} for item in plan()]


def test_full_run_has_every_number() -> None:
    """A full run times all that each number to reach is made of, every peer and dtype, and no pair twice."""
    items = plan()
    assert len({tuple(item.row().values()) for item in items}) == len(items)
    assert {item.peer for item in items} == {*PEERS, limit.COPY, bounds.BOUND}
    against_torch = {(item.problem.dtype, item.arrays) for item in items if item.peer == "torch"}
    assert against_torch == {*product(("float32", "float64"), ARRAYS), ("float16", "torch"), ("bfloat16", "torch")}
    for row in summarize(_rows(100.0)):
        assert row["pairs"] == row["of"] > 0
        assert row["figure"] == pytest.approx(100.0)
        assert row["reached"] is True
    assert not any(row["reached"] for row in summarize(_rows(0.1)))


def test_numbers_are_not_claimed_from_a_part() -> None:
    """A mean over fewer pairs than there should be is not said to be reached; a slow pair alone decides the worst."""
    found = [row for row in _rows(100.0) if row["problem"] != str(NAMED[1])]
    by_name = {row["what"]: row for row in summarize(found)}
    mean, worst = by_name["mean, NumPy arrays, forward"], by_name["worst pair from 64 Ki elements up"]
    assert (mean["reached"], mean["pairs"], mean["of"]) == (None, 13, 14)
    assert worst["reached"] is None
    slow = next(row for row in found if row["problem"] == str(NAMED[2]))
    slow["ratio"] = 0.5
    worst = next(row for row in summarize(found) if row["what"] == worst["what"])
    assert worst["reached"] is False
    assert worst["figure"] == 0.5
    assert worst["worst"] == f"{NAMED[2]} float32, NumPy arrays, forward"
    assert all(row["figure"] is None and row["reached"] is None for row in summarize([]))


def test_number_at_the_bound() -> None:
    """Beside a number stands what it would be if anynorm took as long as the copies; nothing where one is missing."""
    found = _rows(3.0)
    for row in found:
        if row["peer"] == bounds.BOUND:
            row["ratio"] = 0.5
    by_name = {row["what"]: row for row in summarize(found)}
    assert by_name["mean, NumPy arrays, forward"]["bound"] == pytest.approx(6.0)
    assert by_name["mean, float16 torch tensors, forward + backward"]["bound"] == pytest.approx(6.0)
    assert by_name["copy of the same bytes, forward with out=, worst"]["bound"] is None
    first = (str(NAMED[0]), "float32", "numpy", "forward", bounds.BOUND)
    fewer = [row for row in found if tuple([row[name] for name in rows.KEY]) != first]
    by_name = {row["what"]: row for row in summarize(fewer)}
    assert by_name["mean, NumPy arrays, forward"]["bound"] is None
    assert by_name["mean, torch tensors, forward"]["bound"] == pytest.approx(6.0)


def test_disturbed_pairs_are_counted() -> None:
    """A number says how many of its pairs others disturbed, for a call in two threads may wait for them for long."""
    found = _rows(3.0)
    assert {row["disturbed"] for row in summarize(found)} == {0}
    found[0]["others"] = 1.0
    assert (found[0]["problem"], found[0]["arrays"], found[0]["direction"]) == (str(NAMED[0]), "numpy", "forward")
    counts = {row["what"]: row["disturbed"] for row in summarize(found)}
    assert counts["mean, NumPy arrays, forward"] == counts["layer norm (8, 64), NumPy array, forward"] == 1
    assert counts["mean, torch tensors, forward"] == 0


def test_rows_are_sorted_lines(tmp_path: Path) -> None:
    """A file has one line per row, in an order that does not depend on the run's, and gives back what was written."""
    pairs: list[dict[str, Any]] = [
        item.row() | {"ours": 1.23456e-05, "spread": (0.98765, 2.0), "rounds": 12345} for item in plan(few=True)
    ]
    about = {"machine": {"python": "3.11.7", "clock": 1234.5, "packages": {"torch": None}}, "seconds": 388}
    result = about | {"summary": [{"what": "b"}, {"what": "a"}], "calls": {"x": 5.1579}, "pairs": pairs, "left_out": []}
    rows.write(tmp_path / "one", result)
    rows.write(tmp_path / "other", result | {"pairs": pairs[::-1]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert len((tmp_path / "one").read_text().splitlines()) == 3 + 1 + 2 + 1 + len(pairs)
    found = rows.read(tmp_path / "one")
    assert found | {"pairs": 0} == result | {"calls": {"x": 5.16}, "pairs": 0}
    assert len(found["pairs"]) == len(pairs)
    for row in pairs:
        assert row | {"ours": 1.23e-05, "spread": [0.988, 2.0]} in found["pairs"]
    (tmp_path / "one").write_text('{"pairs": {}}\n[1, 2]\n')
    with pytest.raises(ValueError, match="line 2 is not an object"):
        rows.read(tmp_path / "one")


def test_published_numbers_follow_from_their_rows() -> None:
    """The summary of the published results is that of its rows, and the tables of docs/cpu.md and README show them."""
    result = rows.read(ROOT / "benchmarks" / "results" / "cpu.jsonl")
    for stored, computed in zip(result["summary"], summarize(result["pairs"]), strict=True):
        for name in ("figure", "bound"):
            assert stored[name] == (None if computed[name] is None else pytest.approx(computed[name], rel=6e-3))
        names = ("what", "target", "reached", "pairs", "of", "disturbed")
        assert {name: stored[name] for name in names} == {name: computed[name] for name in names}
    lines = (ROOT / "docs" / "cpu.md").read_text().partition("| ratio |")[2].splitlines()[1:]
    table = [line.split("|")[3] for line in takewhile(lambda line: line[:1] == "|", lines)]
    shown = re.findall(r"(\**)(\d+\.\d+)", " ".join(table[1:]))
    left = list(result["summary"])
    for bold, number in shown:
        same = f"{{figure:.{len(number.partition('.')[2])}f}}"
        fits = [row for row in left if same.format(**row) == number and (row["reached"] is True) == (bold == "**")]
        assert fits, f"docs/cpu.md shows {number}, which is not in the results"
        left.remove(fits[0])
    assert left == []


def _cells_of_readme() -> Iterator[tuple[str, str, str]]:
    """Yield the problem, dtype and number of each cell of README's table of NumPy alone."""
    lines = (ROOT / "README.md").read_text().partition("### Without numba")[2].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    for problem, *numbers in table[2:]:
        yield from [(problem, dtype, number) for dtype, number in zip(table[0][1:], numbers, strict=True)]


def test_published_numbers_of_numpy_alone() -> None:
    """README's table of NumPy alone shows the published results."""
    result = rows.read(ROOT / "benchmarks" / "results" / "numpy.jsonl")
    ratios = {(row["problem"], row["dtype"]): row["ratio"] for row in result["pairs"] if row["direction"] == "forward"}
    cells = {(problem, dtype): float(number) for problem, dtype, number in _cells_of_readme()}
    assert cells.keys() == ratios.keys()
    # Both are rounded, the table to tenths.
    assert {cell: (ratios[cell], shown) for cell, shown in cells.items() if abs(shown - ratios[cell]) > 0.056} == {}


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Return the exit code, be it returned or raised."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    try:
        return command.main()
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `cpu` measure for moments and in one thread, and leave this process its cores and threads."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(machine, "use_cores", lambda: None)
    monkeypatch.setattr(machine, "THREADS", 1)
    monkeypatch.setattr(cpu, "QUICK_SECONDS", 0.001)
    monkeypatch.setattr(bounds, "_ROUNDS", 3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("hasty")
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command measures what it is asked for, prints it, writes it as rows and a picture, and shows them again."""
    only = r"^layer norm \(8, 64\) float32, .*, forward, against (torch|copies)$"
    file, picture = tmp_path / "it.jsonl", tmp_path / "it.png"
    assert _run(monkeypatch, "cpu", "--quick", "--only", only, "--json", str(file), "--picture", str(picture)) == 0
    printed = capsys.readouterr().out
    result = rows.read(file)
    assert {(row["arrays"], row["peer"]) for row in result["pairs"]} == set(product(ARRAYS, ("torch", "copies")))
    microseconds = result["calls"]
    whole = microseconds["anynorm, NumPy arrays"]
    assert microseconds["  - with nothing to do"] < microseconds["- the compiled call"] < whole
    with Image.open(picture) as image:
        assert image.format == "PNG"
    assert _run(monkeypatch, "cpu", "--read", str(file)) == 0
    again = capsys.readouterr().out
    assert "layer norm (8, 64)" in printed
    assert [line.split("  ")[0] for line in again.splitlines()] == [
        line.split("  ")[0] for line in printed.splitlines()
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("cpu", "--only", "(", "--list"), "'(' is no regular expression", id="pattern"),
        pytest.param(("gpu", "--only", "no norm", "--list"), "nothing matches 'no norm'", id="nothing"),
        pytest.param(("cpu", "--json", "no folder/it"), "no folder/it cannot be written", id="json"),
        pytest.param(("gpu", "--read", "no file"), "no file cannot be read", id="read"),
        pytest.param(("prove", "--out", __file__), "cannot be made a folder", id="folder"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong argument is told in a sentence before minutes are spent on measuring."""
    assert _run(monkeypatch, *arguments) == 2
    assert words in capsys.readouterr().err


def test_numpy_alone_has_no_engine(tmp_path: Path) -> None:
    """The benchmark of NumPy alone runs to its end without numba, on the adapter's own NumPy code."""
    file = tmp_path / "it.jsonl"
    code = f"""
import sys, numpy as np, anynorm as an
from benchmarks import __main__ as command, numpy_alone
numpy_alone.KINDS = (numpy_alone._rows(300, 40), numpy_alone._group(2, 64, 3, 3, channel=1))
sys.argv = ["benchmarks", "numpy", "--rounds", "5", "--json", {str(file)!r}]
command.main()
print(an.explain(an.layer_norm, np.ones((300, 400), np.float32)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    assert "anynorm_numba" not in done.stdout
    assert "anynorm_numpy" in done.stdout.splitlines()[-1]
    assert [(row["problem"], row["direction"]) for row in rows.read(file)["pairs"]] == [
        *product(("group norm (2, 64, 3, 3)", "layer norm (300, 40)"), ("both", "forward"))
    ]
