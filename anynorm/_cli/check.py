"""`python -m anynorm check`: every installed library and norm against exact results and gradients, on hostile inputs.

Holds the measuring, the verdict and how it reads; what is tried is in `cases`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import anynorm
from anynorm._cli import libraries, show
from anynorm._cli.cases import INPUTS, Case, cases, judged_dtypes
from anynorm._cli.libraries import ArrayLibrary, Installed
from anynorm._core.arrays import FLOATING
from anynorm._reference import NumPyArray


@dataclass
class Finding:
    """One norm on one library in one dtype, over all inputs."""

    library: str
    norm: str
    dtype: str
    paths: list[str] = field(default_factory=list)  # that its inputs took
    reasons: list[str] = field(default_factory=list)  # why not faster ones
    error: float | None = None  # the largest, in units of the contract's bound; None where nothing could be measured
    input: str | None = None  # that gave the largest error, or the first that failed
    gradient_error: float | None = None  # the same of dx, dweight and dbias
    gradient_input: str | None = None
    problem: str | None = None  # what was raised

    @property
    def fine(self) -> bool:
        """Whether the contract is kept."""
        measured = (self.error, self.gradient_error)
        return self.problem is None and all(error is not None and error <= 1 for error in measured)


@dataclass
class Report:
    """What --json prints, field by field, with null for NaN and infinity; `ok` decides the exit code."""

    ok: bool
    versions: dict[str, str]  # Python, anynorm, array-api-compat, and each library
    absent: dict[str, str]  # libraries that are not installed or have no device, and why
    broken: dict[str, str]  # libraries whose import fails, and how
    notes: list[str]
    inputs: list[str]
    findings: list[Finding] = field(default_factory=list)


def check(arguments: argparse.Namespace) -> int:
    """Measure, print; return the exit code."""
    with show.progress() as progress:
        found = libraries.find(arguments.libraries, progress.step)
        report = _describe(found)
        progress.step("compute the exact results")
        by_norm = cases()
        progress.total(len(found.libraries) * len({name for name, _ in by_norm}))
        for library in found.libraries:
            report.findings += _check_library(library, by_norm, progress.step)
    report.ok = not found.broken and all(finding.fine for finding in report.findings)
    if arguments.json:
        show.as_json(asdict(report))
    else:
        _print(report)
    return 0 if report.ok else 1


def _describe(found: Installed) -> Report:
    versions = {
        "python": platform.python_version(),
        "anynorm": anynorm.__version__,
        "array-api-compat": importlib.metadata.version("array-api-compat"),
    }
    notes = []
    if "bfloat16" not in judged_dtypes():
        notes.append("bfloat16 is not checked: ml_dtypes is not installed")
    if "float64" not in judged_dtypes():
        notes.append("float64 is not checked: this platform has no wider type to compute the exact result in")
    return Report(
        ok=False,
        versions=versions | {library.name: library.version for library in found.libraries},
        absent=found.absent,
        broken=found.broken,
        notes=notes,
        inputs=[made.name for made in INPUTS],
    )


def _check_library(
    library: ArrayLibrary, by_norm: dict[tuple[str, str], list[Case]], step: Callable[[str], None]
) -> list[Finding]:
    findings = []
    for norm in dict.fromkeys([name for name, _ in by_norm]):
        step(f"{norm} on {library.name}")
        findings += [
            _check_norm(library, norm, dtype, of_norm)
            for (name, dtype), of_norm in by_norm.items()
            if name == norm and dtype in library.dtypes
        ]
    return findings


def _check_norm(library: ArrayLibrary, norm: str, dtype: str, cases: list[Case]) -> Finding:
    """Measure one norm in one dtype; the first input that raises ends it."""
    finding = Finding(library.name, norm, dtype)
    for case in cases:
        try:
            with library.setting():
                units, gradient_units = _units(library, case, finding)
        except Exception as error:  # whatever a library raises is a finding, and the others are still checked
            finding.input, finding.problem = case.input, f"{type(error).__name__}: {error}"
            break
        if finding.error is None or units > finding.error:
            finding.error, finding.input = units, case.input
        if finding.gradient_error is None or gradient_units > finding.gradient_error:
            finding.gradient_error, finding.gradient_input = gradient_units, case.input
    return finding


def _units(library: ArrayLibrary, case: Case, finding: Finding) -> tuple[float, float]:
    """Return the error of one call and that of its gradients in units of the bound, and note its path."""
    x, weight, bias = [library.of_numpy(a) for a in (case.x, case.weight, case.bias)]
    path, reason = case.norm.explain(x, weight, bias)
    if path not in finding.paths:
        finding.paths.append(path)
    if reason is not None and reason not in finding.reasons:
        finding.reasons.append(reason)
    y = _result("the result", library, case.norm(x, weight, bias), case.x)
    _, pullback = case.norm.vjp(x, weight, bias)
    gradients = [
        _result(f"d{name}", library, found, argument)
        for name, found, argument in zip(
            case.gradients._fields, pullback(library.of_numpy(case.dy)), (case.x, case.weight, case.bias), strict=True
        )
    ]
    exact = [reference for reference in case.gradients if reference is not None]
    return case.reference.units(y), max(
        [reference.units(gradient) for reference, gradient in zip(exact, gradients, strict=True)]
    )


def _result(name: str, library: ArrayLibrary, found: object, like: NumPyArray) -> NumPyArray:
    """Return a result as a NumPy array, which must have the dtype of its argument."""
    result = library.to_numpy(library.finish(found))
    if result.dtype != like.dtype:
        msg = f"{name} has dtype {result.dtype}, its argument {like.dtype}"
        raise TypeError(msg)
    return result


def _print(report: Report) -> None:
    checked = dict.fromkeys([finding.library for finding in report.findings])
    versions = [f"{name} {version}" for name, version in report.versions.items() if name not in checked]
    print(", ".join(versions))
    print(f"inputs: {', '.join(report.inputs)}")
    for note in report.notes:
        print(f"note: {note}")
    dtypes = [dtype for dtype in FLOATING if any(finding.dtype == dtype for finding in report.findings)]
    rows: dict[tuple[str, str], dict[str, Finding]] = {}
    for finding in report.findings:
        rows.setdefault((finding.library, finding.norm), {})[finding.dtype] = finding
    for what, error in (("result", "error"), ("gradients (dx, dweight, dbias)", "gradient_error")):
        show.table(
            f"Largest error against the exact {what}, in units of the contract's bound (1 is allowed)",
            ("library", "norm", *dtypes),
            [(*names, *[_cell(row.get(dtype), error) for dtype in dtypes]) for names, row in rows.items()],
        )
    show.table(
        "Libraries",
        ("library", "version", "path"),
        [(library, report.versions[library], _paths(report, library)) for library in checked],
    )
    print()
    for name, why in (report.absent | report.broken).items():
        print(f"not checked: {name}: {why}{show.OFF if name in report.broken else ''}")
    off = [finding for finding in report.findings if not finding.fine]
    for finding in off:
        for what in _complaints(finding):
            print(f"off: {finding.norm} on {finding.library}, {finding.dtype}, {what}{show.OFF}")
    print(f"{len(report.findings) - len(off)} of {len(report.findings)} are within the contract, results and gradients")


def _complaints(finding: Finding) -> list[str]:
    """Return what is wrong, and on which input."""
    if finding.problem:
        return [f"input {finding.input!r}: {finding.problem}"]
    measured = (("result", finding.error, finding.input), ("gradients", finding.gradient_error, finding.gradient_input))
    return [
        f"input {at!r}: {what} off by {show.units(error)[: -len(show.OFF)]} units"
        for what, error, at in measured
        if error is None or not error <= 1
    ]


def _paths(report: Report, library: str) -> str:
    findings = [finding for finding in report.findings if finding.library == library and finding.paths]
    taken = [(f"{finding.norm} {finding.dtype}", finding.paths, finding.reasons) for finding in findings]
    return show.paths(taken) if taken else "-"


def _cell(finding: Finding | None, error: str) -> str:
    if finding is None:
        return "-"
    return f"raised{show.OFF}" if finding.problem else show.units(getattr(finding, error))
