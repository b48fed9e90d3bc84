"""`python -m benchmarks cpu`: that all run the same function, that nothing is dropped silently, what the results hold.

How fast anything is is not tested.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anynorm import _reference
from anynorm._reference_gradients import gradients
from benchmarks import bounds, limit, machine, picture, report, timing
from benchmarks.cpu import Item, measure, plan
from benchmarks.peers import PEERS, Peer, Unsupported
from benchmarks.problems import NAMED, Data, Problem
from benchmarks.summary import ARRAYS, summarize
from benchmarks.ways import Run, disagreement, ours

PROBLEMS = (
    Problem("layer_norm", (6, 40)),
    Problem("rms_norm", (6, 40)),
    Problem("batch_norm", (24, 6)),
    *[
        Problem(norm, (3, 8, 5, 4), groups, channels_last)
        for norm, groups in (("batch_norm", 1), ("group_norm", 2), ("instance_norm", 1))
        for channels_last in (False, True)
    ],
)
SMALL = PROBLEMS[0]
DIRECTIONS = ("forward", "both")


def exact(problem: Problem, data: Data, direction: str) -> tuple[Any, ...]:
    """Return the exact results, from the reference that the library's own tests use."""
    x, dy, weight, bias = data.numpy
    groups = [problem.groups] if problem.norm == "group_norm" else []
    options = {"weight": weight, "bias": bias}
    if problem.norm in ("batch_norm", "group_norm", "instance_norm"):
        options["channel_axis"] = problem.channel_axis
    y = getattr(_reference, problem.norm)(x, *groups, **options).exact
    if direction == "forward":
        return (y,)
    eps = 1e-6 if problem.norm == "rms_norm" else 1e-5
    found = gradients(problem.norm, dy, x, *groups, **options, eps=eps)
    return (y, *[gradient.exact for gradient in found if gradient is not None])


def cannot(peer: str, problem: Problem, direction: str) -> bool:
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


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))
def test_peer_computes_the_norm(peer: Peer, problem: Problem, direction: str) -> None:
    """What a peer is timed on is the norm itself with its gradients, call after call; or it says that it cannot."""
    missing = peer.missing()
    if missing:
        pytest.skip(missing)
    data = Data(problem)
    if cannot(peer.name, problem, direction):
        with pytest.raises(Unsupported):
            peer.prepare(problem, data, direction)
        return
    run = peer.prepare(problem, data, direction)
    run.call()
    assert disagreement(problem, exact(problem, data, direction), run.read(run.call())) is None


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_anynorm_is_called_for_the_norm(arrays: str, problem: Problem, direction: str) -> None:
    """What anynorm is timed on is the norm itself with its gradients."""
    data = Data(problem)
    run = ours(problem, data, direction, arrays)
    assert disagreement(problem, exact(problem, data, direction), run.read(run.call())) is None


@pytest.mark.parametrize("channels_last", [False, True])
def test_inference_is_with_given_statistics(channels_last: bool) -> None:
    """What is timed where batch norm infers takes the same statistics everywhere, which are not the data's own."""
    problem = Problem("batch_norm", (3, 8, 5, 4), channels_last=channels_last, given=True)
    data = Data(problem)
    x, _, weight, bias = data.numpy
    options = {"weight": weight, "bias": bias, "channel_axis": problem.channel_axis}
    expected = _reference.batch_norm(x, **options, mean=0.5 * bias, var=weight**2 + np.float32(0.5)).exact
    runs = [ours(problem, data, "forward", arrays) for arrays in ARRAYS]
    for run in (*runs, PEERS["torch"].prepare(problem, data, "forward")):
        assert disagreement(problem, (expected,), run.read(run.call())) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_torch_agrees_in_other_dtypes(problem: Problem, dtype: str) -> None:
    """In the other dtypes too, torch's own operators and anynorm give the same."""
    problem = replace(problem, dtype=dtype)
    data = Data(problem)
    runs = [ours(problem, data, "both", "torch"), PEERS["torch"].prepare(problem, data, "both")]
    mine, its = [run.read(run.call()) for run in runs]
    assert disagreement(problem, mine, its) is None


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_tensors_and_arrays_are_the_same_memory(problem: Problem) -> None:
    """The tensors that torch is timed on are the NumPy arrays, seen with the channels second; channels_last as said."""
    import torch

    data = Data(problem)
    assert tuple(data.torch.x.shape) == problem.shape
    assert data.numpy.x.shape == problem.stored
    assert data.torch.x.data_ptr() == data.numpy.x.__array_interface__["data"][0]
    assert data.numpy.x.flags.c_contiguous
    if problem.channels_last:
        assert data.torch.x.is_contiguous(memory_format=torch.channels_last)
        assert data.torch.dy.is_contiguous(memory_format=torch.channels_last)


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


def test_results_hold_what_a_reader_needs() -> None:
    """The JSON names machine, versions, and of each pair what was timed, the times, ratio, quartiles, others' load."""
    items = [Item(SMALL, arrays, direction, "torch") for arrays in ("numpy", "torch") for direction in DIRECTIONS]
    items += [Item(SMALL, "numpy", "both", bounds.BOUND)]
    items += [Item(SMALL, "numpy", direction, limit.COPY) for direction in (limit.OUT, limit.BACKWARD, limit.FRESH)]
    result = json.loads(json.dumps(measure(items, seconds=0.001, step=lambda _: None)))
    assert result["left_out"] == []
    assert {"processor", "cores", "python", "packages"} <= set(result["machine"])
    assert {"anynorm", "numpy", "torch", "jax", "onnxruntime", "keras", "thinc", "numba"} <= set(
        result["machine"]["packages"]
    )
    assert len(result["pairs"]) == len(items)
    for row, item in zip(result["pairs"], items, strict=True):
        assert item.row().items() <= row.items()
        assert row["ours"] > 0
        assert row["other"] > 0
        low, high = row["spread"]
        assert low <= row["ratio"] <= high
        assert row["rounds"] >= 5
        assert "others" in row
        assert ("path" in row) == (item.peer == "torch")
        assert ("copy" in row) == (item.peer == limit.COPY)
    assert len(result["summary"]) >= 10


def test_limit_is_a_copy() -> None:
    """The limit's calls: ours writes the norm into `out`, or gives all gradients; the copy makes x's bytes anew."""
    data = Data(SMALL)
    out, backward, fresh = limit.limits(SMALL, data)
    y, dx, *_ = exact(SMALL, data, "both")
    np.testing.assert_allclose(np.asarray(out.ours()), y.astype(np.float32), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(backward.ours()[0]), dx.astype(np.float32), rtol=1e-4, atol=1e-5)  # type: ignore[index]
    target = backward.copy.args[1]  # type: ignore[attr-defined]
    assert isinstance(backward.copy, partial)
    for copy in (limit._by_torch, limit._by_numpy):
        target.fill(0)
        copy(data.numpy.x, target)
        np.testing.assert_array_equal(target, data.numpy.x)
    assert (out.factor, backward.factor, fresh.factor) == (1, 1.5, 1.5)
    assert fresh.copy is not backward.copy


@pytest.mark.parametrize("arrays", ARRAYS)
@pytest.mark.parametrize("problem", [SMALL, Problem("batch_norm", (40, 64, 7, 7), channels_last=True)], ids=str)
def test_bound_moves_the_same_bytes(problem: Problem, arrays: str) -> None:
    """What bounds a call makes results of the same shapes, y of x's bytes and dx of all of x's and dy's."""
    data = Data(problem)
    x, dy, *_ = data.numpy if arrays == "numpy" else data.torch
    y = bounds.copying(data, "forward", arrays)()
    both: Any = bounds.copying(data, "both", arrays)()
    for its, expected in zip((y, *both[:2]), (x, x, x + dy), strict=True):
        assert its is not x
        np.testing.assert_array_equal(np.asarray(its.detach() if arrays == "torch" else its), np.asarray(expected))


def test_number_at_the_bound() -> None:
    """Beside a number stands what it would be if anynorm took as long as the copies; nothing where one is missing."""
    rows = _rows(plan(), 3.0)
    for row in rows:
        if row["peer"] == bounds.BOUND:
            row["ratio"] = 0.5
    by_name = {row["what"]: row for row in summarize(rows)}
    assert by_name["mean, NumPy arrays, forward"]["bound"] == pytest.approx(6.0)
    assert by_name["mean, float16 torch tensors, forward + backward"]["bound"] == pytest.approx(6.0)
    assert by_name["copy of the same bytes, forward with out=, worst"]["bound"] is None
    first = (str(NAMED[0]), "numpy", "forward", bounds.BOUND)
    fewer = [row for row in rows if (row["problem"], row["arrays"], row["direction"], row["peer"]) != first]
    by_name = {row["what"]: row for row in summarize(fewer)}
    assert by_name["mean, NumPy arrays, forward"]["bound"] is None
    assert by_name["mean, torch tensors, forward"]["bound"] == pytest.approx(6.0)


def test_parts_of_a_small_call() -> None:
    """A small call is timed with its parts, of which each takes less than the whole, and the engine's is not empty."""
    microseconds = bounds.calls()
    whole = microseconds["anynorm, NumPy arrays"]
    assert 0 < microseconds["- numpy.empty_like"] < whole
    assert microseconds["  - with nothing to do"] < microseconds["- the compiled call"] < whole
    both = microseconds["anynorm, torch tensors, forward + backward"]
    assert microseconds["- an autograd.Function that copies"] < both


def _rows(items: list[Item], ratio: float) -> list[dict[str, Any]]:
    return [item.row() | {"ratio": ratio, "others": 0.0} for item in items]


def test_full_run_has_every_number() -> None:
    """A full run times all that each number to reach is made of, every peer and dtype, and no pair twice."""
    items = plan()
    assert len(items) == len(set(items))
    assert {item.peer for item in items} == {*PEERS, limit.COPY, bounds.BOUND}
    against_torch = {(item.problem.dtype, item.arrays) for item in items if item.peer == "torch"}
    assert against_torch == {*product(("float32", "float64"), ARRAYS), ("float16", "torch"), ("bfloat16", "torch")}
    for row in summarize(_rows(items, 100.0)):
        assert row["pairs"] == row["of"] > 0
        assert row["figure"] == pytest.approx(100.0)
        assert row["reached"] is True
    assert not any(row["reached"] for row in summarize(_rows(items, 0.1)))


def test_numbers_are_not_claimed_from_a_part() -> None:
    """A mean over fewer pairs than there should be is not said to be reached; a slow pair alone decides the worst."""
    rows = [row for row in _rows(plan(), 100.0) if row["problem"] != str(NAMED[1])]
    by_name = {row["what"]: row for row in summarize(rows)}
    mean, worst = by_name["mean, NumPy arrays, forward"], by_name["worst pair from 64 Ki elements up"]
    assert (mean["reached"], mean["pairs"], mean["of"]) == (None, 13, 14)
    assert worst["reached"] is None
    slow = next(row for row in rows if row["problem"] == str(NAMED[2]))
    slow["ratio"] = 0.5
    worst = next(row for row in summarize(rows) if row["what"] == worst["what"])
    assert worst["reached"] is False
    assert worst["figure"] == 0.5
    assert worst["worst"] == f"{NAMED[2]} float32, NumPy arrays, forward"
    assert all(row["figure"] is None and row["reached"] is None for row in summarize([]))


def test_disturbed_pairs_are_counted() -> None:
    """A number says how many of its pairs others disturbed, for a call in two threads may wait for them for long."""
    rows = _rows(plan(), 3.0)
    assert {row["disturbed"] for row in summarize(rows)} == {0}
    rows[0]["others"] = 1.0
    assert (rows[0]["problem"], rows[0]["arrays"], rows[0]["direction"]) == (str(NAMED[0]), "numpy", "forward")
    counts = {row["what"]: row["disturbed"] for row in summarize(rows)}
    assert counts["mean, NumPy arrays, forward"] == counts["layer norm (8, 64), NumPy array, forward"] == 1
    assert counts["mean, torch tensors, forward"] == 0


def test_plan_is_narrowed() -> None:
    """`--quick` and `--only` time a part of the whole; the pattern is a regular expression."""
    every = plan()
    assert set(plan(few=True)) < set(every)
    only = plan(only=r"^layer norm \(8, 64\) float32, numpy arrays, .*against torch$")
    assert [(item.direction, item.problem) for item in only] == [(name, NAMED[0]) for name in DIRECTIONS]


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
    assert pair.rounds >= 5
    assert pair.scaled(1.5).ratio == 1.5 * pair.ratio


@pytest.mark.skipif(sys.platform != "linux", reason="the load is read from /proc/stat")
def test_load_of_others_is_seen() -> None:
    """Another process that computes is told; what this one computes is its own."""
    spin = "import time; print(flush=True); end = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        load = machine.Load()
        time.sleep(0.5)
        seen = load.others()
        other.kill()
    assert seen is not None
    assert seen > 0.3


def test_picture_is_drawn(tmp_path: Path) -> None:
    """The picture is a PNG of twice 900 pixels, from the results as the JSON holds them, however few they are."""
    rows = [row | {"spread": [1.5, 2.5]} for row in _rows(plan(only="float32.*against torch"), 2.0)]
    about = {"machine": {"processor": "A processor", "cores": 2, "packages": {"torch": "2.13"}}}
    heights = []
    for pairs in (rows, rows[:1], []):
        picture.draw(tmp_path / "it.png", about | {"pairs": pairs})
        with Image.open(tmp_path / "it.png") as image:
            assert image.width == 1800
            heights.append(image.height)
    assert heights[0] > heights[1] > heights[2]


def _benchmarks(*arguments: str, code: str = "") -> str:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "benchmarks", *arguments]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


def test_command_line(tmp_path: Path) -> None:
    """The command measures what it is asked for, prints it, and writes JSON and picture where it is told to."""
    only = r"^layer norm \(8, 64\) float32, torch arrays, forward, against torch$"
    files = [f"--{name}={tmp_path / name}" for name in ("json", "picture")]
    printed = _benchmarks("cpu", "--quick", "--only", only, *files)
    assert "layer norm (8, 64)" in printed
    result = json.loads((tmp_path / "json").read_text())
    assert [(row["arrays"], row["direction"], row["peer"]) for row in result["pairs"]] == [
        ("torch", "forward", "torch")
    ]
    with Image.open(tmp_path / "picture") as image:
        assert image.format == "PNG"


def test_numpy_alone_has_no_engine() -> None:
    """The benchmark of NumPy alone can switch the engine off: numba cannot be imported, and anynorm works as before."""
    code = """
from benchmarks import numpy_alone
numpy_alone.without_engine()
import numpy as np, sys, anynorm as an
y, pullback = an.vjp(an.layer_norm, np.ones((300, 400), np.float32))
pullback(y)
try:
    import numba
except ImportError:
    print("no numba")
print("anynorm_numpy" in sys.modules, an.explain(an.layer_norm, np.ones((3, 4))).path)
"""
    assert _benchmarks(code=code).split("\n")[:2] == ["no numba", "True anynorm_numpy"]
