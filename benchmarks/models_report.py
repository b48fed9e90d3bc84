"""The times of whole models as tables, on the screen and in docs. Measures nothing and decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anynorm._cli.show import duration, table
from anynorm._core.files import write_whole
from benchmarks.machine import disturbed
from benchmarks.models import ordered
from benchmarks.report import left_out, numbers

Row = dict[str, Any]

HEAD = ("model", "step", "", "norms taken", "torch", "in norms", "anynorm", "torch / anynorm", "quartiles")
_START, _END = "<!-- models -->", "<!-- /models -->"


def report(result: dict[str, Any]) -> None:
    """Print the tables: each model's steps, what was left out and why, and the numbers to reach."""
    if result["pairs"]:
        lines = [_line(row) for row in ordered(result["pairs"])]
        table(
            "Steps of whole models, with torch's norm layers and with anynorm's", (*HEAD, "rounds", "left out"), lines
        )
    left_out(result["left_out"])
    numbers(result["summary"], "if norms took no time")
    print(f"\n{_machine(result['machine'])}; {result['seconds']} s")
    if any(disturbed(row["others"]) for row in result["pairs"]):
        print("* other processes kept it waiting in too many rounds, so do not trust it")


def write(file: Path, result: dict[str, Any]) -> None:
    """Put the table of the steps into a Markdown file, between its two marks."""
    text = file.read_text(encoding="utf-8")
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    write_whole(file, f"{before}{_START}\n{markdown(result)}\n{_END}{after}".encode())


def markdown(result: dict[str, Any]) -> str:
    """Return the table of the steps, and the numbers to reach, as Markdown."""
    steps = _markdown(HEAD, [_line(row)[: len(HEAD)] for row in ordered(result["pairs"])])
    head = ("number", "at least", "measured", "if norms took no time", "the lowest")
    found = [
        [row["what"], f"{row['target']:g}", _figure(row["figure"]), _figure(row["bound"]), row["worst"] or "–"]
        for row in result["summary"]
    ]
    machine = result["machine"]
    versions = ", ".join([f"{name} {version}" for name, version in machine["packages"].items() if version])
    return f"{steps}\n\n{_markdown(head, found)}\n\n{_machine(machine)}; {versions}."


def _machine(machine: dict[str, Any]) -> str:
    cores = "one core, CPU time" if machine["cores"] == 1 else f"{machine['cores']} cores"
    return f"{machine['processor']}, {cores}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)])


def _figure(value: float | None) -> str:
    """Return a number in the digits that a file keeps, so that it is the same when read."""
    return "–" if value is None else f"{value:#.3g}"


def _line(row: Row) -> list[str]:
    low, high = row["spread"]
    return [
        row["problem"],
        row["direction"],
        row["peer"],
        f"{row['taken']} of {row['norms']}",
        duration(row["other"]),
        "" if row["share"] is None else f"{100 * row['share']:.3g} %",
        duration(row["ours"]),
        f"{_figure(row['ratio'])}{' *' if disturbed(row['others']) else ''}",
        f"{_figure(low)} to {_figure(high)}",
        str(row["rounds"]),
        str(row["left_out"]),
    ]
