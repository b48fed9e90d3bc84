"""Whether a built wheel holds what it should: python tests/support/check_wheel.py WHEEL. Nothing is imported."""

from __future__ import annotations

import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]


def declared_packages() -> set[str]:
    """Return the import packages that pyproject.toml puts into the wheel."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = table["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return {PurePosixPath(package).name for package in packages}


def kernels() -> list[PurePosixPath]:
    """Return the files of CUDA source, which a package reads when it runs, where they lie in the wheel."""
    backends = ROOT / "backends"
    return sorted(PurePosixPath(file.relative_to(backends).as_posix()) for file in backends.glob("*/kernels/*.cu"))


def complaints(wheel: Path) -> list[str]:
    """Return a sentence for each thing that is in the wheel and should not be, or should be and is not."""
    with zipfile.ZipFile(wheel) as archive:
        files = [PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")]
    packages = declared_packages()
    found = {file.parts[0] for file in files}
    metadata = {name for name in found if name.startswith("anynorm-") and name.endswith(".dist-info")}
    said = [
        f"{name} lies at the top level, where it would be imported or found under that name."
        for name in sorted(found - packages - metadata)
    ]
    said += [f"{name} is listed in pyproject.toml but is not in the wheel." for name in sorted(packages - found)]
    if len(metadata) != 1:
        said.append(f"There must be one anynorm-*.dist-info, found {len(metadata)}.")
    for package in sorted(packages & found):
        needed = [PurePosixPath(package, name) for name in ("__init__.py", "py.typed")]
        needed += [file for file in kernels() if file.parts[0] == package]
        said += [f"{file} is missing." for file in needed if file not in files]
    for file in files:
        if file.suffix in (".md", ".pyc"):
            said.append(f"{file} is of no use to whoever installs the wheel.")
        if file.name == "conftest.py" or file.name.startswith("test_") or "tests" in file.parts:
            said.append(f"{file} belongs to the tests.")
    return said


def main(arguments: list[str]) -> int:
    """Check the wheel that is named; return 1 after saying what is wrong with it, 0 if nothing is."""
    if len(arguments) != 1 or not zipfile.is_zipfile(arguments[0]):
        print("Name one wheel: python tests/support/check_wheel.py WHEEL", file=sys.stderr)
        return 1
    said = complaints(Path(arguments[0]))
    for sentence in said:
        print(f"{arguments[0]}: {sentence}", file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
