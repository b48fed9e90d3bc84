"""What the formula asks of torch beyond the array API standard."""

from __future__ import annotations

from typing import Any

import torch

# Below this the cascades' drift stays within an eps or two.
LONG = 2**14


def sum(x: Any, axes: tuple[int, ...]) -> Any:
    """Sum over `axes`, kept as length 1: one axis after the other.

    Over several at once torch falls back to long plain sums: (65536, 32, 2) float32 over axes 0 and 2 comes out 92 eps
    off, and 7000 eps if the elements are equal. Along one it sums in cascades, which drift by 16 eps over 2²¹ nearly
    equal elements of a leading axis; hence blocks where an axis is long.
    """
    for axis in reversed(axes):
        in_blocks = compiling() or x.shape[axis] > LONG
        x = _sum_in_blocks(x, axis) if in_blocks else torch.sum(x, dim=axis, keepdim=True)
    return x


def _sum_in_blocks(x: Any, axis: int) -> Any:
    """Sum over one axis in blocks of 32 elements, and these again.

    For inductor, whose own sums along a leading axis are plain: the RMS norm of (262144, 4) float32 around 300 over
    axis 0 is 660 times further off than the contract allows.
    """
    while x.shape[axis] > 64:
        length = x.shape[axis]
        whole = length // 32 * 32
        blocks = x.narrow(axis, 0, whole).unflatten(axis, (whole // 32, 32)).sum(dim=axis + 1)
        if whole < length:
            rest = x.narrow(axis, whole, length - whole).sum(dim=axis, keepdim=True)
            blocks = torch.cat([blocks, rest], dim=axis)
        x = blocks
    return torch.sum(x, dim=axis, keepdim=True)


def constant(x: Any) -> Any:
    """Return x without its gradient."""
    return x.detach()


def compiling() -> bool:
    """Say whether torch.compile is tracing: there ContextVars break the graph and caches warn."""
    return torch.compiler.is_compiling()
