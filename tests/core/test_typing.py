"""What type checkers say of calls from user code and of backends: mypy takes what is right and refuses the rest."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import anynorm as an

ROOT = Path(__file__).parents[2]

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


# What a backend is handed, and what calls it, is typed by the library's arrays.
SEAM = """
from collections.abc import Hashable
from typing import Any

import numpy as np

from anynorm.backend import ArrayOps, Backend, Declined, Executable, Operands, Plan, Statistics

Array = np.ndarray[Any, np.dtype[Any]]

def steps(executable: Executable[Array], x: Array, statistics: Statistics) -> None:
    executable.forward(x, None, None, 1e-5, None, None, False)
    executable.apply(x, x, None, 1e-5, executable.measure(x), None)
    executable.forward("not an array", nonsense=3)  # type: ignore[call-arg, arg-type]
    executable.forward(x, None, None, "1e-5", None, None, False)  # type: ignore[arg-type]
    executable.backward(x, x, [1.0], statistics, None)  # type: ignore[arg-type]
    executable.measure([1.0, 2.0])  # type: ignore[arg-type]
    executable.meassure(x)  # type: ignore[attr-defined]
    executable.ops.sum(x, axes=0)  # type: ignore[arg-type]
    executable.ops.astype("x", x.dtype)  # type: ignore[arg-type]

class Launch(Executable[Array]):
    def measure(self, x: Array, eps: float = 0.0) -> str:  # type: ignore[override]
        return ""

class Served(Backend):
    def __init__(self) -> None:
        super().__init__(ArrayOps("numpy", np))

    def signature(
        self, x: Array, weight: Array | None, bias: Array | None, mean: Array | None, var: Array | None,
        out: Array | None, dy: Array | None = None,
    ) -> Hashable | None:
        return x.shape, x.strides

    def compile(self, plan: Plan, operands: Operands) -> Executable[Array] | Declined:
        return Launch(plan, self.ops) if plan.function == "moments" else Declined("only moments are written")

class Bare(Backend):
    def compile(self, plan: Plan) -> str:  # type: ignore[override]
        return plan.function
"""


def test_calls_type_check(tmp_path: Path, kept: Callable[[str], Path]) -> None:
    """NumPy's numbers and fractions are numbers, its integers axes; strings, lists and arrays are neither."""
    _check(PROGRAM, tmp_path, kept("mypy"))


def test_backends_type_check(tmp_path: Path, kept: Callable[[str], Path]) -> None:
    """A wrong argument at the seam between library and backend is reported, a right one is not."""
    _check(SEAM, tmp_path, kept("mypy"))


def _check(source: str, folder: Path, cache: Path) -> None:
    """Fail unless mypy's strict mode takes a program, each of its `type: ignore` being needed."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    program = folder / "program.py"
    program.write_text(source, encoding="utf-8")
    found = Path(an.__file__).parents[1]
    path = [] if found.name == "site-packages" else [str(found), str(found / "backends")]  # mypy looks there anyway
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(path)}
    arguments = ["--strict", "--config-file=", f"--cache-dir={cache}", "--follow-imports=silent"]
    mypy = [sys.executable, "-m", "mypy", *arguments, str(program)]
    done = subprocess.run(mypy, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_parameters_are_typed() -> None:
    """At most a tenth of the parameters of the library's functions are annotated as `Any`, which checks nothing."""
    files = [file for folder in ("anynorm", "backends") for file in (ROOT / folder).rglob("*.py")]
    parameters = [(file, *parameter) for file in files for parameter in _parameters(ast.parse(file.read_text("utf-8")))]
    unchecked = [f"{file.relative_to(ROOT)}: {name}" for file, name, annotation in parameters if annotation == "Any"]
    assert len(parameters) > 2000
    assert 10 * len(unchecked) <= len(parameters), unchecked


def _parameters(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the name and the annotation of every parameter in a module, of methods without the first."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            for parameter in named:
                if parameter is not None and parameter.arg not in ("self", "cls"):
                    annotation = parameter.annotation
                    yield f"{node.name}({parameter.arg})", "" if annotation is None else ast.unparse(annotation)
