"""The picture that `python -m anynorm compare` draws."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import BATCH, Run, batch, compared, run
from PIL import Image

from anynorm._cli import picture
from anynorm._cli.norms import Layout, five_norms

__all__ = ["batch", "run"]  # fixtures


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
        assert differs.tolist() == [[not any(value) for value in row] for row in sets]
        assert len({value for row in sets for value in row}) == norm.statistics


@pytest.mark.parametrize("scale", [1e-40, 1e300], ids=["subnormal", "near overflow"])
def test_a_picture_is_drawn_whatever_the_scale(run: Run, tmp_path: Path, scale: float) -> None:
    """Extreme values are measured and drawn without a warning."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((6, 4, 5)) * scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = compared(run, "x.npy")
    assert all(
        value["libraries"][0]["error"] is None or value["libraries"][0]["error"] <= 1 for value in report["norms"]
    )
    assert (tmp_path / "anynorm-compare.png").is_file()
