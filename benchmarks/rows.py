"""Results as a text file of one row per cell, so that a diff shows which cells changed. Measures nothing.

The file is JSON Lines. A line is an object with one key, which names the part of the results that it belongs to:
`{"pairs": {...}}` is one row of `pairs`, `{"calls": {"anynorm, NumPy arrays": 5.16}}` one entry of `calls`. Rows of
pairs are sorted by what they are, not by when they were timed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anynorm._core.files import write_whole

# What names a pair that is timed.
KEY = ("problem", "dtype", "arrays", "direction", "peer")

# The parts that are lists of rows; the others are dicts, or single values.
_LISTS = ("summary", "pairs", "left_out")
_SORTED = ("pairs", "left_out")

# Quartiles of a ratio are some percent apart.
_DIGITS = 3
# Facts about the machine are not rounded.
_EXACT = ("machine", "state")


def write(file: Path, result: dict[str, Any]) -> None:
    """Write results, in the parts that `read` returns; floats are rounded to three significant digits."""
    write_whole(file, "".join([f"{line}\n" for line in _lines(result)]).encode())


def read(file: Path) -> dict[str, Any]:
    """Return the results that a file holds.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        A line is not one object with one key.

    """
    found: dict[str, Any] = {part: [] for part in _LISTS}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        entry = json.loads(line)
        if not isinstance(entry, dict) or len(entry) != 1:
            msg = f"{file}, line {number} is not an object with one key."
            raise ValueError(msg)
        ((part, value),) = entry.items()
        if part in _LISTS:
            found[part].append(value)
        elif isinstance(value, dict):
            found.setdefault(part, {}).update(value)
        else:
            found[part] = value
    return found


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for part, value in result.items():
        kept = value if part in _EXACT else _rounded(value)
        if part in _LISTS:
            rows = sorted(kept, key=_name) if part in _SORTED else kept
        elif isinstance(kept, dict):
            rows = [{name: entry} for name, entry in kept.items()]
        else:
            rows = [kept]
        for row in rows:
            yield json.dumps({part: row}, ensure_ascii=False)


def _name(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple([str(row[name]) for name in KEY])


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.{_DIGITS}g}")
        case dict():
            return {name: _rounded(entry) for name, entry in value.items()}
        case list() | tuple():
            return [_rounded(entry) for entry in value]
        case _:
            return value
