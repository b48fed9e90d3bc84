"""`python -m benchmarks relu`: that its two ways give the same, one of them by torch's ReLU."""

from __future__ import annotations

from typing import Any, cast
from unittest import mock

import pytest

from benchmarks import relu

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("numba", reason="numba is not installed")


def test_both_ways_are_timed() -> None:
    """Each call has a row for each way, of two calls with the same results, of which torch's ReLU is in one."""
    found: list[str] = []
    with (
        mock.patch.object(relu, "CALLS", relu.CALLS[:1]),
        mock.patch.object(relu, "undisturbed", lambda *calls, **_: calls),
        mock.patch.object(torch, "relu_", side_effect=torch.relu_) as by_torch,
    ):
        for call, calls in relu.rows("float32", 0.0):
            one, two = cast("Any", calls)
            by_torch.reset_mock()
            first = one()
            assert not by_torch.called
            torch.testing.assert_close(first, two(), rtol=0, atol=0)
            assert by_torch.called
            found.append(call.rsplit(" ", 1)[1])
    assert found == ["forward", "evaluation", "both"]
