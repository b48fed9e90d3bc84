"""How results reach the screen: tables by rich on a terminal, aligned plain text elsewhere, progress on stderr.

Decides nothing and measures nothing.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

# Ends a number that is off, also where there is no colour to say so.
OFF = " !"


# Seconds between two lines of progress, for what takes minutes.
QUIET = 15.0


class Steps:
    """A progress bar that moves by one with each named step; or, where none is seen, a line now and then if wanted."""

    def __init__(self, bar: Progress, *, lines: bool) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None)
        self._lines = lines and bar.disable
        self._said = time.monotonic()

    def step(self, name: str) -> None:
        """Say what begins now; what was said before is over."""
        first = not self._bar.tasks[0].description
        self._bar.update(self._task, description=name, advance=0 if first else 1)
        if self._lines and time.monotonic() - self._said >= QUIET:
            self._said = time.monotonic()
            print(f"... {name}", file=sys.stderr, flush=True)

    def total(self, further: int) -> None:
        """Say how many steps will follow the one that runs."""
        self._bar.update(self._task, total=self._bar.tasks[0].completed + 1 + further)


@contextmanager
def progress(*, lines: bool = False) -> Iterator[Steps]:
    """Show progress on stderr while the block runs: a bar on a terminal; elsewhere nothing, or `lines`."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield Steps(bar, lines=lines)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is of words and whose other columns hold what belongs to them."""
    if sys.stdout.isatty():
        _rich_table(title, header, rows)
        return
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    print(f"\n{title}")
    for line in (header, *rows):
        print("  ".join([cell.ljust(width) for cell, width in zip(line, widths, strict=True)]).rstrip())


def _rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    grid = Table(title=title, title_justify="left", title_style="bold")
    for column, name in enumerate(header):
        # Folded, never cut: a narrow terminal loses nothing. Sentences before words.
        grid.add_column(name, overflow="fold", no_wrap=not any(" " in row[column] for row in rows))
    for row in rows:
        grid.add_row(*[Text(cell, style="bold red" if cell.endswith(OFF) else "") for cell in row])
    console = Console()
    console.print()
    console.print(grid)


def units(value: float | None, allowed: float = 1) -> str:
    """Return an error in units of the bound, marked where it is more than allowed."""
    if value is None:
        return "-"
    text = f"{value:.2f}" if value < 1000 else f"{value:.1e}"
    return text if value <= allowed else text + OFF


def paths(taken: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> str:
    """Return which paths calls took, of (what was called, its paths, why no faster ones): first the most common."""
    callers: dict[str, list[str]] = {}
    for caller, ways, reasons in taken:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        callers.setdefault(f"{' and '.join(ways)}{why}", []).append(caller)
    most, *others = sorted(callers, key=lambda way: -len(callers[way]))
    return "; ".join([most, *[f"{way}: {', '.join(callers[way])}" for way in others]])


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it."""
    if seconds is None:
        return "-"
    for scale, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def as_json(report: dict[str, Any]) -> None:
    """Print a report as JSON, which has no NaN and no infinity: null stands for them."""
    print(json.dumps(_finite(report), indent=2))


def _finite(value: object) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
