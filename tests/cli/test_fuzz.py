"""The fuzzer: a while of it without a finding, and what it must notice if it is there.

ANYNORM_FUZZ_SECONDS is another time than 10 seconds: .ci/run fuzzes for a minute itself.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.fuzz import run, worker
from benchmarks.fuzz.case import Case, FindingError, Layout
from benchmarks.fuzz.draw import LIBRARIES, REFUSING, WAYS, draw
from benchmarks.fuzz.memory import ORDERS, place
from benchmarks.fuzz.trial import SkippedError
from benchmarks.fuzz.wrong import refusals

for package in ("jax", "torch", "dask", "array_api_strict", "ml_dtypes"):
    pytest.importorskip(package)


SECONDS = float(os.environ.get("ANYNORM_FUZZ_SECONDS", "10"))


def test_a_while_without_a_finding() -> None:
    """Whatever is drawn keeps the contract, or is refused in our words."""
    said: list[str] = []
    outcome = run.fuzz(run.Options(SECONDS, libraries=list(LIBRARIES)), lambda _: None, said.append)
    assert not outcome.findings, "\n".join(said)
    assert outcome.calls > SECONDS / 10
    assert outcome.skipped < outcome.calls / 2 + 5


@functools.cache
def _many() -> list[Case]:
    return [draw(seed) for seed in range(12_000)]


@pytest.mark.parametrize("library", list(LIBRARIES))
def test_every_way_is_drawn(library: str) -> None:
    """Each way of calling a library has a function that does it, and is drawn."""
    ways = {case.way for case in _many() if case.library == library}
    often = {way for way, weight in WAYS[library].items() if weight >= 1}
    assert often <= ways <= WAYS[library].keys()
    for way in WAYS[library]:
        assert callable(worker.way_of(Case(0, "layer_norm", (), {}, {}, library, True, way)))


def test_calls_are_functions_of_their_seed() -> None:
    """The same integer is the same call, and others are others."""
    assert [str(draw(seed)) for seed in range(200)] == [str(draw(seed)) for seed in range(200)]
    assert len({str(draw(seed)).partition("(")[2] for seed in range(200)}) > 190


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("odd", ["", "big_endian", "memmap", "subclass"])
def test_arrays_lie_within_their_guards(order: str, odd: str) -> None:
    """However an array lies, its bytes are within its memory and others are around them."""
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=(3, 4, 5))
        placed = place(values, Layout(order, seed % 3, odd), Random(seed))
        used = placed.painted()
        assert not used[:40].any()
        assert not used[-40:].any()
        assert (np.asarray(placed.memory)[~used] == 0xFF).all()
        if order not in ("repeated", "windows"):
            assert used.sum() == values.nbytes
            assert (placed.array == values).all()


def _module(name: str) -> Any:
    return importlib.import_module(name)  # `anynorm.layer_norm` is the function


def _on_result(change: Callable[[Any, Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what makes every norm's result that of `change`, which is given the call and y."""

    class Faulty:
        def __init__(self, executable: Any) -> None:
            self._executable = executable

        def __getattr__(self, name: str) -> Any:
            return getattr(self._executable, name)

        def forward(self, x: Any, *arguments: Any) -> Any:
            y, residuals = self._executable.forward(x, *arguments)
            return change(SimpleNamespace(x=x, out=arguments[4]), y), residuals

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        dispatch = _module("anynorm._core.dispatch")
        original = dispatch.entry_for

        def entry_for(*arguments: Any) -> Any:
            entry = original(*arguments)
            return dispatch.Entry(entry.backend, entry.plan, entry.shape, Faulty(entry.executable), entry.cached)

        monkeypatch.setattr(dispatch, "entry_for", entry_for)

    return plant


def _off(call: Any, y: Any) -> Any:
    """Change one element by a thousandth, wherever y lies."""
    if call.out is None and y.size:
        y = y.copy(order="K")
        y[(0,) * y.ndim] += 1e-3
    return y


def _changed_argument(call: Any, y: Any) -> Any:
    if call.out is None and call.x.size and call.x.flags.writeable:
        call.x[(0,) * call.x.ndim] += 1
    return y


def _written_beside(call: Any, y: Any) -> Any:
    if call.out is not None and isinstance(call.out.base, np.ndarray):
        call.out.base[-1] = 0
    return y


def _lying_otherwise(call: Any, y: Any) -> Any:
    return y if call.out is not None else y.T.copy().T


def _other_bits(call: Any, y: Any) -> Any:
    _other_bits.calls += 1  # type: ignore[attr-defined]
    return y if call.out is not None or _other_bits.calls % 2 else np.nextafter(y, 1)  # type: ignore[attr-defined]


_other_bits.calls = 0  # type: ignore[attr-defined]


def _replaced(module: str, name: str, instead: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(_module(module), name, instead)


def _bad_words(*_: Any) -> Any:
    msg = "bad eps"
    raise ValueError(msg)


def _wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _module("anynorm.vjp").backward

    def backward(*arguments: Any) -> Any:
        dx, dweight, dbias = original(*arguments)
        return dx, None if dweight is None else dweight * 1.001, dbias

    monkeypatch.setattr(_module("anynorm.vjp"), "backward", backward)


def _wrong_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _module("anynorm.moments")._in_own_units

    def of_call(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        return found._replace(m2=found.m2 * 1.01)

    monkeypatch.setattr(_module("anynorm.moments"), "_in_own_units", of_call)


# A fault, and the words by which it must be known.
FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "result": (_on_result(_off), "is off"),
    "argument": (_on_result(_changed_argument), "x is changed"),
    "beside": (_on_result(_written_beside), "memory beside out is written to"),
    "layout": (_on_result(_lying_otherwise), "has its axes in another order|is not dense"),
    "bits": (_on_result(_other_bits), "other bits"),
    "overlap": (
        _replaced("anynorm_numpy._backend", "refuses_out", lambda *_: None),
        "an out that shares memory is accepted",
    ),
    "refusal": (_replaced("anynorm._core.checks", "check_eps", lambda *_: None), "accepted|in other words"),
    "words": (_replaced("anynorm._core.checks", "check_eps", _bad_words), "a right call raises|refused in other words"),
    "gradient": (_wrong_gradient, "dweight is off"),
    "moments": (_wrong_moments, "m2 of moments is off"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault is found among calls on NumPy, and called by its name."""
    plant, words = FAULTS[fault]
    plant(monkeypatch)
    for seed in range(10_000):
        try:
            found = worker.run_one(seed, lambda case: case.library == "numpy_alone")
        except SkippedError:
            continue
        if found and re.search(words, found["finding"]):
            return
    pytest.fail("nothing was found")


_PLANTED = """
import os, signal, time
from benchmarks.fuzz import worker
def judge(case):
    if case.seed == {seed}:
        {fault}
worker.judge = judge
worker.main()
"""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", f"ends with {-signal.SIGSEGV}", id="crash"),
        pytest.param("time.sleep(60)", "hangs", id="hang"),
        pytest.param("raise KeyError", "ends with 1", id="fuzzer"),
    ],
)
def test_crash_and_hang_are_found(fault: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that ends its process, or never ends, is a finding with its seed, and what follows is still tried."""
    seed = next(seed for seed in range(1000) if draw(seed).library == "numpy")
    monkeypatch.setattr(run, "PATIENCE", 3.0)
    program = (sys.executable, "-c", _PLANTED.format(seed=seed, fault=fault))
    options = run.Options(300.0, seed=seed, libraries=["numpy"], calls=4)
    outcome = run.fuzz(options, lambda _: None, lambda _: None, program)
    assert [(words in kind, seeds) for kind, seeds in outcome.findings.items()] == [(True, [seed])]
    assert outcome.calls == 4


_CUT = """
import os, sys
from benchmarks.fuzz import worker
def judge(case):
    if case.seed == {seed}:
        os.write(2, b"last words")
        os.write({events}, b'{{"seed": 1, "find')
        os._exit(7)
worker.judge = judge
worker.main()
"""


def test_line_that_is_cut_short() -> None:
    """A process that is killed while it writes a line is a finding like one that is killed elsewhere."""
    seed = next(seed for seed in range(1000) if draw(seed).library == "numpy")
    # The worker writes events to a copy of its standard output, the lowest number that is free.
    program = (sys.executable, "-c", _CUT.format(seed=seed, events=3))
    options = run.Options(300.0, seed=seed, libraries=["numpy"], calls=3)
    outcome = run.fuzz(options, lambda _: None, lambda _: None, program)
    assert [("ends with 7" in kind, seeds) for kind, seeds in outcome.findings.items()] == [(True, [seed])]


def test_every_seed_is_judged_or_said_to_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that nothing judged count as skipped, and what time left no room for is where the next run begins."""
    judged, said = [], list[dict[str, Any]]()

    def judge(case: Case) -> None:
        judged.append(case.seed)
        if len(judged) == 3:
            monkeypatch.setattr(time, "monotonic", lambda: float("inf"))

    options = worker.parsed(["--seed", "5", "--libraries", "numpy_alone"])
    monkeypatch.setattr(worker, "judge", judge)
    worker.work(options, lambda **event: said.append(event))
    end = said[-1]["end"]
    assert end == judged[-1] + 1
    assert [value["begin"] for value in said if "begin" in value] == judged


def test_wrong_calls_without_a_rule_are_skipped() -> None:
    """A wrong call by a way of which nothing is known about refusals is not counted as judged."""
    wrong = next(case for case in _many() if refusals(case) and case.way not in REFUSING)
    with pytest.raises(SkippedError):
        worker.judge(wrong)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--case", "-1"], "is no seed"),
        (["--seed", "-1"], "is no seed"),
        (["--only", "never drawn", "--seconds", "3", "--libraries", "numpy_alone"], "nothing was tried"),
    ],
)
def test_wrong_usage(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can only be a mistake of the command line is no finding and no success."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", "fuzz", *arguments])
    with pytest.raises(SystemExit, match="2"):  # argparse exits by itself
        sys.exit(command.main())
    assert said in capsys.readouterr().err


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One call is described and judged; a library that is unknown is wrong usage."""
    monkeypatch.chdir(tmp_path)
    seed = next(seed for seed in range(1000) if draw(seed).library == "numpy")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "fuzz", "--case", str(seed)])
    assert command.main() == 0
    assert str(draw(seed)) in capsys.readouterr().out

    def judge(_: Case) -> None:
        kind = "planted"
        raise FindingError(kind)

    monkeypatch.setattr(worker, "judge", judge)
    assert command.main() == 1
    assert "FINDING planted" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "fuzz", "--libraries", "numbers"])
    assert command.main() == 2
    assert "there is no library numbers" in capsys.readouterr().err
