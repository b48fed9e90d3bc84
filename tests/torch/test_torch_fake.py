"""Fake tensors: what they foretell is the shape, dtype and strides of what is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import anynorm as an

torch: Any = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402  needs torch

NORMS: dict[str, Callable[[Any], Any]] = {
    "layer": an.layer_norm,
    "layer over all": lambda x: an.layer_norm(x, axis=None),
    "rms": an.rms_norm,
    "group": lambda x: an.group_norm(x, 1),
    "instance": an.instance_norm,
    "given": lambda x: an.batch_norm(x, mean=x.new_zeros(x.shape[1]), var=x.new_ones(x.shape[1])),
}

# By name: lengths and strides of x.
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "dense": ((4, 6, 8), (48, 8, 1)),
    "turned": ((4, 6, 8), (1, 4, 24)),
    "channels last": ((2, 6, 5, 3), (90, 1, 18, 6)),
    "cropped": ((4, 6, 8), (192, 16, 1)),
    "windows": ((4, 6, 8), (2, 3, 1)),
    "repeated in front": ((4, 6, 8), (0, 8, 1)),
    "repeated behind": ((4, 6, 8), (6, 1, 0)),
    "one number": ((4, 6, 8), (0, 0, 0)),
    "lone element": ((1, 1), (1, 0)),
    "lone element, far": ((1, 1), (7, 9)),
    "length 1 in front": ((1, 6, 8), (8, 8, 1)),
    "length 1 amid": ((4, 1, 8), (8, 3, 1)),
    "empty behind": ((4, 6, 0), (1, 1, 6)),
    "empty in front": ((0, 6, 8), (8, 1, 6)),
}

each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_norm = pytest.mark.parametrize("norm", NORMS)


def _made(layout: str, dtype: Any = torch.float32) -> Any:
    lengths, strides = LAYOUTS[layout]
    drawn = torch.randn(2000, generator=torch.Generator().manual_seed(1)).to(dtype)
    return drawn.as_strided(lengths, strides)


@pytest.mark.parametrize("gradient", [False, True], ids=["", "gradient"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@each_layout
@each_norm
def test_strides_under_fake_tensors(norm: str, layout: str, dtype: str, gradient: bool) -> None:
    """y of a fake x has the shape, dtype and strides of the real y, those of empty_like(x), whoever serves it."""
    x = _made(layout, getattr(torch, dtype))
    expected = torch.empty_like(x).stride()
    with FakeTensorMode() as mode:
        fake = NORMS[norm](mode.from_tensor(x).requires_grad_(gradient))
    for fast in (True, False):
        with an.fast_paths(fast):
            real = NORMS[norm](x.detach().requires_grad_(gradient))
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
        assert real.stride() == expected
