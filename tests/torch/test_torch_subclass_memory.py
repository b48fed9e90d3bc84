"""Tensor subclasses that lie in memory as plain tensors do: what is promised of layout and overlap holds for them."""

from __future__ import annotations

from typing import Any

import pytest

import anynorm as an

torch: Any = pytest.importorskip("torch", reason="torch is not installed")


class Tagged(torch.Tensor):  # type: ignore[misc]
    """A subclass that changes nothing."""


@pytest.mark.parametrize("name", ["weight", "x"])
def test_result_and_gradient_lie_as_x_does(name: str) -> None:
    """y and dx are dense with their axes in x's order, though arithmetic would follow a weight that is repeated."""
    x = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)
    arrays = {"x": x, "weight": torch.randn(1, 4, 1, 1).expand(3, 4, 5, 6).permute(0, 1, 2, 3)}
    arrays[name] = arrays[name].as_subclass(Tagged)
    y, pullback = an.vjp(an.layer_norm, arrays["x"], arrays["weight"])
    dx = pullback(torch.randn(3, 4, 5, 6)).x
    for tensor in (y, dx):
        assert type(tensor) is Tagged
        assert tensor.stride() == x.stride()


@pytest.mark.parametrize("name", ["out", "x", "weight"])
def test_overlap_is_refused(name: str) -> None:
    """An out that shares elements with an argument, or with itself, is refused whatever the class of an operand is."""
    memory = torch.randn(7, 6)
    operands: dict[str, Any] = {"x": memory[:6], "weight": torch.ones(6), "out": memory[1:]}
    operands[name] = operands[name].as_subclass(Tagged)
    before = memory.clone()
    with pytest.raises(ValueError, match="layer_norm: out overlaps x in memory"):
        an.layer_norm(operands["x"], operands["weight"], out=operands["out"])
    operands["out"] = torch.zeros(6).expand(6, 6).as_subclass(Tagged)
    with pytest.raises(ValueError, match="layer_norm: several elements of out share one place"):
        an.layer_norm(operands["x"], operands["weight"], out=operands["out"])
    assert torch.equal(memory, before)
