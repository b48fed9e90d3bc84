"""Compiling ahead: what `warm_up` accepts, and what it leaves for the first call."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import anynorm as an

SCRIPT = """
import sys
import anynorm as an
assert "numba" not in sys.modules
an.warm_up(["float32"], gradients=False)
from anynorm_numba import _compile
before = len(_compile._built)
import numpy as np
x = np.ones((4, 8), dtype="float32")
an.layer_norm(x)
an.batch_norm(x)
print(before, len(_compile._built) - before)
"""


@pytest.mark.parametrize(
    ("dtypes", "error", "said"),
    [
        pytest.param("float32", TypeError, "list of names", id="a-string"),
        pytest.param(3, TypeError, "list of names", id="a-number"),
        pytest.param(["float31"], ValueError, "float31", id="unknown"),
        pytest.param([3], ValueError, "3", id="no-name"),
        pytest.param([np.zeros(2)], ValueError, r"got array of shape \(2,\).* Name them as strings", id="an-array"),
        pytest.param([np.dtype("int32")], ValueError, "int32", id="integers"),
    ],
)
def test_wrong_dtypes(dtypes: Any, error: type[Exception], said: str) -> None:
    """What names no dtypes is refused before anything is compiled, and the error says what came."""
    with pytest.raises(error, match=said):
        an.warm_up(dtypes)


def test_dtypes_of_numpy() -> None:
    """NumPy's own dtypes name what is to be compiled, as strings do."""
    pytest.importorskip("numba")
    an.warm_up([np.dtype("float32"), "float32"], gradients=False)  # type: ignore[list-item]


def test_first_calls_compile_nothing_more() -> None:
    """After a warm-up the forward passes of its dtypes find every kernel compiled."""
    pytest.importorskip("numba")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    built, more = map(int, done.stdout.split())
    assert built >= 2
    assert more == 0
