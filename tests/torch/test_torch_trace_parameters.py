"""torch.jit.trace, under which lengths are tensors, of calls whose parameters broadcast."""

from __future__ import annotations

from typing import Any

import pytest

import anynorm as an

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

CALLS: dict[str, Any] = {
    "layer": lambda x, weight: an.layer_norm(x, weight),
    "group": lambda x, weight: an.group_norm(x, 2, weight),
    "batch": lambda x, weight: an.batch_norm(x, weight=weight),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("shape", [(1, 4, 1), (3, 4, 5), (1, 1, 5)], ids=str)
@pytest.mark.parametrize("name", list(CALLS))
def test_parameter_with_as_many_axes_as_x(name: str, shape: tuple[int, ...]) -> None:
    """The trace gives for other numbers what the call itself gives."""
    call, weight = CALLS[name], torch.randn(shape)
    traced = torch.jit.trace(call, (torch.randn(3, 4, 5), weight), check_trace=False)
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(traced(x, weight), call(x, weight))
