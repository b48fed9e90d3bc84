"""`python -m benchmarks prove`: its steps, their limits and results; and that what it watches are all kernels.

The steps themselves need a GPU; here other commands stand for them.
"""

from __future__ import annotations

import json
import re
import sys
import time
from ctypes import memmove
from pathlib import Path
from typing import Any

import cuda_host
import numpy as np
import pytest

from anynorm_cuda._program import FOLDER, Launch
from anynorm_cuda._thread_groups import Device
from benchmarks import gpu_card, prove, rows, sanitize
from benchmarks.prove import Step

DEVICE = Device(arch=90, processors=132, shared=232448)


def _python(code: str, limit: float = 20, **options: Any) -> Step:
    return Step("it", [sys.executable, "-c", code], limit, **options)


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        pytest.param(_python("print('well')"), "passed", id="passed"),
        pytest.param(_python("raise SystemExit(3)"), "failed: exit status 3", id="failed"),
        pytest.param(
            _python("print('well')", read=lambda: {"problem": "no test passed"}), "failed: no test passed", id="empty"
        ),
        pytest.param(_python("print('well')", missing="there is no tool"), "left out: there is no tool", id="missing"),
    ],
)
def test_outcome(step: Step, outcome: str, tmp_path: Path) -> None:
    """A step passes only if its command does and has left what it should; what is missing is said."""
    result = prove.run(step, tmp_path / "log.txt")
    assert result["outcome"] == outcome
    if step.missing is None:
        assert (result["log"].strip() == "well") == ("well" in step.command[-1])
        assert "== it" in (tmp_path / "log.txt").read_text()


def test_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose time is up is asked to stop and may write what it has; then it and all it has started are killed."""
    monkeypatch.setattr(prove, "_LATE", 0.5)
    code = (
        "import signal, subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(other.pid, flush=True)\n"
        "signal.signal(signal.SIGINT, lambda *_: print('asked', flush=True))\n"
        "time.sleep(60)"
    )
    began = time.monotonic()
    result = prove.run(_python(code, limit=1.5), tmp_path / "log.txt")
    assert time.monotonic() - began < 15
    assert result["outcome"] == "timed out"
    pid, asked = result["log"].split()
    assert asked == "asked"
    deadline = time.monotonic() + 5
    while _runs(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(int(pid))


def _runs(pid: int) -> bool:
    """Return whether a process runs: one that has ended may wait for its parent to notice."""
    try:
        return not re.search(r"\) [ZX] ", Path(f"/proc/{pid}/stat").read_text())
    except FileNotFoundError:
        return False


def test_goes_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails stops no other; each is in the summary as soon as it ends, with what is missing."""
    monkeypatch.setattr(prove, "missing", lambda: {"cupy": "CuPy is not installed"})
    monkeypatch.setattr(gpu_card, "_told", lambda _: None)
    seen = tmp_path / "summary.json"
    second = f"import json; print(json.load(open({str(seen)!r}))['steps'][0]['outcome'])"
    monkeypatch.setattr(
        prove, "steps", lambda *_: [lambda _: _python("raise SystemExit(1)"), lambda _: _python(second)]
    )
    assert prove.main(tmp_path) == 1
    summary = json.loads(seen.read_text())
    assert [step["outcome"] for step in summary["steps"]] == ["failed: exit status 1", "passed"]
    assert summary["steps"][1]["log"].strip() == "failed: exit status 1"
    assert summary["missing"] == {"cupy": "CuPy is not installed"}
    monkeypatch.setattr(prove, "steps", lambda *_: [lambda _: _python("")])
    assert prove.main(tmp_path) == 0


def test_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU no step runs, and the reason is said in plain words and written."""
    monkeypatch.setattr(gpu_card, "no_gpu", lambda: "there is no NVIDIA driver here")
    monkeypatch.setattr(prove, "steps", None)
    assert prove.main(tmp_path / "new") == 2
    assert "missing: there is no NVIDIA driver here" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "summary.json").read_text())["missing"]["gpu"]


def test_steps_fit_into_ten_minutes(tmp_path: Path) -> None:
    """All steps together, each at its limit, take less than ten minutes, and the benchmark has time to measure."""
    left, names = prove.TOTAL, []
    for make in prove.steps(tmp_path, {}):
        step = make(left)
        names.append(step.name)
        left -= step.limit
    assert names == ["tests", "kernels", "memcheck", "racecheck", "synccheck", "benchmark"]
    assert left >= 0
    assert prove.TOTAL + prove._LATE < 600
    measured = re.search(r"--seconds=(\d+)", " ".join(step.command))
    assert measured is not None
    assert int(measured[1]) >= 120
    full = prove.steps(tmp_path, {})[-1](500)
    assert "--seconds=450" in full.command


def test_steps_are_left_out_for_a_reason(tmp_path: Path) -> None:
    """Without bindings no kernel is watched; without CuPy, what torch can do is still proved."""
    lacking = {"cupy": "CuPy is not installed", "cuda-bindings": "cuda-bindings is not installed"}
    steps = {step.name: step for step in [make(100) for make in prove.steps(tmp_path, lacking)]}
    reasons = {name: step.missing for name, step in steps.items()}
    bindings = lacking["cuda-bindings"]
    assert reasons == {
        "tests": None,
        "kernels": bindings,
        "memcheck": bindings,
        "racecheck": bindings,
        "synccheck": bindings,
        "benchmark": None,
    }
    assert steps["tests"].environment == {"ANYNORM_REQUIRE": "torch_cuda"}
    for package, without in (("hypothesis", "tests"), ("rich", "benchmark"), ("ml_dtypes", "kernels")):
        made = [make(100) for make in prove.steps(tmp_path, {package: "not there"})]
        assert next(step.missing for step in made if step.name == without) == "not there"
    none = {"cupy": "no cupy", "torch": "no torch"}
    assert prove.steps(tmp_path, none)[-1](100).missing == "no torch and no cupy"


def test_tests_are_counted(tmp_path: Path) -> None:
    """Failures are named; a run in which all was skipped has proved nothing."""
    file = tmp_path / "tests.xml"
    case = '<testcase classname="tests.test_a" name="test_x[cupy]"><failure/></testcase>'
    file.write_text(
        f'<testsuites><testsuite tests="9" failures="1" errors="0" skipped="3">{case}</testsuite></testsuites>'
    )
    found = prove._counted(file)
    assert (found["passed"], found["failed"]) == (5, ["tests.test_a.test_x[cupy]"])
    assert "problem" not in found
    file.write_text('<testsuites><testsuite tests="3" failures="0" errors="0" skipped="3"/></testsuites>')
    assert prove._counted(file)["problem"] == "no test passed"
    assert prove._counted(tmp_path / "none.xml")["problem"] == "no results were written"
    assert prove._numbers(tmp_path / "none.jsonl")["problem"] == "no results were written"


def test_numbers_are_read(tmp_path: Path) -> None:
    """The benchmark's numbers to reach are in the summary; that nothing was timed is a problem."""
    pair, numbers = dict.fromkeys(rows.KEY, "it"), [{"what": "percent", "figure": 92.0}]
    file = tmp_path / "gpu.jsonl"
    rows.write(file, {"summary": numbers, "pairs": [pair], "left_out": [pair, pair]})
    assert prove._numbers(file) == {"numbers": numbers, "pairs": 1, "left_out": 2}
    rows.write(file, {"summary": numbers, "pairs": [], "left_out": []})
    assert prove._numbers(file)["problem"] == "nothing was timed"


def test_every_kernel_is_watched() -> None:
    """The cases run every kernel of the source, those of clusters in one and in several blocks."""
    launched = {
        (launch.kernel.name, dict(launch.kernel.macros)["CTAS"] != 1)
        for case in sanitize.CASES
        for config in sanitize.configs_of(case, DEVICE)
        for launch in config.launches
    }
    sources = [path.read_text() for path in FOLDER.glob("*.cu")]
    names = {name for text in sources for name in re.findall(r"\bKERNEL\((\w+)\)\(Call", text)}
    in_clusters = {name for text in sources for name in re.findall(r"\bCLUSTER_KERNEL\((\w+)\)\(Call", text)}
    assert names
    assert in_clusters
    assert launched == {(name, False) for name in names | in_clusters} | {(name, True) for name in in_clusters}


class HostMemory:
    """The memory of the host, where kernels run on a CPU."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def put(self, array: Any) -> int:
        copy = np.empty(array.nbytes + 16, np.uint8)
        address = int(copy.ctypes.data) + -int(copy.ctypes.data) % 16
        memmove(address, array.ctypes.data, array.nbytes)
        self.taken.append(copy)
        return address

    def get(self, address: int, array: Any) -> Any:
        found = np.empty_like(array)
        memmove(found.ctypes.data, address, found.nbytes)
        return found

    def free(self) -> None:
        self.taken.clear()


@pytest.mark.skipif(cuda_host.missing() is not None, reason=str(cuda_host.missing()))
@pytest.mark.parametrize(
    "number",
    [0, 8, next(i for i, case in enumerate(sanitize.CASES) if case.given)],
    ids=["rows", "batch norm", "given statistics"],
)
def test_cases_are_right(number: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A case gets its arrays as the engine takes them: on the CPU its results are right, and a wrong one is told."""
    folder = tmp_path_factory.getbasetemp() / "watched"
    memory, launch = HostMemory(), cuda_host.launcher(folder)
    case = sanitize.CASES[number]
    assert sanitize.run(case, memory, launch, DEVICE) is None
    assert not memory.taken

    def nothing(_launch: Launch, _argument: bytes) -> None:
        """Leave all as it was."""

    assert "y differs by nan" in str(sanitize.run(case, memory, nothing, DEVICE))
