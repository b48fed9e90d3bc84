"""`python -m anynorm compare`: what it reports of arrays and libraries. Files and pictures have tests of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import NORMS, Run, batch, compared, fields, plant, raises, run, undrawn

import anynorm
from anynorm._cli import compare, measure

__all__ = ["batch", "run", "undrawn"]  # fixtures


def test_compare_shows_the_default_photos_on_two_libraries(run: Run, tmp_path: Path) -> None:
    """Without a file, photos that ship with scikit-learn go through every norm, and the default picture is written."""
    pytest.importorskip("array_api_strict")
    code, out, err = run("compare", "--libraries", "numpy,array-api-strict", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["shape"] == [16, 12, 64, 64]
    assert report["before"]["channel_means"][1] > 50  # real offsets
    assert [value["norm"] for value in report["norms"]] == NORMS
    assert [value["batch_matters"] for value in report["norms"]] == [True, False, False, False, False]
    for norm in report["norms"]:
        assert 0 < norm["largest_difference"] <= 2
        assert all(0 < value["error"] <= 1 for value in norm["libraries"])
    assert (tmp_path / "anynorm-compare.png").is_file()


@pytest.mark.usefixtures("batch", "undrawn")
def test_compare_documents_its_keys(run: Run) -> None:
    """The JSON has the fields of the dataclasses, at every level."""
    report = compared(run, "batch.npy")
    assert set(report) == fields(compare.Report)
    assert set(report["before"]) == fields(measure.Spread)
    for norm in report["norms"]:
        assert set(norm) == fields(measure.NormResult)
        assert all(set(value) == fields(measure.LibraryResult) for value in norm["libraries"])


@pytest.mark.usefixtures("batch", "undrawn")
def test_compare_counts_what_each_norm_shares(run: Run) -> None:
    """Statistics, values per statistic and parameters are those of each norm's definition."""
    report = compared(run, "batch.npy", "--groups", "3")
    counts = {
        value["norm"]: (value["reduces"], value["statistics"], value["values_per_statistic"], value["parameters"])
        for value in report["norms"]
    }
    assert counts == {
        "batch_norm": ("N, H, W", 6, 40, 12),
        "layer_norm": ("C, H, W", 4, 60, 120),
        "instance_norm": ("H, W", 24, 10, 12),
        "group_norm": ("C/3, H, W", 12, 20, 12),
        "rms_norm": ("C, H, W", 4, 60, 60),
    }


@pytest.mark.usefixtures("undrawn")
def test_compare_measures_mean_and_spread(run: Run, batch: Any) -> None:
    """Mean, spread and the channels' means, before and after, are those that NumPy finds in double precision."""
    report = compared(run, "batch.npy")
    layer = next(value for value in report["norms"] if value["norm"] == "layer_norm")
    y = anynorm.layer_norm(batch, axis=(1, 2, 3))
    for measured, a in ((report["before"], batch.astype(float)), (layer["after"], y.astype(float))):
        means = a.mean(axis=(0, 2, 3))
        expected = [a.mean(), a.std(), means.min(), means.max()]
        assert [measured["mean"], measured["std"], *measured["channel_means"]] == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("undrawn")
def test_compare_tells_a_library_that_fails(run: Run, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm that raises is reported, the others are shown, and the exit code is 1."""
    plant(monkeypatch, raises)
    assert batch.size
    report = compared(run, "batch.npy", expect=1)
    problems = {value["norm"]: value["libraries"][0]["problem"] for value in report["norms"]}
    assert problems == {norm: "RuntimeError: out of order" if norm == "layer_norm" else None for norm in NORMS}
    code, out, _ = run("compare", "batch.npy", "--libraries", "numpy")
    assert code == 1
    assert "problem: layer_norm on numpy: RuntimeError: out of order !" in out


@pytest.mark.usefixtures("undrawn")
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
    assert [value["error"] > 100 for value in layer["libraries"]] == [False, True]


@pytest.mark.usefixtures("batch", "undrawn")
def test_compare_prints_plain_text_where_there_is_no_terminal(run: Run) -> None:
    """All is said in plain ASCII lines without trailing blanks, and nothing in escape codes or boxes."""
    code, out, err = run("compare", "batch.npy", "--libraries", "numpy")
    assert (code, err) == (0, "")
    assert out.isascii()
    assert "\x1b" not in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]
    for wanted in (*NORMS, "--channel-axis is guessed to be 1", "picture: anynorm-compare.png", "C/3, H, W"):
        assert wanted in out


def test_nan_and_infinity_are_counted(run: Run, batch: Any, tmp_path: Path) -> None:
    """Data with NaN still runs, says how many there are, and the JSON stays within the standard."""
    batch[0, 0, 0, :2] = np.nan
    batch[1, 2, 3, 0] = np.inf
    np.save(tmp_path / "holes.npy", batch)
    report = compared(run, "holes.npy")
    assert any(note.startswith("NaN: 2, infinite: 1 of the values") for note in report["notes"])
    assert all(value["libraries"][0]["error"] <= 1 for value in report["norms"])
    finite = batch[np.isfinite(batch)].astype(float)
    assert report["before"]["mean"] == pytest.approx(finite.mean(), rel=1e-12)
    np.save(tmp_path / "nothing.npy", np.full((4, 6), np.nan, np.float32))
    report = compared(run, "nothing.npy")
    assert report["before"] == {"mean": None, "std": None, "channel_means": [None, None]}


@pytest.mark.usefixtures("undrawn")
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
    assert [value["norm"] for value in report["norms"]] == NORMS[1:]
    assert any("batch norm refuses" in note for note in report["notes"])
    assert [value["batch_matters"] for value in report["norms"]] == [None] * 4
    np.save(tmp_path / "table.npy", np.eye(5, dtype=np.float32))
    batch_norm = compared(run, "table.npy")["norms"][0]
    assert (batch_norm["batch_matters"], batch_norm["batch_difference"]) == (True, None)


@pytest.mark.usefixtures("undrawn")
def test_digits_are_there_too(run: Run) -> None:
    """--data digits is scikit-learn's handwritten digits, as images of one channel."""
    report = compared(run, "--data", "digits")
    assert report["shape"] == [1797, 1, 8, 8]
    assert report["before"]["channel_means"] == [report["before"]["mean"]] * 2
