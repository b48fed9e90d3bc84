"""`python -m benchmarks autograd`: that each way records what it says."""

from __future__ import annotations

import pytest
import torch

from benchmarks import autograd


@pytest.mark.parametrize("way", autograd.ways())
def test_ways(way: str) -> None:
    """Each way gives y of x's shape, and a backward pass gives gradients of the arguments' shapes."""
    arguments = [
        torch.randn(shape, requires_grad=True) for shape in (autograd.SHAPE, autograd.SHAPE[-1:], autograd.SHAPE[-1:])
    ]
    y = autograd.ways()[way](*arguments)
    assert y.shape == autograd.SHAPE
    y.backward(torch.ones(autograd.SHAPE))  # type: ignore[no-untyped-call]
    for argument in arguments:
        assert argument.grad is not None
        assert argument.grad.shape == argument.shape


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """There is a row for each way, and torch's own takes as long as itself."""
    rows = list(autograd.measure(5))
    assert [row.way for row in rows] == list(autograd.ways())
    assert all(row.forward > 0 and row.both > 0 for row in rows)
    autograd.report(iter(rows))
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 2
