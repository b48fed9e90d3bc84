"""`python -m anynorm compare`: the five norms on one batch through every library; the report and how it reads.

What is measured is in `measure`, the drawing in `picture`.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

import anynorm
from anynorm._cli import UsageError, libraries, picture, show
from anynorm._cli.data import Data, load
from anynorm._cli.libraries import ArrayLibrary, Installed
from anynorm._cli.measure import LibraryResult, NormResult, Spread, measure, spread_of
from anynorm._cli.norms import LARGEST_SET, Norm, counted, five_norms


@dataclass
class Report:
    """All that was measured; what --json prints, field by field, with null for NaN and infinity."""

    anynorm: str
    python: str
    source: str
    notes: list[str]
    dtype: str
    shape: tuple[int, ...]
    axes: list[str]
    channel_axis: int
    groups: int
    before: Spread
    libraries: dict[str, str]  # versions
    absent: dict[str, str]  # why a library was not run: not installed, no device, no such dtype
    broken: dict[str, str]  # why a library could not be imported
    norms: list[NormResult] = field(default_factory=list)
    picture: str | None = None

    @property
    def fine(self) -> bool:
        """Whether every library gave a result, and within the contract."""
        results = [result for norm in self.norms for result in norm.libraries]
        return not self.broken and not any(result.problem or (result.error or 0) > 1 for result in results)


def compare(arguments: argparse.Namespace) -> int:
    """Measure, draw, print; return the exit code."""
    target = _picture_path(arguments.picture, arguments.file)
    with show.progress() as progress:
        progress.step("read the data")
        data = load(
            arguments.file, arguments.data, arguments.array, arguments.channel_axis, arguments.groups, arguments.dtype
        )
        found = libraries.find(arguments.libraries, progress.step)
        usable = _usable(data, found)
        report = _describe(data, found, usable)
        norms = _applicable(data)
        progress.total(len(norms) * (len(usable) + 1) + 1)
        outputs = []
        for norm in norms:
            result, y = measure(norm, data, usable, progress.step)
            report.norms.append(result)
            outputs.append(y)
        progress.step("draw the picture")
        picture.draw(target, data, norms, outputs)
        report.picture = str(target)
    if arguments.json:
        show.as_json(asdict(report))
    else:
        _print(report)
    return 0 if report.fine else 1


def _picture_path(given: str, file: str | None) -> Path:
    """Return where the picture goes; a UsageError before any work if it cannot go there."""
    path = Path(given)
    if path.suffix.lower() != ".png":
        msg = f"--picture {given} must end in .png."
        raise UsageError(msg)
    if not path.parent.is_dir():
        msg = f"--picture {given}: there is no folder {path.parent}."
        raise UsageError(msg)
    if file is not None and path.exists() and Path(file).exists() and path.samefile(file):
        msg = f"--picture {given} would overwrite the file that is read. Choose another path."
        raise UsageError(msg)
    return path


def _usable(data: Data, found: Installed) -> list[ArrayLibrary]:
    """Return the libraries that have the data's dtype."""
    dtype = data.x.dtype.name
    usable = [library for library in found.libraries if dtype in library.dtypes]
    if not usable:
        msg = f"{', '.join([library.name for library in found.libraries])}: no {dtype}. Choose another --dtype."
        raise UsageError(msg)
    found.absent.update({library.name: f"no {dtype}" for library in found.libraries if library not in usable})
    return usable


def _applicable(data: Data) -> list[Norm]:
    """Return the norms that take this batch, and note why one does not."""
    norms = five_norms(data.layout)
    if norms[0].set_size(data.layout) == 1:
        data.notes.append("there is one value per channel, which batch norm refuses: it is left out")
        return norms[1:]
    if max([norm.set_size(data.layout) for norm in norms]) > LARGEST_SET:
        data.notes.append(f"errors are not measured where more than {LARGEST_SET} values share a statistic")
    return norms


def _describe(data: Data, found: Installed, usable: list[ArrayLibrary]) -> Report:
    return Report(
        anynorm=anynorm.__version__,
        python=platform.python_version(),
        source=data.source,
        notes=data.notes,
        dtype=data.x.dtype.name,
        shape=data.layout.shape,
        axes=data.layout.axis_names,
        channel_axis=data.layout.channel_axis,
        groups=data.layout.groups,
        before=spread_of(data.x, data.layout),
        libraries={library.name: library.version for library in usable},
        absent=found.absent,
        broken=found.broken,
    )


def _print(report: Report) -> None:
    names = list(report.libraries)
    print(f"anynorm {report.anynorm} on Python {report.python}")
    print(f"data: {report.source}")
    print(f"batch: {report.dtype} {report.shape} = ({', '.join(report.axes)}), {counted(report.groups, 'group')}")
    for note in report.notes:
        print(f"note: {note}")
    show.table(
        "What each norm reduces",
        ("norm", "which values share a statistic", "reduces", "statistics", "of values", "parameters"),
        [
            (r.norm, r.words, r.reduces, str(r.statistics), str(r.values_per_statistic), str(r.parameters))
            for r in report.norms
        ],
    )
    show.table(
        "Mean and spread; does a sample alone come out as it does in the batch?",
        ("", "mean", "std", "means of the channels", "batch matters (by units of the bound)"),
        [
            ("before", *_spread_cells(report.before), ""),
            *[(r.norm, *_spread_cells(r.after), _batch_cell(r)) for r in report.norms],
        ],
    )
    show.table(
        "Time of one call (median), and its ratio to NumPy's",
        ("norm", *names),
        [(r.norm, *[_time_cell(outcome) for outcome in r.libraries]) for r in report.norms],
    )
    show.table(
        "Largest error against the exact result, in units of the contract's bound (1 is allowed)",
        ("norm", *names, "between any two"),
        # Two results within the contract may lie on either side of the exact one.
        [
            (
                r.norm,
                *[show.units(outcome.error) for outcome in r.libraries],
                show.units(r.largest_difference, allowed=2),
            )
            for r in report.norms
        ],
    )
    show.table(
        "Libraries",
        ("library", "version", "path"),
        [(name, version, _paths(report, name)) for name, version in report.libraries.items()],
    )
    print()
    for name, why in (report.absent | report.broken).items():
        print(f"not run: {name}: {why}{show.OFF if name in report.broken else ''}")
    for result in report.norms:
        for outcome in result.libraries:
            if outcome.problem:
                print(f"problem: {result.norm} on {outcome.library}: {outcome.problem}{show.OFF}")
    print(f"picture: {report.picture}")


def _spread_cells(spread: Spread | None) -> tuple[str, str, str]:
    if spread is None:
        return "-", "-", "-"
    low, high = spread.channel_means
    return f"{spread.mean:.4g}", f"{spread.std:.4g}", f"{low:.4g} to {high:.4g}"


def _batch_cell(result: NormResult) -> str:
    if result.batch_matters is None:
        return "-"
    if result.batch_difference is None:
        return "yes (refused alone)"
    return f"{'yes' if result.batch_matters else 'no'} ({result.batch_difference:.2g} units)"


def _time_cell(outcome: LibraryResult) -> str:
    if outcome.problem:
        return f"failed{show.OFF}"
    ratio = "" if outcome.ratio_to_numpy is None else f" ({outcome.ratio_to_numpy:.2f}x)"
    return f"{show.duration(outcome.seconds)}{ratio}"


def _paths(report: Report, library: str) -> str:
    taken = [
        (result.norm, [outcome.path], [outcome.reason] if outcome.reason else [])
        for result in report.norms
        for outcome in result.libraries
        if outcome.library == library and outcome.path
    ]
    return show.paths(taken) if taken else "-"
