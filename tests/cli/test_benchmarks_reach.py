"""`python -m benchmarks reach`: what is counted, and how arguments are guessed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import reach


class OfConfig(nn.Module):
    """RMS norm that is made of a configuration."""

    def __init__(self, config: Any, hidden_size: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size or config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class Doubled(nn.LayerNorm):
    """What is no norm of anynorm's."""

    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


class Needy(nn.Module):
    """What cannot be made."""

    def __init__(self) -> None:
        raise KeyError


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (lambda: nn.Sequential(nn.LayerNorm(4), reach.made(OfConfig)), "all"),
        (lambda: nn.Sequential(nn.LayerNorm(4), Doubled(4)), "some"),
        (lambda: Doubled(4), "none"),
        (Needy, "none"),
        (lambda: nn.Linear(2, 2), "no norms"),
    ],
)
def test_verdict(make: Any, verdict: str) -> None:
    """A model counts as all, some, none or without norms; what cannot be made is not left out of the count."""
    assert reach.row("", "", make).verdict == verdict


def test_lines() -> None:
    """The share is of what has norm layers; what was left is listed with its reason."""
    rows = [reach.Row("timm", name, *counts) for name, counts in {"a": (2, 0, ()), "b": (1, 1, ("it is odd",))}.items()]
    rows.append(reach.Row("timm", "c", 0, 0, ()))
    assert reach.lines("timm", rows) == [
        "timm: 2 families, 50 % fully taken (1 all, 1 some, 0 none)",
        "    b: it is odd",
    ]


@pytest.mark.parametrize("cls", [nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, OfConfig])
def test_arguments_are_guessed(cls: Any) -> None:
    """A layer is made of sizes, of numbers of groups or of a configuration."""
    assert isinstance(reach.made(cls), cls)
