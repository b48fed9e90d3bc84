"""The results of the GPU benchmark as tables on the screen. Measures nothing and decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anynorm._cli.show import duration, table
from benchmarks.gpu_peers import NOBODY
from benchmarks.gpu_summary import MICROSECONDS, PERCENT, RATIO
from benchmarks.limit import COPY
from benchmarks.report import left_out

Row = dict[str, Any]


def report(result: dict[str, Any]) -> None:
    """Print all tables: what was timed, what was left out and why, and the numbers to reach."""
    pairs: list[Row] = result["pairs"]
    _copies([row for row in pairs if row["peer"] == COPY])
    _peers([row for row in pairs if row["peer"] not in (COPY, NOBODY)])
    left_out(result["left_out"])
    _summary(result["summary"])
    for library, speed in result["copy_gb_per_second"].items():
        print(f"A copy by {library}: {speed:.0f} GB/s, read and written bytes counted.")
    machine = result["machine"]
    print(f"{machine['card'] or 'unknown card'}, driver {machine['driver'] or 'unknown'}; {result['seconds']} s")


def figure(value: float, unit: str) -> str:
    """Return a number of the summary with its unit."""
    return {PERCENT: f"{value:.1f} %", RATIO: f"{value:.2f} x", MICROSECONDS: f"{value:.1f} µs"}[unit]


def _copies(rows: Sequence[Row]) -> None:
    header = ["norm", "dtype", "arrays", "direction", "anynorm", "GB/s", "% of a copy", "quartiles"]
    lines = []
    for row in rows:
        low, high = (100 * value for value in row["spread"])
        lines.append(
            [
                *[row[name] for name in ("problem", "dtype", "arrays", "direction")],
                duration(row["ours"]),
                f"{row['gb_per_second']:.0f}",
                f"{row['percent']:.1f}",
                f"{low:.1f} to {high:.1f}",
            ]
        )
    if lines:
        table("Percent of a copy of as many bytes on the device", header, lines)


def _peers(rows: Sequence[Row]) -> None:
    header = ["peer", "norm", "dtype", "direction", "anynorm", "peer / anynorm", "quartiles"]
    lines = []
    for row in sorted(rows, key=lambda row: str(row["peer"])):
        low, high = row["spread"]
        names = [row[name] for name in ("peer", "problem", "dtype", "direction")]
        lines.append([*names, duration(row["ours"]), f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}"])
    if lines:
        table("Times as fast as others", header, lines)


def _summary(rows: Sequence[Row]) -> None:
    header = ["number", "target", "measured", "", "cells", "the worst"]
    lines = []
    for row in rows:
        measured = "-" if row["figure"] is None else figure(row["figure"], row["unit"])
        verdict = {True: "reached", False: "MISS !", None: "incomplete"}[row["reached"]]
        worst = row["worst"]
        words = worst and f"{worst['problem']} {worst['dtype']}, {worst['arrays']}, {worst['direction']}"
        target = f"{row['bound']} {row['target']:g}"
        lines.append([row["what"], target, measured, verdict, f"{row['pairs']} of {row['of']}", words or ""])
    table("Numbers to reach", header, lines)
