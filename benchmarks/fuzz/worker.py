"""Make and judge one call after the other, in a process that may crash: what it does is said before it is done.

Writes a line of JSON for each event to the standard output: the seed that begins, what was found, and the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.fuzz.case import Case, FindingError, fail
from benchmarks.fuzz.draw import LIBRARIES, REFUSING, draw
from benchmarks.fuzz.libraries import home
from benchmarks.fuzz.trial import SkippedError, Trial, Way, an
from benchmarks.fuzz.wrong import refusals

# The words with which a refusal may begin.
_OURS = ("{0}: ", "pullback of {0}: ", "vjp: ")


def way_of(case: Case) -> Way:
    """Return the function that makes and judges a call."""
    from benchmarks.fuzz.ways import ANY
    from benchmarks.fuzz.ways_files import FILES
    from benchmarks.fuzz.ways_lazy import LAZY

    if case.library == "torch":
        from benchmarks.fuzz.ways_torch import TORCH

        return {**ANY, **TORCH}[case.way]
    return {**ANY, **LAZY, **FILES}[case.way]


def judge(case: Case) -> None:
    """Make a call; a FindingError tells what is wrong with what it does, a SkippedError that nothing was judged."""
    expected = refusals(case)
    if expected and case.way not in REFUSING:
        raise SkippedError
    try:
        with warnings.catch_warnings(), home(case.library).context(), an.fast_paths(case.fast):
            warnings.simplefilter("ignore")
            way_of(case)(Trial(case))
    except (FindingError, SkippedError):
        raise
    except Exception as error:
        if type(error) in expected and str(error).startswith(tuple([our.format(case.function) for our in _OURS])):
            return
        what = "refused in other words" if expected else "a right call raises"
        fail(f"{what}: {type(error).__name__}: {_kind_of(str(error))}", _where(error))
    if expected:
        fail("a wrong call is accepted", ", ".join(sorted([error.__name__ for error in expected])))


def _kind_of(message: str) -> str:
    """Return the first line of a message without its numbers."""
    without = re.sub(r"[-+]?\d[\d.e+-]*", "#", message.partition("\n")[0])
    return re.sub(r"#(, #)+|\w+Tensor", "#", without)[:160]


def _where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    last = "; ".join([f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames[-4:]])
    return f"{error!s:.300} ({last})"


def run_one(seed: int, wanted: Callable[[Case], bool] = lambda _: True) -> dict[str, Any] | None:
    """Draw and judge one call; return what was found, or None. Raises SkippedError where nothing was tried."""
    case = draw(seed)
    if not wanted(case):
        raise SkippedError
    try:
        judge(case)
    except FindingError as finding:
        return {
            "finding": f"{finding.kind}, on {case.library} by {case.way}",
            "details": str(finding),
            "case": str(case),
        }
    return None


def wanted_by(only: str, libraries: Iterable[str]) -> Callable[[Case], bool]:
    """Return which calls are wanted: those of some libraries whose description an expression matches."""
    pattern, libraries = re.compile(only), frozenset(libraries)
    return lambda case: case.library in libraries and (not only or pattern.search(str(case)) is not None)


def work(options: argparse.Namespace, say: Callable[..., None]) -> None:
    """Judge calls until time is up or as many as were asked for are done."""
    wanted = wanted_by(options.only, options.libraries.split(","))
    end = time.monotonic() + options.seconds
    for library in options.libraries.split(","):
        home(library)
    say(ready=True)
    for seed in range(options.seed, options.seed + options.many):
        if time.monotonic() > end:
            say(end=seed)
            return
        case = draw(seed)
        if not wanted(case):
            continue
        say(begin=seed)
        try:
            found = run_one(seed)
        except SkippedError:
            say(skipped=seed)
            continue
        if found:
            say(seed=seed, **found)
    say(end=options.seed + options.many)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", default="")
    parser.add_argument("--libraries", default=",".join(LIBRARIES))
    return parser.parse_args(arguments)


def main() -> None:
    """Work, with what libraries print on the standard error."""
    options = parsed()
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as events:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def say(**event: Any) -> None:
            events.write(json.dumps(event) + "\n")

        with contextlib.suppress(BrokenPipeError):
            work(options, say)


if __name__ == "__main__":
    main()
