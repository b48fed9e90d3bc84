"""`python -m anynorm check`: what it reports, and that it finds a norm that is wrong, raises or is not there.

The norms' own accuracy on hostile inputs is tested elsewhere; here it is that the command line tells it truly.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import NORMS, Json, Run, fields, plant, process, raises, run

import anynorm
from anynorm.__main__ import main
from anynorm._cli import cases, check, libraries

__all__ = ["run"]  # a fixture


def all_are_right(report: Json) -> set[str]:
    """Raise unless every norm was checked on every library and keeps the contract; return the libraries."""
    off = [finding for finding in report["findings"] if finding["problem"] or finding["error"] > 1]
    assert (off, report["broken"], report["ok"]) == ([], {}, True)
    checked = {(value["library"], value["norm"]) for value in report["findings"]}
    assert checked == {(name, norm) for name in list(report["versions"])[3:] for norm in NORMS}
    return {name for name, _ in checked}


def half_of_them() -> dict[tuple[str, str], list[cases.Case]]:
    """Return the cases of each norm in two dtypes, in turns, of which every library has one."""
    made = cases.cases()
    norms, dtypes = [list(dict.fromkeys(names)) for names in zip(*made, strict=True)]
    return {
        (norm, value): made[norm, value] for norm, value in made if (norms.index(norm) + dtypes.index(value)) % 2 == 0
    }


def test_check_finds_every_installed_library_within_the_contract(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is installed keeps the contract on the input of large means, in every dtype; no library is left out."""
    # JAX and Dask take 20 s each for all inputs and dtypes. The others are test_hostile.py's as well.
    monkeypatch.setattr(cases, "INPUTS", [tensor for tensor in cases.INPUTS if tensor.name == "far from zero"])
    monkeypatch.setattr(check, "cases", half_of_them)
    code, out, err = run("check", "--json")
    assert (code, err) == (0, "")
    checked = all_are_right(json.loads(out))
    for name in ("numpy", "torch", "jax", "dask", "array_api_strict"):
        assert (name in checked) == (importlib.util.find_spec(name) is not None)


def test_check_as_a_program(tmp_path: Path) -> None:
    """On every input there is the contract is kept, on stdout there is JSON and nothing else, and no progress shows."""
    names = [name for name in ("numpy", "torch", "array_api_strict") if importlib.util.find_spec(name) is not None]
    done = process("-m", "anynorm", "check", "--json", "--libraries", ",".join(names), cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"python", "anynorm", "array-api-compat", "numpy"} <= set(report["versions"])
    assert len(report["inputs"]) == len(cases.INPUTS)
    assert all_are_right(report) == set(names)


def test_check_documents_its_keys_and_reaches_its_inputs(run: Run) -> None:
    """The JSON has the fields of the dataclasses, every dtype was judged, and errors are real roundings."""
    code, out, _ = run("check", "--libraries", "numpy", "--json")
    report = json.loads(out)
    assert code == 0
    assert set(report) == fields(check.Report)
    assert all(set(finding) == fields(check.Finding) for finding in report["findings"])
    assert {value["dtype"] for value in report["findings"]} >= {"float16", "float32", "float64"}
    assert all(0 < finding["error"] <= 1 for finding in report["findings"])
    assert all(finding["input"] in report["inputs"] and finding["paths"] for finding in report["findings"])


@pytest.mark.parametrize("off_by", [1e-5, float("nan")], ids=["a little", "nan"])
def test_check_catches_a_norm_that_is_wrong(run: Run, monkeypatch: pytest.MonkeyPatch, off_by: float) -> None:
    """A norm that is off is named, the others are still checked, and the exit code is 1."""
    right = anynorm.layer_norm

    def wrong(x: Any, *arguments: Any, **options: Any) -> Any:
        return right(x, *arguments, **options) * x.dtype.type(1 + off_by)

    plant(monkeypatch, wrong)
    code, out, _ = run("check", "--libraries", "numpy", "--json")
    off = {
        (load["norm"], load["dtype"])
        for load in json.loads(out)["findings"]
        if load["error"] is None or load["error"] > 1
    }
    assert code == 1
    assert {("layer_norm", "float32"), ("layer_norm", "float64")} <= off
    assert {norm for norm, _ in off} == {"layer_norm"}
    code, out, _ = run("check", "--libraries", "numpy")
    assert code == 1
    assert "off: layer_norm on numpy, float32, input" in out


def test_check_goes_on_after_a_norm_that_raises(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a norm raises is reported with its input, the others are still checked, and the exit code is 1."""
    plant(monkeypatch, raises)
    code, out, _ = run("check", "--libraries", "numpy", "--json")
    problems = {load["norm"]: load["problem"] for load in json.loads(out)["findings"]}
    assert code == 1
    assert problems == {norm: "RuntimeError: out of order" if norm == "layer_norm" else None for norm in NORMS}
    assert "RuntimeError: out of order !" in run("check", "--libraries", "numpy")[1]


@pytest.mark.parametrize("wrong", ["x", "weight", "bias"])
def test_check_catches_a_wrong_gradient(run: Run, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """A gradient of one argument that is a little off is off in the report, and the results beside it are fine."""
    vjp = anynorm.vjp

    def off(function: Any, x: Any, *args: Any, **options: Any) -> Any:
        y, pullback = vjp(function, x, *args, **options)
        if function is not anynorm.rms_norm:
            return y, pullback
        return y, lambda dy: (found := pullback(dy))._replace(**{wrong: getattr(found, wrong) * 1.001})

    monkeypatch.setattr(anynorm, "vjp", off)
    monkeypatch.setattr(libraries, "_MAKERS", {"numpy": libraries._MAKERS["numpy"]})
    monkeypatch.setattr(cases, "INPUTS", cases.INPUTS[:1])
    code, out, _ = run("check", "--json")
    findings = {(load["norm"], load["dtype"]): load for load in json.loads(out)["findings"]}
    assert code == 1
    assert findings["rms_norm", "float32"]["gradient_error"] > 1 >= findings["rms_norm", "float32"]["error"]
    assert all(finding["gradient_error"] <= 1 for (norm, _), finding in findings.items() if norm != "rms_norm")
    code, out, _ = run("check")
    assert code == 1
    assert "off: rms_norm on numpy, float32, input 'ordinary': gradients off by" in out


def test_check_reports_libraries_that_are_absent_or_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is not installed is listed; one whose import fails is off."""

    def absent() -> libraries.ArrayLibrary:
        raise ModuleNotFoundError(name="torch")

    monkeypatch.setattr(libraries, "_MAKERS", {"numpy": libraries._MAKERS["numpy"], "torch": absent, "dask": raises})
    code, out, _ = run("check", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["absent"] == {"torch": "not installed"}
    assert report["broken"] == {"dask": "its import failed: RuntimeError: out of order"}
    monkeypatch.setattr(libraries, "_MAKERS", {"numpy": libraries._MAKERS["numpy"], "torch": absent})
    code, out, _ = run("check")
    assert code == 0
    assert "not checked: torch: not installed" in out


def test_tables_fold_on_a_narrow_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of 80 columns the tables are drawn with lines, and nothing is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = run("check", "--libraries", "numpy")
    assert "┃" in out
    assert "…" not in out
    assert all(norm in out for norm in NORMS)
    drawn = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in out.splitlines()]
    assert max(len(line) for line in drawn if line.startswith(("┃", "│"))) <= 80


def test_reader_that_has_gone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A report that nobody reads, as with `| true`, ends quietly."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["check", "--libraries", "numpy", "--json"]) == 1
    assert not capsys.readouterr().err
