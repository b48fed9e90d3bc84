"""Where numba is missing, or cannot be imported: the same numbers, and one warning where that takes long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anynorm as an

# Begins every script: `warned` holds what is warned of.
WATCH = """
import json, sys, warnings
import numpy as np
import anynorm as an

warned = []
where = []

def showwarning(message, category, filename, line, *_):
    warned.append((category.__name__, str(message)))
    where.append((filename, line))

warnings.showwarning = showwarning
warnings.simplefilter("always")
"""
BARRED = 'import sys; sys.modules["numba"] = None\n'

MOMENTS = """
import torch

an.explain(an.layer_norm, torch.ones(200, 200))
an.moments(torch.ones(200, 200), axis=0)
print(json.dumps(len(warned)))
"""

LINES = """
import torch
import anynorm_torch.nn

calls = {
    "function": lambda: an.layer_norm(torch.ones(200, 200)),
    "moments": lambda: an.moments(torch.ones(200, 200), axis=0),
    "vjp": lambda: an.vjp(an.layer_norm, torch.ones(200, 200)),
    "module": lambda: anynorm_torch.nn.LayerNorm(200)(torch.ones(200, 200)),
}
calls[sys.argv[1]]()
print(json.dumps([where, calls[sys.argv[1]].__code__.co_firstlineno]))
"""

SILENCED = """
import torch

exec(sys.argv[1])
an.layer_norm(torch.ones(200, 200))
print(json.dumps(warned))
"""

OTHERS = """
import threading
import torch

x = torch.ones(200, 200)
an.layer_norm(np.ones((200, 200), "float32"))
an.layer_norm(torch.ones(8, 64))
with an.fast_paths(False):
    an.layer_norm(x)
torch.compile(an.layer_norm, backend="eager", fullgraph=True)(x)
torch.func.vmap(an.layer_norm)(x)
an.explain(an.layer_norm, x)
before = len(warned)
together = threading.Barrier(8)

def call():
    together.wait(30)
    an.batch_norm(x)

threads = [threading.Thread(target=call) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
an.layer_norm(x)
an.layer_norm(x)
print(json.dumps([before, warned]))
"""

BROKEN = """
import torch

x = np.arange(40_000, dtype="float32").reshape(200, 200) ** 2
mine = [an.layer_norm(x).tolist()[0], an.layer_norm(torch.from_numpy(x)).tolist()[0]]
reasons = [an.explain(an.layer_norm, x).reason, an.explain(an.layer_norm, torch.from_numpy(x)).reason]
print(json.dumps([mine, reasons, warned]))
"""


def run(code: str, *arguments: str, path: str = "") -> Any:
    """Return what a script prints as JSON, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, *sys.path]))}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def others() -> Any:
    """Return how many warnings there were before there should be one, and all that came then."""
    pytest.importorskip("torch", reason="torch is not installed")
    return run(BARRED + WATCH + OTHERS)


def test_said_once(others: Any) -> None:
    """Large eager tensors without numba warn once, of several threads too: that it is slow, why, and what to do."""
    _, [[category, said]] = others
    assert category == "RuntimeWarning"
    for part in ("many times as long", "numba is not installed", 'pip install "anynorm[numba]"', "filterwarnings"):
        assert part in said


def test_not_said_elsewhere(others: Any) -> None:
    """NumPy arrays, small tensors, compiled and transformed calls, `fast_paths(False)` and `explain` do not warn."""
    before, _ = others
    assert before == 0


def test_said_of_moments() -> None:
    """Moments, which are measured on a way of their own, warn too."""
    pytest.importorskip("torch", reason="torch is not installed")
    assert run(BARRED + WATCH + MOMENTS) == 1


@pytest.mark.parametrize("call", ["function", "moments", "vjp", "module"])
def test_said_of_the_line_that_calls(call: str) -> None:
    """The warning is about the line that calls anynorm, however deep in anynorm and torch it is found out."""
    pytest.importorskip("torch", reason="torch is not installed")
    where, line = run(BARRED + WATCH + LINES, call)
    assert where == [["<string>", line]]


def test_silenced(others: Any) -> None:
    """The line that the warning gives for silence gives silence."""
    _, [[_, said]] = others
    assert run(BARRED + WATCH + SILENCED, said.split("to silence it: ")[1]) == []


def test_numba_that_cannot_be_imported(tmp_path: Path) -> None:
    """A numba that does not go with the NumPy installed counts as missing: the same numbers, and its own words."""
    pytest.importorskip("torch", reason="torch is not installed")
    words = "Numba needs NumPy 1.9 or less"
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(f"raise ImportError({words!r})")
    mine, reasons, [[_, said]] = run(WATCH + BROKEN, path=str(tmp_path))

    x = np.arange(40_000, dtype="float32").reshape(200, 200) ** 2
    with an.fast_paths(False):
        y = an.layer_norm(x)[0]
    for each in mine:
        np.testing.assert_allclose(each, y, rtol=1e-5, atol=1e-6)
    assert reasons == [f"numba cannot be imported ({ImportError(words)!r})"] * 2
    assert reasons[0] in said


def test_warm_up() -> None:
    """Without numba `warm_up` says what to install."""
    code = "import json\ntry:\n    an.warm_up()\nexcept ImportError as error:\n    print(json.dumps(str(error)))"
    said = run(f"{BARRED}import anynorm as an\n{code}")
    assert said == 'warm_up: numba is not installed (pip install "anynorm[numba]").'
