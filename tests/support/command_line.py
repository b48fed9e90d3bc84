"""Running `python -m anynorm` on small data, and faults to plant in what it runs. No test is in here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import anynorm
from anynorm import _functions
from anynorm.__main__ import main
from anynorm._cli import picture

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


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no picture be drawn, which takes longer than all else that compare does with a small batch."""
    monkeypatch.setattr(picture, "draw", lambda *_: None)


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


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]) -> None:
    """Put a fault in the place of layer_norm, known to explain and vjp as layer_norm is."""
    monkeypatch.setattr(fault, "__wrapped__", vars(anynorm.layer_norm)["__wrapped__"], raising=False)
    for name in ("anynorm.explain", "anynorm.vjp"):
        module = sys.modules[name]
        monkeypatch.setattr(module, "NORMS", (*_functions.NORMS, fault))
    monkeypatch.setattr(anynorm, "layer_norm", fault)


def raises(*_: Any, **__: Any) -> Any:
    """Raise in the place of whatever is called."""
    msg = "out of order"
    raise RuntimeError(msg)


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
