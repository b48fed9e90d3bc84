"""What the formula asks of torch beyond the array API standard."""

from __future__ import annotations

from typing import Any

import torch


def sum(x: Any, axes: tuple[int, ...]) -> Any:
    """Sum over `axes`, kept as length 1. torch sums in cascades, in every direction."""
    return torch.sum(x, dim=axes, keepdim=True)


def constant(x: Any) -> Any:
    """Return x without its gradient."""
    return x.detach()


def compiling() -> bool:
    """Say whether torch.compile is tracing: there ContextVars break the graph and caches warn."""
    return torch.compiler.is_compiling()
