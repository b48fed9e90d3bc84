"""`python -m benchmarks gpu` on stand-ins for a GPU: that it runs, and what its numbers are made of.

How fast anything is is not tested.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu_stand_in import NumpyAsCupy, TorchOnCpu
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import gpu, gpu_arrays, gpu_card, gpu_peers, gpu_report, gpu_timing, rows
from benchmarks.cpu import Item
from benchmarks.gpu_exact import disagreement, exact
from benchmarks.gpu_peers import COMPILED, JAX, NATIVE, NOBODY, PEERS, PLAIN, Peer, Task
from benchmarks.gpu_problems import (
    BACKWARD,
    FORWARD,
    HOST_BOTH,
    HOST_FORWARD,
    READ,
    held,
    inputs_for,
    moved,
    resident,
    row_size,
    set_size,
    size,
)
from benchmarks.gpu_summary import summarize
from benchmarks.gpu_timing import Entrant, compare, race
from benchmarks.limit import COPY
from benchmarks.problems import Problem

PROBLEMS = (
    Problem("layer_norm", (6, 40)),
    Problem("layer_norm", (6, 40), dtype="bfloat16"),
    Problem("rms_norm", (6, 40)),
    *[
        Problem(norm, (3, 8, 5, 4), groups, channels_last)
        for norm, groups in (("batch_norm", 1), ("group_norm", 2), ("instance_norm", 1))
        for channels_last in (False, True)
    ],
)
SMALL = PROBLEMS[0]
DIRECTIONS = (FORWARD, BACKWARD)
OURS = gpu_peers.ours


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let all run where there is no GPU: what is used of CuPy is NumPy's, torch generates no code, no card is asked."""
    import torch

    real = torch.compile

    def without_code(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **options, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_code)
    cupy: Any = ModuleType("cupy")
    versions = {"runtimeGetVersion": lambda: 13000, "driverGetVersion": lambda: 13010}
    cupy.sqrt, cupy.__version__, cupy.cuda = np.sqrt, "14.0", SimpleNamespace(runtime=SimpleNamespace(**versions))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setattr(gpu_card, "_told", lambda _: None)
    monkeypatch.setattr(gpu, "COPIED", SMALL)
    with importlib.import_module("torch._functorch.config").patch(donated_buffer=True):
        yield


def _takes(seconds: float, prepare: Callable[[Task], Entrant]) -> Callable[[Task], Entrant]:
    """Return what prepares the same, whose calls take so long."""
    return lambda task: task.library.takes(seconds, prepare(task))


def _all_ways() -> list[Item]:
    peers = {"torch": (COPY, NATIVE.name, COMPILED.name, JAX.name), "cupy": (COPY, PLAIN.name)}
    items = [
        Item(problem, arrays, way, peer)
        for problem in PROBLEMS
        for arrays, names in peers.items()
        for way in DIRECTIONS
        for peer in names
        if peer not in (JAX.name, COMPILED.name) or problem in (SMALL, PROBLEMS[-3])  # they compile each
    ]
    native = {"torch": NATIVE.name, "cupy": PLAIN.name}
    return items + [Item(SMALL, arrays, HOST_BOTH, peer) for arrays in native for peer in (NOBODY, native[arrays])]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On every norm and layout all peers compute what anynorm does and are timed; rows and picture are written."""
    for peer in (NATIVE, PLAIN, COMPILED, JAX):
        monkeypatch.setitem(PEERS, peer.name, replace(peer, missing=lambda: None, prepare=_takes(1e-6, peer.prepare)))
    monkeypatch.setattr(gpu, "ours", _takes(2e-6, OURS))
    monkeypatch.setattr(gpu, "plan", lambda **_: _all_ways())
    monkeypatch.setattr(gpu, "SECONDS", 1e-6)
    monkeypatch.setattr(gpu_timing, "LAUNCHES", 2)
    monkeypatch.setattr(gpu_arrays, "usable", lambda: {"cupy": NumpyAsCupy(), "torch": TorchOnCpu()})
    files = [tmp_path / "it.jsonl", tmp_path / "it.png"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--json", str(files[0]), "--picture", str(files[1])])
    assert command.main() == 0
    printed = capsys.readouterr().out
    result = rows.read(files[0])
    assert result["left_out"] == []
    assert len(result["pairs"]) == len(_all_ways())
    for row in result["pairs"]:
        # What the stand-in's clock tells of anynorm, but where the host's is asked.
        assert (row["ours"] == 2e-6) == (row["direction"] != HOST_BOTH)
    assert result["machine"]["cuda"]["driver"] == 13010
    assert {"card", "driver", "cuda", "python", "packages"} <= set(result["machine"])
    assert {"before", "under load", "after"} == set(result["state"])
    assert result["most_memory"] == 12345
    with Image.open(files[1]) as image:
        assert image.format == "PNG"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--read", str(files[0])])
    assert command.main() == 0
    shown, again = [
        sorted([line.split("  ")[0] for line in text.splitlines()]) for text in (printed, capsys.readouterr().out)
    ]
    assert again == shown


class Driver:
    """What stands for the NVIDIA driver's library, on a machine with one GPU."""

    def cuInit(self, _: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 1
        return 0


def test_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the driver finds a GPU, libraries are asked, each of which may say why it is of no use."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    assert gpu_card.no_gpu() is None

    class Missing:
        missing = staticmethod(lambda: "not today")

    class There:
        missing = staticmethod(lambda: None)

    monkeypatch.setattr(gpu_arrays, "LIBRARIES", {"torch": Missing, "cupy": There})
    found = gpu_arrays.usable()
    assert found["torch"] == "not today"
    assert isinstance(found["cupy"], There)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a GPU the command says why in a sentence, with an exit status, and writes nothing."""

    def load(_: str) -> Any:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", load)
    target = tmp_path / "it.jsonl"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", f"--json={target}"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert "there is no NVIDIA driver here" in str(stopped.value.code)
    assert str(stopped.value.code).endswith("Nothing was timed.")
    assert not target.exists()


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


def test_inputs_rotate_and_results_stay() -> None:
    """Calls take the inputs in turn, and write each result where none of the last ones is."""
    library, seen, alive = NumpyAsCupy(), [], []
    results: list[weakref.ref[Any]] = []

    def call(number: int) -> Any:
        alive.append(sum([value() is not None for value in results[-2:]]))
        seen.append(number)
        result = np.zeros(3)
        results.append(weakref.ref(result))
        return result

    race({"a": library.takes(1e-6, Entrant(call))}, 3, library, seconds=1e-4)
    assert seen[:60] == [0, 1, 2] * 20
    assert max(alive) == 2
    assert alive[-1] == 2


def test_ratio_is_the_others_time_over_ours() -> None:
    """Of times round by round, medians are told, and of their ratios the median and quartiles."""
    pair = compare([1.0, 2.0, 4.0], [3.0, 4.0, 40.0])
    assert (pair.ours, pair.other, pair.ratio, pair.rounds) == (2.0, 4.0, 3.0, 3)
    assert pair.spread == (2.0, 10.0)


def _measured(
    monkeypatch: pytest.MonkeyPatch, items: Sequence[Item], seconds: float = 2e-6, **options: Any
) -> dict[str, Any]:
    """Return results where anynorm takes so long, and a copy of x a microsecond."""
    library = options.pop("library", None) or NumpyAsCupy()
    real = gpu_peers.ours
    monkeypatch.setattr(gpu, "ours", lambda task: library.takes(seconds, real(task)))
    libraries = {"cupy": library, "torch": "torch finds no CUDA device"}
    result = gpu.measure(items, libraries, step=lambda _: None, **{"seconds": 1e-5, **options})
    return json.loads(json.dumps(result))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("direction", "percent", "bytes_moved"), [(FORWARD, 50, 1920), (BACKWARD, 75, 2880)])
def test_percent_of_a_copy(direction: str, percent: float, bytes_moved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes twice as long as a copy of x is at half the speed forward, and backward at three quarters."""
    result = _measured(monkeypatch, [Item(SMALL, "cupy", direction, COPY)])
    (row,) = result["pairs"]
    assert row["percent"] == pytest.approx(percent)
    assert row["spread"] == pytest.approx([percent / 100] * 2)
    assert row["bytes"] == bytes_moved
    assert row["gb_per_second"] == pytest.approx(bytes_moved / 2e-6 / 1e9)
    assert row["launches"] == 20
    assert row["inputs"] == 2 * NumpyAsCupy.cache // (READ[direction] * 960) + 1


def _double(task: Task) -> Entrant:
    entrant = OURS(task)
    return replace(entrant, read=lambda result: tuple([2 * array for array in entrant.read(result)]))


def _raising(_: Task) -> Entrant:
    msg = "out of order\nand more"
    raise RuntimeError(msg)


def test_wrong_results_of_ours_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where anynorm itself is off, no time is told, and why; where it raises, the rest is still timed."""
    items = [Item(SMALL, "cupy", way, COPY) for way in DIRECTIONS]
    monkeypatch.setattr(gpu_peers, "ours", lambda task: (_raising if task.direction == FORWARD else _double)(task))
    result = _measured(monkeypatch, items)
    assert result["pairs"] == []
    raised, wrong = [row["reason"] for row in result["left_out"]]
    assert raised == "anynorm or the clock raises RuntimeError: out of order"
    assert wrong.startswith("anynorm computes something else: dx differs")


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        pytest.param(Peer("it", "cupy", lambda: "it is not there", OURS), "it is not there", id="missing"),
        pytest.param(Peer("it", "cupy", lambda: None, _raising), "it raises RuntimeError: out of order", id="raising"),
        pytest.param(Peer("it", "cupy", lambda: None, _double), "it computes something else: y differs", id="wrong"),
    ],
)
def test_what_is_not_timed_is_reported(
    peer: Peer, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer that is missing, raises or computes something else is not timed, which results and tables say."""
    monkeypatch.setitem(PEERS, "it", peer)
    monkeypatch.setitem(PEERS, "good", Peer("good", "cupy", lambda: None, OURS))
    items = [Item(SMALL, "cupy", FORWARD, name) for name in ("it", "good", COPY)]
    result = _measured(monkeypatch, [*items, Item(SMALL, "torch", FORWARD, COPY)])
    assert [row["peer"] for row in result["pairs"]] == ["good", COPY]
    array, torch = result["left_out"]
    assert array["reason"].startswith(reason)
    assert torch["reason"] == "torch finds no CUDA device"
    gpu_report.report(result)
    printed = capsys.readouterr().out
    assert reason in printed
    assert "50.0 to 50.0" in printed


@pytest.mark.parametrize("arrays", ["torch", "cupy"])
def test_both_directions_on_the_host(arrays: str) -> None:
    """Where the time of forward and backward together is told, a call does both anew."""
    library: Any = {"torch": TorchOnCpu, "cupy": NumpyAsCupy}[arrays]()
    for prepare in (OURS, {"torch": NATIVE, "cupy": PLAIN}[arrays].prepare):
        task = Task(SMALL, HOST_BOTH, library, library.data(SMALL, 1))
        entrant = prepare(task)
        gradients = entrant.call(0)[-3:]
        right = exact(SMALL, task.inputs[0], BACKWARD, library.wide)
        assert disagreement(SMALL, BACKWARD, right, gradients, library.wide) is None


def test_run_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is up, what is left is left out by name, and all that was found is kept."""
    result = _measured(monkeypatch, [Item(SMALL, "cupy", FORWARD, COPY)], total=-1.0)
    assert [row["reason"] for row in result["left_out"]] == [gpu.TIME_IS_UP]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda dx, dw, db: (dx, dw, db * 1.01), "dbias differs", id="scaled"),
        pytest.param(lambda dx, dw, db: (dx * np.nan, dw, db), "dx differs", id="nan"),
        pytest.param(lambda dx, dw, db: (dx.T, dw, db), "dx has shape", id="shape"),
        pytest.param(lambda dx, dw, _db: (dx, dw), "2 results", id="missing"),
    ],
)
def test_disagreement_is_seen(spoil: Callable[..., tuple[Any, ...]], words: str) -> None:
    """Results that are off by more than rounding, NaN, of another shape or missing are told."""
    library = NumpyAsCupy()
    right = exact(SMALL, library.data(SMALL, 1)[0], BACKWARD, library.wide)
    assert disagreement(SMALL, BACKWARD, right, right, library.wide) is None
    assert words in str(disagreement(SMALL, BACKWARD, right, spoil(*right), library.wide))


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
    found = [row for row in _rows(100.0, 1e-9) if row["problem"] != "layer norm (131072, 1024)"]
    names = ("layer and RMS norm, forward, rows of 1 KB to 512 KB", "against torch's own, mean, forward")
    by_name = {row["what"]: row for row in summarize(found)}
    assert [by_name[name]["reached"] for name in names] == [None, None]
    cell = {"problem": str(slow), "dtype": "float16", "arrays": "torch", "direction": FORWARD, "peer": COPY}
    next(row for row in found if cell.items() <= row.items())["ratio"] = 0.5
    by_name = {row["what"]: row for row in summarize(found)}
    assert by_name[names[0]]["reached"] is False
    assert by_name[names[0]]["figure"] == pytest.approx(50)
    assert cell.items() <= by_name[names[0]]["worst"].items()


def test_slow_host_decides() -> None:
    """Of host times the longest counts, and more than the target is a miss even where some are not there."""
    found = [row for row in _rows(1.0, 1e-9) if row["direction"] == HOST_FORWARD]
    found[-1]["ours"] = 1.0
    assert (found[-1]["arrays"], found[-1]["peer"]) == ("cupy", gpu_peers.PLAIN.name)
    name = f"{HOST_FORWARD}, CuPy, worst norm"
    assert next(row for row in summarize(found) if row["what"] == name)["reached"] is True
    array = next(row for row in found if row["arrays"] == "cupy" and row["peer"] == NOBODY)
    array["ours"] = 13e-6
    slow = next(row for row in summarize([array]) if row["what"] == name)
    assert (slow["reached"], slow["pairs"], slow["of"]) == (False, 1, 5)


def test_real_libraries_have_what_is_called() -> None:
    """What is asked of CuPy and torch by name is there, as far as can be seen without a GPU."""
    import torch

    assert hasattr(torch.cuda, "_sleep")
    assert hasattr(importlib.import_module("torch._functorch.config"), "donated_buffer")
    assert callable(torch.cuda.set_per_process_memory_fraction)
