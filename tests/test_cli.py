"""`python -m anynorm`: what compare and check report, what they exit with, and how they fail.

The norms' own accuracy on hostile inputs is tested elsewhere; here it is that the command line tells it truly.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import anynorm
from anynorm import _calls
from anynorm.__main__ import main
from anynorm._cli import cases, check, compare, data, libraries, measure, picture
from anynorm._cli.norms import Layout, five_norms
from anynorm.layer_norm import layer_norm_call

NORMS = ["batch_norm", "layer_norm", "instance_norm", "group_norm", "rms_norm"]
BATCH = (4, 6, 5, 2)  # samples, channels, height, width

Run = Callable[..., tuple[int, str, str]]
Json = dict[str, Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as error:  # argparse's way out
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def batch(tmp_path: Path) -> Any:
    """Return a batch of unequal channels, and leave it in the folder as batch.npy."""
    scale = np.arange(1, 7).reshape(6, 1, 1)
    x = (np.random.default_rng(0).standard_normal(BATCH) * scale + 10 * scale).astype(np.float32)
    np.save(tmp_path / "batch.npy", x)
    return x


def compared(run: Run, *arguments: str, expect: int = 0) -> Json:
    """Run compare on NumPy alone and return its JSON."""
    code, out, err = run("compare", *arguments, "--libraries", "numpy", "--json")
    assert (code, err) == (expect, "")
    report: Json = json.loads(out)
    return report


def fields(cls: Any) -> set[str]:
    """Return the names of a dataclass's fields, which are the documented keys."""
    return {field.name for field in dataclasses.fields(cls)}


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with this one's path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def all_are_right(report: Json) -> set[str]:
    """Raise unless every norm was checked on every library and keeps the contract; return the libraries."""
    off = [finding for finding in report["findings"] if finding["problem"] or finding["error"] > 1]
    assert (off, report["broken"], report["ok"]) == ([], {}, True)
    checked = {(its["library"], its["norm"]) for its in report["findings"]}
    assert checked == {(name, norm) for name in list(report["versions"])[3:] for norm in NORMS}
    return {name for name, _ in checked}


def test_check_finds_every_installed_library_within_the_contract(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is installed keeps the contract on the input of large means, in every dtype; no library is left out."""
    # JAX and Dask take 20 s each for all inputs. The other inputs are test_hostile.py's as well.
    monkeypatch.setattr(cases, "INPUTS", [its for its in cases.INPUTS if its.name == "far from zero"])
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
    assert {its["dtype"] for its in report["findings"]} >= {"float16", "float32", "float64"}
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
        (its["norm"], its["dtype"]) for its in json.loads(out)["findings"] if its["error"] is None or its["error"] > 1
    }
    assert code == 1
    assert {("layer_norm", "float32"), ("layer_norm", "float64")} <= off
    assert {norm for norm, _ in off} == {"layer_norm"}
    code, out, _ = run("check", "--libraries", "numpy")
    assert code == 1
    assert "off: layer_norm on numpy, float32, input" in out


def test_check_goes_on_after_a_norm_that_raises(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a norm raises is reported with its input, the others are still checked, and the exit code is 1."""
    plant(monkeypatch, _raises)
    code, out, _ = run("check", "--libraries", "numpy", "--json")
    problems = {its["norm"]: its["problem"] for its in json.loads(out)["findings"]}
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
    findings = {(its["norm"], its["dtype"]): its for its in json.loads(out)["findings"]}
    assert code == 1
    assert findings["rms_norm", "float32"]["gradient_error"] > 1 >= findings["rms_norm", "float32"]["error"]
    assert all(its["gradient_error"] <= 1 for (norm, _), its in findings.items() if norm != "rms_norm")
    code, out, _ = run("check")
    assert code == 1
    assert "off: rms_norm on numpy, float32, input 'ordinary': gradients off by" in out


def test_check_reports_libraries_that_are_absent_or_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is not installed is listed; one whose import fails is off."""

    def absent() -> libraries.ArrayLibrary:
        raise ModuleNotFoundError(name="torch")

    monkeypatch.setattr(libraries, "_MAKERS", {"numpy": libraries._MAKERS["numpy"], "torch": absent, "dask": _raises})
    code, out, _ = run("check", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["absent"] == {"torch": "not installed"}
    assert report["broken"] == {"dask": "its import failed: RuntimeError: out of order"}
    monkeypatch.setattr(libraries, "_MAKERS", {"numpy": libraries._MAKERS["numpy"], "torch": absent})
    code, out, _ = run("check")
    assert code == 0
    assert "not checked: torch: not installed" in out


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]) -> None:
    """Put a fault in the place of layer_norm, known to explain and vjp as layer_norm is."""
    monkeypatch.setitem(_calls._CALLS, fault, layer_norm_call)
    for name in ("anynorm.explain", "anynorm.vjp"):
        module = sys.modules[name]
        monkeypatch.setattr(module, "NORMS", (*_calls.NORMS, fault))
    monkeypatch.setattr(anynorm, "layer_norm", fault)


def _raises(*_: Any, **__: Any) -> Any:
    msg = "out of order"
    raise RuntimeError(msg)


def test_compare_shows_the_default_photos_on_two_libraries(run: Run, tmp_path: Path) -> None:
    """Without a file, photos that ship with scikit-learn go through every norm, and the default picture is written."""
    pytest.importorskip("array_api_strict")
    code, out, err = run("compare", "--libraries", "numpy,array-api-strict", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["shape"] == [16, 12, 64, 64]
    assert report["before"]["channel_means"][1] > 50  # real offsets
    assert [its["norm"] for its in report["norms"]] == NORMS
    assert [its["batch_matters"] for its in report["norms"]] == [True, False, False, False, False]
    for norm in report["norms"]:
        assert 0 < norm["largest_difference"] <= 2
        assert all(0 < its["error"] <= 1 for its in norm["libraries"])
    assert (tmp_path / "anynorm-compare.png").is_file()


@pytest.mark.usefixtures("batch")
def test_compare_documents_its_keys(run: Run) -> None:
    """The JSON has the fields of the dataclasses, at every level."""
    report = compared(run, "batch.npy")
    assert set(report) == fields(compare.Report)
    assert set(report["before"]) == fields(measure.Spread)
    for norm in report["norms"]:
        assert set(norm) == fields(measure.NormResult)
        assert all(set(its) == fields(measure.LibraryResult) for its in norm["libraries"])


@pytest.mark.usefixtures("batch")
def test_compare_counts_what_each_norm_shares(run: Run) -> None:
    """Statistics, values per statistic and parameters are those of each norm's definition."""
    report = compared(run, "batch.npy", "--groups", "3")
    counts = {
        its["norm"]: (its["reduces"], its["statistics"], its["values_per_statistic"], its["parameters"])
        for its in report["norms"]
    }
    assert counts == {
        "batch_norm": ("N, H, W", 6, 40, 12),
        "layer_norm": ("C, H, W", 4, 60, 120),
        "instance_norm": ("H, W", 24, 10, 12),
        "group_norm": ("C/3, H, W", 12, 20, 12),
        "rms_norm": ("C, H, W", 4, 60, 60),
    }


def test_compare_measures_mean_and_spread(run: Run, batch: Any) -> None:
    """Mean, spread and the channels' means, before and after, are those that NumPy finds in double precision."""
    report = compared(run, "batch.npy")
    layer = next(its for its in report["norms"] if its["norm"] == "layer_norm")
    y = anynorm.layer_norm(batch, axis=(1, 2, 3))
    for measured, a in ((report["before"], batch.astype(float)), (layer["after"], y.astype(float))):
        means = a.mean(axis=(0, 2, 3))
        expected = [a.mean(), a.std(), means.min(), means.max()]
        assert [measured["mean"], measured["std"], *measured["channel_means"]] == pytest.approx(expected, abs=1e-12)


def test_compare_tells_a_library_that_fails(run: Run, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm that raises is reported, the others are shown, and the exit code is 1."""
    plant(monkeypatch, _raises)
    assert batch.size
    report = compared(run, "batch.npy", expect=1)
    problems = {its["norm"]: its["libraries"][0]["problem"] for its in report["norms"]}
    assert problems == {norm: "RuntimeError: out of order" if norm == "layer_norm" else None for norm in NORMS}
    code, out, _ = run("compare", "batch.npy", "--libraries", "numpy")
    assert code == 1
    assert "problem: layer_norm on numpy: RuntimeError: out of order !" in out


def test_compare_tells_a_library_that_differs(run: Run, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm that is wrong on one library shows in its error and in the difference, and the exit code is 1."""
    pytest.importorskip("array_api_strict")
    right = anynorm.layer_norm

    def wrong(x: Any, *arguments: Any, **options: Any) -> Any:
        y = right(x, *arguments, **options)
        return y if isinstance(x, np.ndarray) else y * 1.001

    plant(monkeypatch, wrong)
    assert batch.size
    code, out, _ = run("compare", "batch.npy", "--libraries", "numpy,array_api_strict", "--json")
    layer = json.loads(out)["norms"][1]
    assert code == 1
    assert layer["largest_difference"] > 100
    assert [its["error"] > 100 for its in layer["libraries"]] == [False, True]


@pytest.mark.usefixtures("batch")
def test_compare_prints_plain_text_where_there_is_no_terminal(run: Run) -> None:
    """All is said in plain ASCII lines without trailing blanks, and nothing in escape codes or boxes."""
    code, out, err = run("compare", "batch.npy", "--libraries", "numpy")
    assert (code, err) == (0, "")
    assert out.isascii()
    assert "\x1b" not in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]
    for wanted in (*NORMS, "--channel-axis is guessed to be 1", "picture: anynorm-compare.png", "C/3, H, W"):
        assert wanted in out


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


def files(folder: Path) -> dict[str, tuple[int, ...]]:
    """Write a file of every kind, and return the shape that each is taken as."""
    numbers = np.random.default_rng(1)
    colours = numbers.integers(0, 256, (9, 8, 3)).astype(np.uint8)
    arrays: dict[str, tuple[Any, tuple[int, ...]]] = {
        "table.npy": (numbers.standard_normal((12, 6)), (12, 6)),
        "image.npy": (colours, (1, 9, 8, 3)),
        "images.npy": (numbers.integers(0, 256, (3, 9, 8, 3)).astype(np.uint8), (3, 9, 8, 3)),
        "sequences.npy": (numbers.standard_normal((5, 6, 7)).astype(np.float32), (5, 6, 7)),
        "volumes.npy": (numbers.standard_normal((2, 4, 3, 5, 6)).astype(np.float16), (2, 4, 3, 5, 6)),
        "bigendian.npy": (numbers.standard_normal((12, 6)).astype(">f4"), (12, 6)),
        "longdouble.npy": (numbers.standard_normal((12, 6)).astype(np.longdouble), (12, 6)),
        "integers.npy": (numbers.integers(-9, 9, (12, 6)), (12, 6)),
        "booleans.npy": (numbers.integers(0, 2, (12, 6)).astype(bool), (12, 6)),
    }
    for name, (array, _) in arrays.items():
        np.save(folder / name, array)
    np.savez(folder / "one.npz", x=colours)
    np.savez(folder / "two.npz", x=colours, y=numbers.standard_normal((12, 6)))
    colour = Image.fromarray(colours)
    for name in ("photo.png", "photo.jpg", "photo.bmp"):
        colour.save(folder / name)
    colour.convert("L").save(folder / "grey.png")
    colour.quantize(16).save(folder / "palette.png")
    colour.convert("1").save(folder / "bits.png")
    shapes = {name: shape for name, (_, shape) in arrays.items()}
    photos = dict.fromkeys(("one.npz", "two.npz", "photo.png", "photo.jpg", "photo.bmp", "palette.png"), (1, 9, 8, 3))
    return shapes | photos | dict.fromkeys(("grey.png", "bits.png"), (1, 9, 8, 1))


def test_compare_reads_every_kind_of_file(run: Run, tmp_path: Path) -> None:
    """A .npy, an .npz and an image go through every norm, and the report says what they were taken as."""
    shapes = files(tmp_path)
    for name in ("volumes.npy", "two.npz", "photo.jpg"):
        report = compared(run, name, *(["--array", "x"] if name == "two.npz" else []))
        assert report["source"].startswith(name)
        assert tuple(report["shape"]) == shapes[name]
        assert [its["norm"] for its in report["norms"]] == NORMS


def test_every_kind_of_data_becomes_a_batch(tmp_path: Path) -> None:
    """Shape, dtype and whether a cast is said are right for every kind of array and image."""
    kept = {"table.npy": "float64", "longdouble.npy": "float64", "volumes.npy": "float16"}
    for name, shape in files(tmp_path).items():
        loaded = data.load(str(tmp_path / name), None, "x" if name == "two.npz" else None, None, None, None)
        assert (name, loaded.x.shape, loaded.x.dtype.name) == (name, shape, kept.get(name, "float32"))
        said = any(note.startswith("cast from") for note in loaded.notes)
        assert (name, said) == (name, name not in {"table.npy", "sequences.npy", "volumes.npy", "bigendian.npy"})


def test_the_data_is_what_the_file_holds(tmp_path: Path) -> None:
    """Casting and laying out change no value."""
    files(tmp_path)
    for name in ("integers.npy", "bigendian.npy", "booleans.npy", "volumes.npy"):
        loaded = data.load(str(tmp_path / name), None, None, None, None, None)
        assert loaded.x.dtype.isnative
        np.testing.assert_array_equal(loaded.x, np.load(tmp_path / name))
    loaded = data.load(str(tmp_path / "photo.png"), None, None, None, None, None)
    np.testing.assert_array_equal(loaded.x[0], np.load(tmp_path / "image.npy"))
    assert (loaded.channel_names, loaded.layout.channel_axis) == (["R", "G", "B"], 3)
    rows_as_channels = data.load(str(tmp_path / "photo.png"), None, None, 0, None, None)
    assert (rows_as_channels.layout.channels, len(rows_as_channels.channel_names)) == (9, 9)


@pytest.mark.parametrize(
    ("shape", "given", "laid_out", "channel_axis"),
    [
        pytest.param((5, 7), None, (5, 7), 1, id="table"),
        pytest.param((5, 7), 0, (7, 5), 1, id="table of features by samples"),
        pytest.param((5, 7, 3), None, (1, 5, 7, 3), 3, id="image"),
        pytest.param((3, 5, 7), 0, (1, 3, 5, 7), 1, id="image with channels first"),
        pytest.param((5, 7, 9), None, (5, 7, 9), 1, id="sequences"),
        pytest.param((5, 7, 9), -1, (5, 7, 9), 2, id="sequences with channels last"),
        pytest.param((5, 3, 7, 9), None, (5, 3, 7, 9), 1, id="images with channels first"),
        pytest.param((5, 7, 9, 3), None, (5, 7, 9, 3), 3, id="images with channels last"),
    ],
)
def test_axes_are_guessed_or_given(
    tmp_path: Path, shape: tuple[int, ...], given: int | None, laid_out: tuple[int, ...], channel_axis: int
) -> None:
    """The channel axis is guessed as images and tables have it, which is said, or is what was given."""
    np.save(tmp_path / "x.npy", np.zeros(shape, np.float32))
    loaded = data.load(str(tmp_path / "x.npy"), None, None, given, None, None)
    assert (loaded.layout.shape, loaded.layout.channel_axis) == (laid_out, channel_axis)
    assert any("guessed" in note for note in loaded.notes) == (given is None)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(64, 32), (48, 16), (12, 4), (9, 3), (10, 2), (7, 1), (32, 16), (3, 1)],
    ids=lambda value: str(value),
)
def test_groups_are_the_largest_usual_divisor_below_the_channels(tmp_path: Path, channels: int, groups: int) -> None:
    """Without --groups, the largest of the usual numbers that divides the channels and is fewer is taken."""
    np.save(tmp_path / "x.npy", np.zeros((2, channels), np.float32))
    assert data.load(str(tmp_path / "x.npy"), None, None, None, None, None).layout.groups == groups


def test_a_large_file_is_sampled(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit, evenly spaced rows are read, first and last included, and that is said."""
    monkeypatch.setattr(data, "MOST_ELEMENTS", 60)
    x = np.arange(400, dtype=np.float32).reshape(40, 10)
    np.save(tmp_path / "x.npy", x)
    loaded = data.load(str(tmp_path / "x.npy"), None, None, None, None, None)
    np.testing.assert_array_equal(loaded.x, x[[0, 7, 15, 23, 31, 39]])
    assert "the array has 400 elements: 6 evenly spaced of its 40 rows on axis 0 are used" in loaded.notes
    np.save(tmp_path / "wide.npy", np.zeros((2, 100), np.float32))
    code, _, err = run("compare", "wide.npy", "--libraries", "numpy")
    assert code == 2
    assert "one row of the array" in err


def test_nan_and_infinity_are_counted(run: Run, batch: Any, tmp_path: Path) -> None:
    """Data with NaN still runs, says how many there are, and the JSON stays within the standard."""
    batch[0, 0, 0, :2] = np.nan
    batch[1, 2, 3, 0] = np.inf
    np.save(tmp_path / "holes.npy", batch)
    report = compared(run, "holes.npy")
    assert any(note.startswith("NaN: 2, infinite: 1 of the values") for note in report["notes"])
    assert all(its["libraries"][0]["error"] <= 1 for its in report["norms"])
    finite = batch[np.isfinite(batch)].astype(float)
    assert report["before"]["mean"] == pytest.approx(finite.mean(), rel=1e-12)
    np.save(tmp_path / "nothing.npy", np.full((4, 6), np.nan, np.float32))
    report = compared(run, "nothing.npy")
    assert report["before"] == {"mean": None, "std": None, "channel_means": [None, None]}


def test_dtype_is_cast_to(run: Run, batch: Any) -> None:
    """--dtype computes in another dtype and says so; what overflows there is counted."""
    assert batch.size
    report = compared(run, "batch.npy", "--dtype", "float16")
    assert report["dtype"] == "float16"
    assert "cast from float32 to float16" in report["notes"]
    np.save("large.npy", batch * 1e4)
    assert any("infinite: " in note for note in compared(run, "large.npy", "--dtype", "float16")["notes"])


def test_one_value_per_channel_leaves_batch_norm_out(run: Run, tmp_path: Path) -> None:
    """Where batch norm would refuse, it is left out with a note; where it refuses single samples, the batch matters."""
    np.save(tmp_path / "one.npy", np.ones((1, 5), np.float32))
    report = compared(run, "one.npy")
    assert [its["norm"] for its in report["norms"]] == NORMS[1:]
    assert any("batch norm refuses" in note for note in report["notes"])
    assert [its["batch_matters"] for its in report["norms"]] == [None] * 4
    np.save(tmp_path / "table.npy", np.eye(5, dtype=np.float32))
    batch_norm = compared(run, "table.npy")["norms"][0]
    assert (batch_norm["batch_matters"], batch_norm["batch_difference"]) == (True, None)


WRONG = {
    "a file that is not there": (["nowhere.npy"], "there is no file nowhere.npy"),
    "a folder": (["folder"], "is not a file"),
    "an unknown type": (["text.txt"], "is of no known type"),
    "a broken npy": (["broken.npy"], "is not a valid .npy file"),
    "a broken npz": (["broken.npz"], "is not a valid .npz file"),
    "a truncated npy": (["short.npy"], "is not a valid .npy file"),
    "an npz named npy": (["zip.npy"], "is an .npz file by its content"),
    "an npy named npz": (["array.npz"], "is an .npy file by its content"),
    "Python objects": (["objects.npy"], "holds Python objects"),
    "Python objects in npz": (["objects.npz"], "holds Python objects"),
    "complex numbers": (["complex.npy"], "has dtype complex128, which holds no real numbers"),
    "text": (["strings.npy"], "holds no real numbers"),
    "a single number": (["scalar.npy"], "At least two axes are needed"),
    "a vector": (["vector.npy"], "At least two axes are needed"),
    "an empty array": (["empty.npy"], "is empty"),
    "several arrays": (["two.npz"], "Choose one with --array: x, y"),
    "no such array": (["two.npz", "--array", "z"], "holds no array 'z'"),
    "an array of npy": (["table.npy", "--array", "x"], "--array names an array of an .npz file"),
    "file and data": (["table.npy", "--data", "digits"], "give FILE or --data, not both"),
    "an axis out of range": (["table.npy", "--channel-axis", "2"], "--channel-axis 2 is out of range"),
    "groups that do not divide": (["table.npy", "--groups", "5"], "--groups 5 does not divide the 6 channels"),
    "no groups": (["table.npy", "--groups", "0"], "--groups 0 does not divide"),
    "an unknown library": (["table.npy", "--libraries", "numpy,nunpy"], "there is no array library 'nunpy'"),
    "no picture file": (["table.npy", "--picture", "picture.jpg"], "must end in .png"),
    "no picture folder": (["table.npy", "--picture", "nowhere/a.png"], "there is no folder nowhere"),
    "the input as picture": (["photo.png", "--picture", "photo.png"], "would overwrite the file that is read"),
    "an unknown dtype": (["table.npy", "--dtype", "int8"], "invalid choice: 'int8'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_sentence_and_exit_code_2(run: Run, tmp_path: Path, case: str) -> None:
    """What cannot run says why on stderr, without a traceback, and nothing on stdout; no picture is written."""
    files(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("text.txt", "broken.npy", "broken.npz"):
        (tmp_path / name).write_text("nothing of the kind")
    (tmp_path / "short.npy").write_bytes((tmp_path / "table.npy").read_bytes()[:200])
    shutil.copy(tmp_path / "one.npz", tmp_path / "zip.npy")
    shutil.copy(tmp_path / "table.npy", tmp_path / "array.npz")
    np.save(tmp_path / "objects.npy", np.asarray([[{}]]))
    np.savez(tmp_path / "objects.npz", x=np.asarray([[{}]]))
    np.save(tmp_path / "complex.npy", np.ones((2, 2), complex))
    np.save(tmp_path / "strings.npy", np.asarray([["a"]]))
    np.save(tmp_path / "scalar.npy", np.float32(1))
    np.save(tmp_path / "vector.npy", np.ones(3))
    np.save(tmp_path / "empty.npy", np.ones((0, 3)))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    arguments, message = WRONG[case]
    code, out, err = run("compare", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_wanted_library_must_be_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library asked for by name that is not installed is wrong usage, in both commands."""

    def absent() -> libraries.ArrayLibrary:
        raise ModuleNotFoundError(name="torch")

    monkeypatch.setattr(libraries, "_MAKERS", {"numpy": libraries._MAKERS["numpy"], "torch": absent})
    for arguments in (["compare", "--libraries", "numpy,torch"], ["check", "--libraries", "torch"]):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert "torch: not installed" in err


def test_the_picture_colours_one_set_of_each_norm(run: Run, batch: Any, tmp_path: Path) -> None:
    """The picture is a PNG of readable size in which five blocks, one per norm, have a coloured set."""
    assert batch.size
    compared(run, "batch.npy", "--picture", "drawn.png")
    with Image.open(tmp_path / "drawn.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    assert 1500 <= width <= 4000
    assert 700 <= height <= 2000
    orange = tuple(bytes.fromhex(picture.STRONG["right"][1:]))
    columns = np.flatnonzero((pixels == orange).all(axis=-1).any(axis=0))
    assert 1 + np.count_nonzero(np.diff(columns) > 40) == 5
    lower = pixels[height // 2 :].astype(int)  # the histograms: 12 % of it is coloured, 2 % would be their outlines
    assert np.mean(lower.max(axis=-1) - lower.min(axis=-1) > 60) > 0.05


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_the_coloured_set_is_the_one_that_is_normalized_together(batch: Any, groups: int) -> None:
    """Changing the first value of the first sample and channel changes what is coloured with it, and nothing else."""
    layout = Layout(BATCH, channel_axis=1, groups=groups)
    changed = batch.copy()
    changed[0, 0, 0, 0] += 100
    for norm in five_norms(layout):
        differs = (norm(batch) != norm(changed)).any(axis=(2, 3))
        sets = [[picture.set_of(norm.name, n, c, 6 // groups) for c in range(6)] for n in range(4)]
        assert differs.tolist() == [[not any(its) for its in row] for row in sets]
        assert len({its for row in sets for its in row}) == norm.statistics


@pytest.mark.parametrize("scale", [1e-40, 1e300], ids=["subnormal", "near overflow"])
def test_a_picture_is_drawn_whatever_the_scale(run: Run, tmp_path: Path, scale: float) -> None:
    """Extreme values are measured and drawn without a warning."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((6, 4, 5)) * scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = compared(run, "x.npy")
    assert all(its["libraries"][0]["error"] is None or its["libraries"][0]["error"] <= 1 for its in report["norms"])
    assert (tmp_path / "anynorm-compare.png").is_file()


def test_digits_are_there_too(run: Run) -> None:
    """--data digits is scikit-learn's handwritten digits, as images of one channel."""
    report = compared(run, "--data", "digits")
    assert report["shape"] == [1797, 1, 8, 8]
    assert report["before"]["channel_means"] == [report["before"]["mean"]] * 2


@pytest.mark.parametrize(
    ("module", "command", "name"),
    [
        ("numpy", "check", "NumPy"),
        ("rich", "check", "rich"),
        ("matplotlib", "compare", "matplotlib"),
        ("sklearn", "compare", "scikit-learn"),
    ],
)
def test_a_missing_extra_is_one_sentence(tmp_path: Path, module: str, command: str, name: str) -> None:
    """Without a package of the extra, the command says what to install, with exit code 2 and no traceback."""
    program = (
        f"import sys; sys.modules[{module!r}] = None; from anynorm.__main__ import main; sys.exit(main([{command!r}]))"
    )
    done = process("-c", program, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"python -m anynorm {command} needs {name}, which is not installed: pip install 'anynorm[cli]'\n"
    )


def test_help_and_version_need_no_extra(tmp_path: Path) -> None:
    """Without arguments there is help; help, version and `import anynorm` import no array library and no command."""
    program = (
        "import sys; from anynorm.__main__ import main; code = main([]); "
        "print([name for name in ('numpy', 'rich', 'matplotlib', 'anynorm._cli.compare') if name in sys.modules], code)"
    )
    done = process("-c", program, cwd=tmp_path)
    assert done.stdout.endswith("[] 0\n")
    assert "compare" in done.stdout
    assert "check" in done.stdout
    imported = process("-c", "import anynorm, sys; print('anynorm._cli' in sys.modules)", cwd=tmp_path)
    assert imported.stdout == "False\n"
    version = process("-m", "anynorm", "--version", cwd=tmp_path)
    assert (version.stdout, version.returncode) == (f"anynorm {anynorm.__version__}\n", 0)
