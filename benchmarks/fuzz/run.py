"""Watch a process that fuzzes: a call that ends it by a signal, or never ends, is a finding with its seed, too.

Counts findings by kind, prints the first of each kind as it comes, and a summary at the end.
"""

from __future__ import annotations

import json
import math
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Seconds after which a call counts as hung: the first of a kind compiles, and machines are loaded.
PATIENCE = 180.0
PATIENCE_OF_START = 300.0

# A process does so many calls at most: what is remembered of kinds starts anew, and what compilers keep is freed.
CALLS = 10_000

# Where this package is found, whoever runs it.
_ROOT = Path(__file__).parents[2]

WORKER = (sys.executable, "-m", "benchmarks.fuzz.worker")


@dataclass
class Outcome:
    """What a run has done and found."""

    calls: int = 0
    skipped: int = 0
    next_seed: int = 0
    findings: dict[str, list[int]] = field(default_factory=dict)  # the seeds of each kind


@dataclass
class Options:
    """What to fuzz, and for how long."""

    seconds: float = 60.0
    seed: int = 0
    only: str = ""
    libraries: Sequence[str] = ()
    calls: float = math.inf


def fuzz(
    options: Options, step: Callable[[str], None], say: Callable[[str], None], worker: Sequence[str] = WORKER
) -> Outcome:
    """Fuzz until time is up; `step` is told of each call, `say` of each new kind of finding."""
    outcome = Outcome(next_seed=options.seed)
    end = time.monotonic() + options.seconds
    while time.monotonic() < end and outcome.calls < options.calls:
        before = outcome.next_seed
        _watch(options, outcome, end, step, say, worker)
        if outcome.next_seed == before:
            break
    return outcome


def _watch(
    options: Options,
    outcome: Outcome,
    end: float,
    step: Callable[[str], None],
    say: Callable[[str], None],
    worker: Sequence[str],
) -> None:
    """Run one process from `outcome.next_seed` on, until it ends or has to be ended."""
    command = [*worker, "--seed", str(outcome.next_seed), "--many", str(CALLS), "--only", options.only]
    command += ["--libraries", ",".join(options.libraries), "--seconds", f"{max(end - time.monotonic(), 1):.1f}"]
    seed, started = None, False
    with _Watched(command) as watched:
        try:
            while (line := watched.events.get(timeout=PATIENCE if started else PATIENCE_OF_START)) is not None:
                try:
                    event, started = json.loads(line), True
                except json.JSONDecodeError:  # it ended while it wrote this one
                    continue
                if "end" in event or ("begin" in event and outcome.calls == options.calls):
                    outcome.next_seed = event.get("end", outcome.next_seed)
                    return
                if "begin" in event:
                    seed, outcome.next_seed = event["begin"], event["begin"] + 1
                    outcome.calls += 1
                    step(f"{outcome.calls} calls, seed {seed}, {len(outcome.findings)} kinds of findings")
                outcome.skipped += "skipped" in event
                if "finding" in event:
                    _note(outcome, event["seed"], event, say)
            what = f"the process ends with {watched.process.wait()}"
        except queue.Empty:
            what = f"hangs, or takes more than {PATIENCE:.0f} s"
        last = watched.last_words()
    if seed is None:
        msg = f"the fuzzing process does not start: {what}: {last}"
        raise RuntimeError(msg)
    _note(outcome, seed, {"finding": what, "details": last, "case": _described(seed)}, say)


class _Watched:
    """A process whose lines are read as they come, and which is ended with the block."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_ROOT)
        self.events: queue.Queue[str | None] = queue.Queue()  # None at the end
        self.errors: queue.Queue[str | None] = queue.Queue()
        streams = ((self.process.stdout, self.events), (self.process.stderr, self.errors))
        self._readers = [threading.Thread(target=_read, args=pair, daemon=True) for pair in streams]
        for reader in self._readers:
            reader.start()

    def last_words(self) -> str:
        """End the process, and return the last lines that it wrote to the standard error."""
        self.process.kill()
        return " ".join([line for line in iter(self.errors.get, None) if line.strip()][-3:])

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        for reader in self._readers:
            reader.join()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def _read(stream: Any, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _described(seed: int) -> str:
    from benchmarks.fuzz.draw import draw

    return str(draw(seed))


def _note(outcome: Outcome, seed: int, event: dict[str, Any], say: Callable[[str], None]) -> None:
    seeds = outcome.findings.setdefault(event["finding"], [])
    seeds.append(seed)
    if len(seeds) == 1:
        say(f"FINDING {event['finding']}\n  {event['details']}\n  {event['case']}\n")


def report(outcome: Outcome, seconds: float) -> str:
    """Return the summary."""
    lines = [
        f"{outcome.calls} calls in {seconds:.0f} s; of {outcome.skipped} nothing was judged, as what was drawn cannot "
        f"be made, or is wrong where refusals have no rule; the next seed is {outcome.next_seed}; "
        f"{len(outcome.findings)} kinds of findings"
    ]
    for kind, seeds in sorted(outcome.findings.items(), key=lambda array: -len(array[1])):
        lines.append(f"  {len(seeds)} × {kind}: --case {seeds[0]}")
    return "\n".join(lines)
