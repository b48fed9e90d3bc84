"""How many Python functions of anynorm a later call of a known signature enters: most of the cost of a small call."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import anynorm as an

torch = pytest.importorskip("torch")
pytest.importorskip("numba")

X = np.arange(512, dtype="float32").reshape(8, 64)
DY = np.ascontiguousarray(X[::-1])


def _folders() -> tuple[str, ...]:
    """Return where the packages of ours lie that were imported, in a checkout or installed."""
    names = [name for name in sys.modules if name == "anynorm" or (name.startswith("anynorm_") and "." not in name)]
    return tuple([f"{Path(str(sys.modules[name].__file__)).parent}{os.sep}" for name in names])


def _entered(call: Callable[[], object]) -> list[str]:
    """Return the functions of ours that a call enters, in order."""
    found: list[str] = []
    folders = _folders()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(folders):
            found.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}")

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def _numpy_forward() -> Callable[[], object]:
    return lambda: an.layer_norm(X)


def _numpy_pullback() -> Callable[[], object]:
    _, pullback = an.vjp(an.layer_norm, X)
    return lambda: pullback(DY)


def _torch_forward() -> Callable[[], object]:
    x = torch.from_numpy(X.copy()).requires_grad_()
    return lambda: an.layer_norm(x)


def _torch_backward() -> Callable[[], object]:
    y: Any = _torch_forward()()
    dy = torch.from_numpy(DY)
    return lambda: y.backward(dy)


@pytest.mark.parametrize(
    ("prepare", "first", "limit"),
    [
        pytest.param(_numpy_forward, "layer_norm.layer_norm", 8, id="NumPy forward"),
        pytest.param(_numpy_pullback, "vjp.pullback_of.<locals>.pullback", 15, id="NumPy pullback"),
        pytest.param(_torch_forward, "layer_norm.layer_norm", 14, id="torch forward, requires grad"),
        pytest.param(_torch_backward, "_autograd._Normalized.backward", 10, id="torch backward"),
    ],
)
def test_functions_entered(prepare: Callable[[], Callable[[], object]], first: str, limit: int) -> None:
    """A later call of a signature enters few functions of ours, among them the one that was called."""
    for _ in range(3):
        prepare()()
    call = prepare()
    found = _entered(call)
    assert first in found
    assert len(found) <= limit, found
