"""python -m benchmarks bits: hashes of the results of a grid of calls, to compare two versions bit by bit.

`--write FILE` writes a line per call: its name, and a hash of dtype, shape, strides and bytes of all that it returns,
or the error that it raises, or what `explain` says of it. `--against FILE` compares with such a file and prints what
differs. The exit code is 1 where something does, and where two runs of one call return other bits: the first has one
thread, the second two, and finds what the first has put into caches.

The grid calls public names alone. So this file, run beside another version, writes the results of that version:

    PYTHONPATH=OLD:OLD/backends python benchmarks/bits.py --write old.txt
    python -m benchmarks bits --against old.txt

Files are comparable if they come from one machine and one set of installed packages: the last bits of the operators
of other libraries depend on the processor.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PARTS = ("numpy", "torch", "strict", "errors", "numpy_alone", "jax", "dask")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--write", type=Path, metavar="FILE", help="write a line per call")
    parser.add_argument("--against", type=Path, metavar="FILE", help="say what differs from such a file")
    parser.add_argument("--part", action="append", choices=PARTS, help="this part of the grid alone")
    parser.add_argument("--only", metavar="PATTERN", default="", help="only calls whose name matches")


def run(options: argparse.Namespace) -> int:
    """Hash the grid, write it and compare it; return the exit code."""
    parts = options.part or list(PARTS)
    found: dict[str, str] = {}
    for part in parts:
        found |= _of_process(part, options.only)
    if options.write:
        options.write.write_text("".join([f"{name}\t{value}\n" for name, value in found.items()]))
    unstable = [name for name, value in found.items() if value.startswith("DIFFERS")]
    for name in unstable:
        print(f"the second call returns other bits: {name}")
    differing = _compare(found, options.against, parts, options.only) if options.against else 0
    print(f"{len(found)} calls{f', {differing} other than in {options.against}' if options.against else ''}")
    return 1 if differing or unstable else 0


def _of_process(part: str, only: str) -> dict[str, str]:
    """Run a part of the grid in a process of its own and return its lines."""
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    if not environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{root / 'backends'}"
    with tempfile.TemporaryFile("w+") as file:
        command = [sys.executable, __file__, "--raw", part, "--only", only]
        subprocess.run(command, env=environment, stdout=file, check=True)
        file.seek(0)
        rows = [line.rstrip("\n").split("\t") for line in file]
    return dict(rows)


def _compare(found: dict[str, str], file: Path, parts: list[str], only: str) -> int:
    """Print what differs from a file, of the calls that were chosen, and return how many calls that is."""
    rows = [line.split("\t") for line in file.read_text().splitlines()]
    before = {name: value for name, value in rows if name.partition(" ")[0] in parts and re.search(only, name)}
    differing = [name for name in before | found if before.get(name) != found.get(name)]
    for name in differing:
        print(f"{name}\n    before: {before.get(name, 'no such call')}\n    now:    {found.get(name, 'no such call')}")
    return len(differing)


def _print_part(part: str, only: str) -> None:
    from benchmarks.grid.case import Case, lines

    if part == "numpy_alone":
        sys.modules["numba"] = None  # type: ignore[assignment]  # as if it were not installed

    def cases() -> Iterator[Case]:
        from benchmarks.grid import parts

        yield from filter(lambda case: re.search(only, case.name), parts.of(part))

    for name, value in lines(cases()):
        print(name, value, sep="\t")


def main() -> int:
    """Run this file as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--raw", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raw:
        _print_part(options.raw, options.only)
        return 0
    return run(options)


if __name__ == "__main__":
    # PYTHONPATH says which anynorm is measured. Once that is imported, this file's own package may be.
    sys.path.pop(0)
    import anynorm  # noqa: F401

    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(main())
