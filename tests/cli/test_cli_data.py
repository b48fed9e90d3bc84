"""What `python -m anynorm compare` takes data to be: files of every kind, axes, groups, samples of large files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import NORMS, Run, compared, files, run, undrawn

from anynorm._cli import data

__all__ = ["run", "undrawn"]  # fixtures


@pytest.mark.usefixtures("undrawn")
def test_compare_reads_every_kind_of_file(run: Run, tmp_path: Path) -> None:
    """A .npy, an .npz and an image go through every norm, and the report says what they were taken as."""
    shapes = files(tmp_path)
    for name in ("volumes.npy", "two.npz", "photo.jpg"):
        report = compared(run, name, *(["--array", "x"] if name == "two.npz" else []))
        assert report["source"].startswith(name)
        assert tuple(report["shape"]) == shapes[name]
        assert [value["norm"] for value in report["norms"]] == NORMS


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
