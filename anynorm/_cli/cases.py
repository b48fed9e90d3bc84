"""What `check` tries on every library: ordinary inputs and those that break norms, with what must come out.

Runs no library; the exact results are the reference's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from anynorm import _reference
from anynorm._cli.libraries import bfloat16
from anynorm._cli.norms import Layout, Norm, five_norms
from anynorm._core.arrays import FLOATING
from anynorm._reference_gradients import Gradients

_IMAGES = Layout((4, 8, 6, 7), channel_axis=1, groups=4)

# Every norm reduces the leading axes here, along which naive sums, such as NumPy's own, drift.
_ROWS = Layout((1, 4096, 8), channel_axis=2, groups=4)


class Scale(NamedTuple):
    """How far a dtype is pushed: mean and spread far from 0, the smallest and the largest magnitudes."""

    mean: float
    std: float
    small: float
    large: float


# float16 ends at 65504 and has normal numbers from 6e-5; bfloat16 has 8 bits of precision. Subnormal numbers are left
# out, because some libraries flush them to zero.
_SCALES = {
    "float16": Scale(6e4, 3e2, 1e-4, 1e4),
    "bfloat16": Scale(1e6, 1e4, 1e-30, 1e30),
    "float32": Scale(1e6, 1.0, 1e-30, 1e30),
    "float64": Scale(1e6, 1.0, 1e-200, 1e200),
}


class Input(NamedTuple):
    """A kind of input, made of standard normal numbers."""

    name: str
    layout: Layout
    make: Callable[[Any, Scale], Any]
    eps: float | None = None  # None: the norm's default


INPUTS = (
    Input("ordinary", _IMAGES, lambda normal, _: normal),
    Input("far from zero", _IMAGES, lambda normal, scale: scale.mean + scale.std * normal),
    Input("large", _IMAGES, lambda normal, scale: scale.large * np.clip(normal, -6, 6)),
    Input("constant", _IMAGES, lambda normal, scale: np.full_like(normal, scale.mean / 3)),
    Input("leading axes", _ROWS, lambda normal, _: 100 + normal, eps=0.0),
    Input("small", _ROWS, lambda normal, scale: scale.small * (normal + np.sign(normal)), eps=0.0),
)


class Case(NamedTuple):
    """A norm, one input in one dtype as NumPy arrays, and what must come out of it forward and backward."""

    norm: Norm
    input: str
    x: Any
    weight: Any
    bias: Any
    dy: Any
    reference: _reference.Reference
    gradients: Gradients


def cases() -> dict[tuple[str, str], list[Case]]:
    """Return the cases of each norm and dtype that can be judged here, the norms in their order."""
    made: dict[tuple[str, str], list[Case]] = {}
    for kind in INPUTS:
        normal = np.random.default_rng(0).standard_normal(kind.layout.shape)
        for norm in _norms(kind):
            parameters = np.random.default_rng(1).standard_normal((2, *norm.parameter_shape))
            cotangent = 0.5 + np.random.default_rng(2).standard_normal(normal.shape)
            for name, dtype in judged_dtypes().items():
                x = kind.make(normal, _SCALES[name]).astype(dtype)
                weight, bias = (1 + parameters[0] / 2).astype(dtype), parameters[1].astype(dtype)
                dy = cotangent.astype(dtype)
                reference, gradients = norm.reference(x, weight, bias), norm.gradients(dy, x, weight, bias)
                made.setdefault((norm.name, name), []).append(
                    Case(norm, kind.name, x, weight, bias, dy, reference, gradients)
                )
    return made


def _norms(kind: Input) -> list[Norm]:
    norms = five_norms(kind.layout)
    if kind.layout is _ROWS:
        over_leading: dict[str, Any] = {"options": {"axis": (0, 1)}, "parameter_shape": _ROWS.shape[:2]}
        norms = [replace(norm, **over_leading) if "axis" in norm.options else norm for norm in norms]
    if kind.eps is not None:
        norms = [replace(norm, options=norm.options | {"eps": kind.eps}) for norm in norms]
    return norms


def judged_dtypes() -> dict[str, Any]:
    """Return, by name, the dtypes for which an exact result can be had here."""
    dtypes = {name: bfloat16() if name == "bfloat16" else np.dtype(name) for name in FLOATING}
    return {
        name: dtype
        for name, dtype in dtypes.items()
        if dtype is not None and (name != "float64" or _reference.CHECKS_FLOAT64)
    }
