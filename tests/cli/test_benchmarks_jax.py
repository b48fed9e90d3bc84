"""`python -m benchmarks jax`: that one of its two ways is the engine and the other is not."""

from __future__ import annotations

from unittest import mock

import pytest

from benchmarks import jax_eager

pytest.importorskip("jax", reason="jax is not installed")
pytest.importorskip("numba", reason="numba is not installed")


def test_both_ways_are_timed() -> None:
    """Of each pair one call is XLA's and one the engine's, and every call has a row forward and with its pullback."""
    from anynorm_jax import _compiled, _launch

    engine, xla = _launch.ForwardLaunch.forward, _compiled.Compiled.forward
    with (
        mock.patch.object(jax_eager, "CALLS", jax_eager.CALLS[:1]),
        mock.patch.object(_launch.ForwardLaunch, "forward", autospec=True, side_effect=engine) as by_engine,
        mock.patch.object(_compiled.Compiled, "forward", autospec=True, side_effect=xla) as by_xla,
    ):
        found = list(jax_eager.rows("float32", 0.0))
    assert [row.call.rsplit(" ", 1)[1] for row in found] == ["forward", "both"]
    assert by_engine.call_count == by_xla.call_count == 24
    assert all(row.xla > 0 and row.engine > 0 for row in found)
