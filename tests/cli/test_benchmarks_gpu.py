"""`python -m benchmarks gpu`: how it times, and what is made of the times, on a stand-in for a GPU.

How fast anything is is not tested.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gpu_stand_in import NumpyAsCupy

from benchmarks import gpu, gpu_card, gpu_peers, gpu_report
from benchmarks.cpu import Item
from benchmarks.gpu_peers import NOBODY, PEERS, Peer, Task
from benchmarks.gpu_problems import (
    BACKWARD,
    FORWARD,
    HOST_BOTH,
    READ,
)
from benchmarks.gpu_timing import Entrant, compare, host, race
from benchmarks.limit import COPY
from benchmarks.problems import Problem

SMALL = Problem("layer_norm", (6, 40))
DIRECTIONS = (FORWARD, BACKWARD)


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no real card be asked for its state, and little be copied: both take long."""
    monkeypatch.setattr(gpu_card, "_told", lambda _: None)
    monkeypatch.setattr(gpu, "COPIED", SMALL)


def test_inputs_rotate_and_results_stay() -> None:
    """Calls take the inputs in turn, and write each result where none of the last ones is."""
    library, seen, alive = NumpyAsCupy(), [], []
    results: list[weakref.ref[Any]] = []

    def call(number: int) -> Any:
        alive.append(sum([its() is not None for its in results[-2:]]))
        seen.append(number)
        result = np.zeros(3)
        results.append(weakref.ref(result))
        return result

    race({"a": library.takes(1e-6, Entrant(call))}, 3, library, seconds=1e-4)
    assert seen[:60] == [0, 1, 2] * 20
    assert max(alive) == 2
    assert alive[-1] == 2


class Logged(NumpyAsCupy):
    """Notes between which events what was launched how often."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []
        self.log: list[tuple[str, int]] = []

    def entrant(self, name: str, seconds: float) -> Entrant:
        """Return what notes its name."""
        return self.takes(seconds, Entrant(lambda _: self.called.append(name)))

    def events(self, run: Callable[[], object], stall: float) -> float:
        """Note what was launched."""
        self.called.clear()
        spent = super().events(run, stall)
        self.log.append((self.called[0], len(self.called)))
        return spent


def test_rounds_go_forth_and_back() -> None:
    """Each round has at least 20 launches of each between two events, fewer if they take long, in turned order."""
    library = Logged()
    lengths = {"a": 1e-3, "b": 2e-3, "slow": 0.02}
    entrants = {name: library.entrant(name, seconds) for name, seconds in lengths.items()}
    times = race(entrants, 2, library, seconds=0.0)
    forth = [("a", 20), ("b", 20), ("slow", 5)]
    assert library.log[3:] == [*forth, *reversed(forth), *forth]
    for name, its in times.items():
        assert its.seconds == pytest.approx([lengths[name]] * 3)
    library.log.clear()
    race({"a": entrants["a"]}, 33, library, seconds=0.33)
    assert library.log[1:] == [("a", 33)] * 9


def test_ratio_is_the_others_time_over_ours() -> None:
    """Of times round by round, medians are told, and of their ratios the median and quartiles."""
    pair = compare([1.0, 2.0, 4.0], [3.0, 4.0, 40.0])
    assert (pair.ours, pair.other, pair.ratio, pair.rounds) == (2.0, 4.0, 3.0, 3)
    assert pair.spread == (2.0, 10.0)


def test_host_time_is_not_that_of_the_gpu() -> None:
    """The time of a call on the host does not count what the GPU does, and waits for it only in between."""
    library = Logged()
    found = host({"a": library.entrant("a", 100.0)}, 2, library)["a"]
    assert max(found.seconds) < 1
    assert found.launches == 100
    assert library.log == []


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


def test_results_hold_what_a_reader_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON names card, driver and versions, the card's state, the copy's speed, and of each pair what was timed."""
    items = [Item(SMALL, "cupy", way, COPY) for way in DIRECTIONS] + [Item(SMALL, "cupy", HOST_BOTH, NOBODY)]
    library = NumpyAsCupy()
    result = _measured(monkeypatch, items, library=library)
    assert {"card", "driver", "cuda", "python", "packages"} <= set(result["machine"])
    assert {"anynorm", "torch", "cupy", "jax", "liger-kernel", "quack-kernels"} <= set(result["machine"]["packages"])
    assert {"before", "under load", "after"} == set(result["state"])
    assert {"sm_clock", "temperature", "throttle_reasons"} <= set(result["state"]["under load"])
    assert result["copy_gb_per_second"]["cupy"] == pytest.approx(1920 / 1e-6 / 1e9)
    assert result["most_memory"] == 12345
    for row, item in zip(result["pairs"], items, strict=True):
        assert item.row().items() <= row.items()
        assert {"ours", "other", "ratio", "spread", "rounds", "launches", "inputs", "path"} <= set(row)
        assert ("percent" in row) == (item.peer == COPY)
    assert library.released >= 4
    assert not any(array() is not None for array in library.made)


OURS = gpu_peers.ours


def _double(task: Task) -> Entrant:
    entrant = OURS(task)
    return replace(entrant, read=lambda result: tuple([2 * array for array in entrant.read(result)]))


def _raising(_: Task) -> Entrant:
    msg = "out of order\nand more"
    raise RuntimeError(msg)


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
    its, torch = result["left_out"]
    assert its["reason"].startswith(reason)
    assert torch["reason"] == "torch finds no CUDA device"
    gpu_report.report(result)
    printed = capsys.readouterr().out
    assert reason in printed
    assert "50.0 to 50.0" in printed


def test_wrong_results_of_ours_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where anynorm itself is off, no time is told, and why; where it raises, the rest is still timed."""
    items = [Item(SMALL, "cupy", way, COPY) for way in DIRECTIONS]
    monkeypatch.setattr(gpu_peers, "ours", lambda task: (_raising if task.direction == FORWARD else _double)(task))
    result = _measured(monkeypatch, items)
    assert result["pairs"] == []
    raised, wrong = [row["reason"] for row in result["left_out"]]
    assert raised == "anynorm or the clock raises RuntimeError: out of order"
    assert wrong.startswith("anynorm computes something else: dx differs")


def test_run_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is up, what is left is left out by name, and all that was found is kept."""
    result = _measured(monkeypatch, [Item(SMALL, "cupy", FORWARD, COPY)], total=-1.0)
    assert result["pairs"] == []
    assert [row["reason"] for row in result["left_out"]] == [gpu.TIME_IS_UP]
