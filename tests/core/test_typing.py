"""What type checkers say of calls from user code: mypy takes what the functions take, and refuses what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import anynorm as an

# Each line either passes mypy's strict mode or is expected not to: an unused `type: ignore` is an error as well.
PROGRAM = """
from fractions import Fraction
from typing import assert_type

import numpy as np

import anynorm as an

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

def numbers(x: Array, i: np.int64, f: np.float32, d: np.float64) -> None:
    for eps in (1e-5, 0, f, d, i, Fraction(1, 10)):
        assert_type(an.layer_norm(x, eps=eps), Array)
    assert_type(an.rms_norm(x, eps=f), Array)
    assert_type(an.group_norm(x, 2, eps=i), Array)
    assert_type(an.instance_norm(x, eps=f), Array)
    assert_type(an.batch_norm(x, eps=Fraction(1, 10)), Array)
    an.moments(x, axis=0).var(f)
    an.update_running(x, x, an.moments(x, axis=0), momentum=f, correction=i)
    an.update_running(x, x, an.moments(x, axis=0), momentum=x)

def no_numbers(x: Array) -> None:
    an.layer_norm(x, eps="1e-5")  # type: ignore[arg-type]
    an.layer_norm(x, eps=None)  # type: ignore[arg-type]
    an.layer_norm(x, eps=1j)  # type: ignore[arg-type]
    an.rms_norm(x, eps=x)  # type: ignore[arg-type]
    an.group_norm(x, 2, eps=[1e-5])  # type: ignore[arg-type]
    an.batch_norm(x, eps="1e-5")  # type: ignore[call-overload]
    an.instance_norm(x, eps=x)  # type: ignore[call-overload]
    an.moments(x).var("1")  # type: ignore[arg-type]
    an.update_running(x, x, an.moments(x, axis=0), momentum="0.1")  # type: ignore[arg-type]
    an.update_running(x, x, an.moments(x, axis=0), correction=1.0)  # type: ignore[arg-type]

def axes(x: Array, i: np.int64) -> None:
    an.layer_norm(x, axis=i)
    an.rms_norm(x, axis=(i, 1))
    an.moments(x, axis=(i,))
    an.group_norm(x, i, channel_axis=i, batch_axis=(0, i))
    an.instance_norm(x, channel_axis=i, batch_axis=None)
    an.batch_norm(x, channel_axis=i)

def no_axes(x: Array) -> None:
    an.layer_norm(x, axis=1.0)  # type: ignore[arg-type]
    an.layer_norm(x, axis="1")  # type: ignore[arg-type]
    an.layer_norm(x, axis=[1])  # type: ignore[arg-type]
    an.group_norm(x, 2.0)  # type: ignore[arg-type]
    an.group_norm(x, 2, channel_axis=None)  # type: ignore[arg-type]
    an.batch_norm(x, channel_axis=(1,))  # type: ignore[call-overload]

def moments(x: Array, flag: bool) -> None:
    for function in (an.batch_norm, an.instance_norm):
        function(x)
    assert_type(an.batch_norm(x), Array)
    assert_type(an.batch_norm(x, mean=x, var=x), Array)
    assert_type(an.batch_norm(x, return_moments=False), Array)
    assert_type(an.batch_norm(x, return_moments=True), tuple[Array, an.Moments])
    assert_type(an.batch_norm(x, return_moments=flag), Array | tuple[Array, an.Moments])
    assert_type(an.instance_norm(x, return_moments=True), tuple[Array, an.Moments])
    assert_type(an.instance_norm(x, return_moments=flag), Array | tuple[Array, an.Moments])
    an.batch_norm(x, mean=x, var=x, return_moments=True)  # type: ignore[call-overload]
"""


def test_calls_type_check(tmp_path: Path) -> None:
    """NumPy's numbers and fractions are numbers, its integers axes; strings, lists and arrays are neither."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    found = Path(an.__file__).parents[1]
    path = [] if found.name == "site-packages" else [str(found), str(found / "backends")]  # mypy looks there anyway
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(path)}
    arguments = ["--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}", "--follow-imports=silent"]
    mypy = [sys.executable, "-m", "mypy", *arguments, str(program)]
    done = subprocess.run(mypy, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
