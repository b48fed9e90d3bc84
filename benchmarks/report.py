"""The results as tables on the screen. Measures nothing and decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from anynorm._cli.show import duration, table
from benchmarks.bounds import BOUND
from benchmarks.limit import COPY
from benchmarks.machine import DISTURBED, disturbed
from benchmarks.peers import TORCH
from benchmarks.summary import DIRECTIONS

Row = dict[str, Any]


def report(result: dict[str, Any]) -> None:
    """Print all tables: what was timed, what was left out and why, and the numbers to reach."""
    pairs: list[Row] = result["pairs"]
    _torch([row for row in pairs if row["peer"] == TORCH.name])
    _others([row for row in pairs if row["peer"] not in (TORCH.name, BOUND, COPY)])
    _copies([row for row in pairs if row["peer"] == COPY])
    _bounds([row for row in pairs if row["peer"] == BOUND])
    left_out(result["left_out"])
    numbers(result["summary"])
    lines = [[name, f"{microseconds:.2f}"] for name, microseconds in result["calls"].items()]
    if lines:
        table("Layer norm of (8, 64) float32 with weight and bias, and what it is made of", ["call", "µs"], lines)
    machine = result["machine"]
    print(f"\n{machine['processor']}, {machine['cores']} cores; {result['seconds']} s")
    count = sum([disturbed(row["others"]) for row in pairs])
    if count:
        words = f"others used more than {DISTURBED:g} of a core meanwhile, so do not trust it"
        print(f"* {words}: {count} of {len(pairs)} pairs")


def _torch(rows: Sequence[Row]) -> None:
    """Print forward, and forward and backward, side by side."""
    cells: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["problem"], row["dtype"], row["arrays"]), {})[row["direction"]] = row
    header = ["norm", "dtype", "arrays"]
    for words in DIRECTIONS.values():
        header += [words, "torch / anynorm", "quartiles"]
    lines = [[*key, *[text for name in DIRECTIONS for text in _times(cell.get(name))]] for key, cell in cells.items()]
    if lines:
        table("Times as fast as torch's own operators", header, lines)


def _others(rows: Sequence[Row]) -> None:
    """Print the peers beside torch, and how anynorm compares to each in the mean."""
    header = ["peer", "norm", "direction", "anynorm", "peer / anynorm", "quartiles"]
    rows = sorted(rows, key=lambda row: str(row["peer"]))
    lines = [[row["peer"], row["problem"], DIRECTIONS[row["direction"]], *_times(row)] for row in rows]
    if lines:
        table("Times as fast as other libraries, on NumPy arrays", header, lines)


def _copies(rows: Sequence[Row]) -> None:
    header = ["norm", "passes", "direction", "anynorm", "limit / anynorm", "quartiles", "copy by"]
    lines = [[row["problem"], str(row["passes"]), row["direction"], *_times(row), row["copy"]] for row in rows]
    if lines:
        table("The limit: the machine's copy of the same bytes", header, lines)


def _bounds(rows: Sequence[Row]) -> None:
    """Print how much of the time a copy of the same bytes would take, into results made anew."""
    header = ["norm", "dtype", "arrays", "direction", "anynorm", "copies / anynorm", "quartiles"]
    lines = [[row["problem"], row["dtype"], row["arrays"], DIRECTIONS[row["direction"]], *_times(row)] for row in rows]
    if lines:
        table("What bounds a call: copies in place of the arithmetic", header, lines)


def left_out(rows: Sequence[Row]) -> None:
    """Print what was not timed, and why; as many lines as there are reasons."""
    # A problem's name is its norm, and its shape in parentheses.
    counted = Counter([(row["peer"], row["problem"].split(" (")[0], row["direction"], row["reason"]) for row in rows])
    merged: dict[tuple[str, str], list[str]] = {}
    for (peer, norm, direction, reason), count in counted.items():
        merged.setdefault((peer, reason), []).append(f"{norm} {direction} ({count})")
    lines = [[peer, reason, ", ".join(what)] for (peer, reason), what in merged.items()]
    if lines:
        table("Not timed", ["peer", "why", "what (pairs)"], lines)


def numbers(rows: Sequence[Row], bound: str = "by copies") -> None:
    """Print the numbers to reach; `bound` says what bounds them."""
    header = ["number", "at least", "measured", "", bound, "pairs", "the worst"]
    lines = []
    for row in rows:
        figure, bound = ["-" if row[name] is None else f"{row[name]:.2f}" for name in ("figure", "bound")]
        verdict = {True: "reached", False: "MISS !", None: "incomplete"}[row["reached"]]
        pairs = f"{row['pairs']} of {row['of']}" + (f", {row['disturbed']} disturbed *" if row["disturbed"] else "")
        lines.append([row["what"], f"{row['target']:g}", figure, verdict, bound, pairs, row["worst"] or ""])
    table("Numbers to reach (against torch's own operators unless said)", header, lines)


def _times(row: Row | None) -> list[str]:
    """Return our time, the ratio, and its quartiles; a star where others disturbed it."""
    if row is None:
        return ["", "", ""]
    low, high = row["spread"]
    return [
        duration(row["ours"]),
        f"{row['ratio']:.2f}{' *' if disturbed(row['others']) else ''}",
        f"{low:.2f} to {high:.2f}",
    ]
