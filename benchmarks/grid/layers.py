"""Layers of plain arrays: training and evaluation steps, running statistics, state."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import anynorm as an
from benchmarks.grid.case import Case
from benchmarks.grid.common import Library, Problem
from benchmarks.grid.norms import Norm, batch, group, instance, layer, rms

_MADE: dict[str, tuple[Norm, str, tuple[Any, ...], dict[str, Any]]] = {
    "LayerNorm(64)": (layer(8, 64), "LayerNorm", (64,), {}),
    "LayerNorm((6, 5))": (layer(4, 6, 5), "LayerNorm", ((6, 5),), {"eps": 1e-3}),
    "LayerNorm(6, axis=1)": (layer(4, 6, 5), "LayerNorm", (6,), {"axis": 1, "bias": False}),
    "RMSNorm(64)": (rms(8, 64), "RMSNorm", (64,), {}),
    "GroupNorm(2, 6)": (group(2, 4, 6, 5), "GroupNorm", (2, 6), {}),
    "InstanceNorm(6)": (instance(4, 6, 5), "InstanceNorm", (6,), {}),
    "InstanceNorm(6, tracking)": (
        instance(4, 6, 5),
        "InstanceNorm",
        (6,),
        {"track_running_stats": True, "weight": True},
    ),
    "BatchNorm(6)": (batch(4, 6, 5), "BatchNorm", (6,), {}),
    "BatchNorm(6, average)": (batch(4, 6, 9, 8), "BatchNorm", (6,), {"momentum": None, "correction": 0}),
    "BatchNorm(6, channels last)": (batch(4, 9, 8, 6), "BatchNorm", (6,), {"channel_axis": -1}),
    "BatchNorm(6, without)": (batch(4, 6, 5), "BatchNorm", (6,), {"track_running_stats": False, "weight": False}),
}


def _trained(library: Library, name: str, dtype: str, values: str) -> Any:
    norm, kind, args, options = _MADE[name]
    problem = Problem(library, norm, dtype)
    xp = _namespace(problem.x)
    made = getattr(an, kind)(*args, **options, xp=xp)
    found: list[Any] = []
    for step in range(3):
        x = problem.array(values if step == 1 else "offset", 11 + step)
        y, pullback = made.vjp(x)
        dx, gradients = pullback(problem.array("normal", 2))
        made.params = {key: value - 0.125 * gradients[key] for key, value in made.params.items()}
        found.append((y, dx, gradients))
    found.append(made(problem.x))
    made.eval()
    y, pullback = made.vjp(problem.x)
    found.extend([made(problem.x), y, pullback(problem.array("normal", 2)), made.state_dict()])
    frozen = made.freeze().train()
    found.extend([frozen(problem.x), frozen.state_dict(), repr(frozen)])
    return found


def _namespace(x: Any) -> Any:
    import array_api_compat

    return array_api_compat.array_namespace(x)


def cases(library: Library) -> Iterator[Case]:
    """Yield each layer's training."""
    for name in _MADE:
        for dtype in library.dtypes:
            for values in ("normal", "nan") if dtype == "float32" else ("far",):
                yield Case(f"{library.name} {name} {dtype} {values}", partial(_trained, library, name, dtype, values))
