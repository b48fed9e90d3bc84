"""All that is to be proved on a machine with a GPU, one step after the other, each with a time limit of its own.

The tests of CuPy arrays and torch's CUDA tensors; every kernel by itself, then watched by compute-sanitizer; the
benchmark. What a step found is written into FOLDER as soon as it ends, and a step that fails stops no other.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anynorm._core.files import write_whole
from benchmarks import gpu_card, rows
from benchmarks.machine import installed

ROOT = Path(__file__).parent.parent

# Seconds for all steps together, and what the benchmark, the last one, needs beside measuring.
TOTAL, BESIDE = 560.0, 50.0

# Names of the tests that need a GPU: their library, or what they say of themselves.
TESTS = "(cupy or torch_cuda or gpu) and not benchmarks"

# Of the end of what a step printed.
_TAIL = 4000
_LATE = 15.0  # seconds that a step has to write what it has found, when its time is up

# What steps import beside the libraries that they are about.
_FOR_TESTS = ("numpy", "array-api-compat", "pytest", "hypothesis")
_FOR_KERNELS = ("numpy", "ml_dtypes")
_FOR_BENCHMARK = ("numpy", "array-api-compat", "ml_dtypes", "rich", "matplotlib")

# Print why the kernels' compiler and its bindings, or the libraries, cannot be used; null where they can.
_ASK_KERNELS = "import json, anynorm_cuda; print(json.dumps({'cuda-bindings': anynorm_cuda.missing()}))"
_ASK_LIBRARIES = (
    "import json; from benchmarks.gpu_arrays import LIBRARIES\n"
    "print(json.dumps({name: library.missing() for name, library in LIBRARIES.items()}))"
)

Result = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A command, and what is read from what it leaves."""

    name: str
    command: Sequence[str]
    limit: float
    read: Callable[[], Result] = dict
    missing: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def main(folder: Path) -> int:
    """Run all steps; return 0 if all passed, 1 if not, 2 if there is no GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    lacking = missing()
    for reason in lacking.values():
        print(f"missing: {reason}", flush=True)
    if "gpu" in lacking:
        print("Nothing was proved.")
        _write(folder, lacking, [], 0)
        return 2
    started = time.monotonic()
    done: list[Result] = []
    for make in steps(folder, lacking):
        step = make(TOTAL - (time.monotonic() - started))
        print(f"{step.name} (at most {step.limit:.0f} s) ...", flush=True)
        result = run(step, folder / "log.txt")
        done.append(result)
        print(f"{step.name}: {result['outcome']}, {result['seconds']:.0f} s", flush=True)
        _write(folder, lacking, done, time.monotonic() - started)
    return 0 if all(result["outcome"] == "passed" for result in done) else 1


def missing() -> dict[str, str]:
    """Return what cannot be used here, in plain words, by a short name."""
    found = {"gpu": gpu_card.no_gpu(), "sanitizer": None if sanitizer() else "compute-sanitizer is not found"}
    for package in dict.fromkeys([*_FOR_TESTS, *_FOR_KERNELS, *_FOR_BENCHMARK]):
        found[package] = None if installed(package) else f"{package} is not installed"
    found |= _asked(("cuda-bindings",), _ASK_KERNELS)
    if found["gpu"] is None:
        found |= _asked(("torch", "cupy"), _ASK_LIBRARIES)
    return {name: reason for name, reason in found.items() if reason is not None}


def _asked(names: Sequence[str], code: str) -> dict[str, str | None]:
    """Return what code prints of these; in a process of its own, which may take memory of the GPU."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        answer: dict[str, str | None] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except (subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return {names[0]: f"{' and '.join(names)} cannot be asked: {str(said).strip().rpartition(chr(10))[2]}"}
    return answer


def sanitizer() -> str | None:
    """Return the path of compute-sanitizer: on PATH, where CUDA is, or in the wheel."""
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(folder) / place for folder in folders if folder for place in ("bin", "compute-sanitizer")]
    for path in (None, *map(str, places)):  # None is PATH
        if found := shutil.which("compute-sanitizer", path=path):
            return found
    return next(_in_wheels(), None)


def _in_wheels() -> Iterator[str]:
    for suffix in ("", "-cu13", "-cu12"):
        with suppress(importlib.metadata.PackageNotFoundError):
            for file in importlib.metadata.files(f"nvidia-cuda-sanitizer-api{suffix}") or ():
                if file.name == "compute-sanitizer" and Path(str(file.locate())).is_file():
                    yield str(file.locate())


def steps(folder: Path, lacking: dict[str, str]) -> list[Callable[[float], Step]]:
    """Return the steps in order; each is made when its turn comes, of the seconds that are left."""
    kernels = [sys.executable, "-m", "benchmarks.sanitize"]
    no_kernels = _why(lacking, ("cuda-bindings", *_FOR_KERNELS))

    def watched(tool: str, limit: float) -> Step:
        command = [sanitizer() or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *kernels]
        return Step(tool, command, limit, missing=no_kernels or lacking.get("sanitizer"))

    def benchmark(left: float) -> Step:
        files = [folder.resolve() / name for name in ("gpu.jsonl", "gpu.png")]
        command = [sys.executable, "-m", "benchmarks", "gpu", f"--seconds={max(left - BESIDE, 10):.0f}"]
        command += [f"--json={files[0]}", f"--picture={files[1]}"]
        neither = " and ".join([lacking[name] for name in ("torch", "cupy") if name in lacking])
        return Step(
            "benchmark",
            command,
            max(left, 60),
            read=lambda: _numbers(files[0]),
            missing=neither if {"torch", "cupy"} <= set(lacking) else _why(lacking, _FOR_BENCHMARK),
        )

    return [
        lambda left: _tests(folder, lacking, min(left, 170)),
        lambda _: Step("kernels", kernels, 60, missing=no_kernels),
        lambda _: watched("memcheck", 45),
        lambda _: watched("racecheck", 60),
        lambda _: watched("synccheck", 35),
        benchmark,
    ]


def _why(lacking: dict[str, str], needed: Sequence[str]) -> str | None:
    """Return why a step cannot run that needs all of these, or None."""
    return "; ".join([lacking[name] for name in needed if name in lacking]) or None


def _tests(folder: Path, lacking: dict[str, str], limit: float) -> Step:
    found = folder.resolve() / "tests.xml"
    found.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests", "-q", "-k", TESTS, f"--junitxml={found}"]
    command += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    if installed("pytest-xdist"):
        command += ["-n", str(min(8, max(1, (os.cpu_count() or 1) // 2)))]
    families = {"cupy": "cupy", "torch_cuda": "torch"}
    required = ",".join([family for family, library in families.items() if library not in lacking])
    return Step(
        "tests",
        command,
        limit,
        read=lambda: _counted(found),
        missing=_why(lacking, _FOR_TESTS),
        environment={"ANYNORM_REQUIRE": required},
    )


def run(step: Step, log: Path) -> Result:
    """Run a step, within its limit, and return what came of it; what it prints is added to the log."""
    result: Result = {"name": step.name, "command": list(step.command), "limit": step.limit, "seconds": 0.0}
    if step.missing:
        return result | {"outcome": f"left out: {step.missing}"}
    started = time.monotonic()
    with log.open("ab") as stream:
        stream.write(f"\n== {step.name}\n".encode())
        stream.flush()
        begin = stream.tell()
        code = _code(step, stream)
    printed = log.read_bytes()[begin:].decode(errors="replace")
    found = step.read()
    outcome = "timed out" if code is None else "passed" if code == 0 else f"failed: exit status {code}"
    if outcome == "passed" and "problem" in found:
        outcome = f"failed: {found['problem']}"
    result |= {"seconds": round(time.monotonic() - started, 1), "outcome": outcome, "log": printed[-_TAIL:]}
    return result | {"found": found}


def _code(step: Step, stream: Any) -> int | None:
    """Return the exit status, or None if the time was up: then the step is asked to stop, and then made to."""
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env=_environment() | step.environment,
        stdout=stream,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that all that it has started can be stopped
    )
    try:
        return process.wait(step.limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LATE)
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """Return the environment in which the checkout's own packages are found, installed or not."""
    paths = [str(ROOT), str(ROOT / "backends"), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join([path for path in paths if path]), "PYTHONUNBUFFERED": "1"}


def _counted(file: Path) -> Result:
    """Return how many tests there were, and which failed; that none passed is a problem."""
    try:
        suites = list(ElementTree.parse(file).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return {"problem": "no results were written"}
    counts = {
        name: sum([int(suite.get(name, 0)) for suite in suites]) for name in ("tests", "failures", "errors", "skipped")
    }
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    failed = [
        f"{case.get('classname')}.{case.get('name')}"
        for suite in suites
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    found: Result = counts | {"passed": passed, "failed": failed[:100]}
    return found if passed else found | {"problem": "no test passed"}


def _numbers(file: Path) -> Result:
    """Return the numbers to reach as the benchmark found them."""
    try:
        result = rows.read(file)
    except (OSError, ValueError):
        return {"problem": "no results were written"}
    return {
        "numbers": result["summary"],
        "pairs": len(result["pairs"]),
        "left_out": len(result["left_out"]),
        **({} if result["pairs"] else {"problem": "nothing was timed"}),
    }


def _write(folder: Path, lacking: dict[str, str], done: Sequence[Result], seconds: float) -> None:
    summary = {"machine": gpu_card.describe(), "missing": lacking, "seconds": round(seconds), "steps": list(done)}
    write_whole(folder / "summary.json", f"{json.dumps(summary, indent=1)}\n".encode())
