"""torch's normalization layers in many set-ups, each beside anynorm_torch.nn's of the same state. No test is here."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import anynorm_torch.nn  # noqa: E402  it imports torch


class Setup(NamedTuple):
    """How a layer is made, and the shape of its input."""

    cls: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    shape: tuple[int, ...]

    def theirs(self, dtype: Any = None) -> Any:
        """Return torch's layer with parameters as training would leave them."""
        layer = getattr(torch.nn, self.cls)(*self.arguments, **self.options, dtype=dtype)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        return layer

    def pair(self, dtype: Any = None) -> tuple[Any, Any]:
        """Return anynorm's layer and torch's, of equal state."""
        theirs = self.theirs(dtype)
        ours = getattr(anynorm_torch.nn, self.cls)(*self.arguments, **self.options, dtype=dtype)
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs

    def x(self, seed: int = 0, dtype: Any = None) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.shape, generator=generator, dtype=dtype) * 2 + 3


SETUPS = {
    "layer": Setup("LayerNorm", (6,), {}, (4, 3, 6)),
    "layer-2d": Setup("LayerNorm", ((3, 6),), {"eps": 1e-3}, (4, 3, 6)),
    "layer-no-bias": Setup("LayerNorm", (6,), {"bias": False}, (4, 6)),
    "layer-plain": Setup("LayerNorm", (6,), {"elementwise_affine": False}, (4, 6)),
    "rms": Setup("RMSNorm", (6,), {}, (4, 3, 6)),
    "rms-2d": Setup("RMSNorm", ([3, 6],), {"eps": 1e-6}, (4, 3, 6)),
    "rms-plain": Setup("RMSNorm", (6,), {"elementwise_affine": False}, (4, 6)),
    "group": Setup("GroupNorm", (2, 6), {}, (4, 6, 3, 2)),
    "group-plain": Setup("GroupNorm", (3, 6), {"affine": False}, (4, 6)),
    "batch1d": Setup("BatchNorm1d", (5,), {}, (6, 5)),
    "batch1d-length": Setup("BatchNorm1d", (5,), {"momentum": 0.3, "eps": 1e-3}, (4, 5, 3)),
    "batch2d": Setup("BatchNorm2d", (5,), {}, (4, 5, 3, 2)),
    "batch2d-cumulative": Setup("BatchNorm2d", (5,), {"momentum": None}, (4, 5, 3, 2)),
    "batch2d-plain": Setup("BatchNorm2d", (5,), {"affine": False}, (4, 5, 3, 2)),
    "batch2d-untracked": Setup("BatchNorm2d", (5,), {"track_running_stats": False}, (4, 5, 3, 2)),
    "batch3d": Setup("BatchNorm3d", (5,), {}, (2, 5, 3, 2, 2)),
    "instance1d": Setup("InstanceNorm1d", (5,), {}, (4, 5, 6)),
    "instance1d-unbatched": Setup("InstanceNorm1d", (5,), {"affine": True, "track_running_stats": True}, (5, 6)),
    "instance2d": Setup("InstanceNorm2d", (5,), {"affine": True}, (4, 5, 3, 2)),
    "instance2d-tracked": Setup("InstanceNorm2d", (5,), {"affine": True, "track_running_stats": True}, (4, 5, 3, 2)),
    "instance2d-no-momentum": Setup(
        "InstanceNorm2d", (5,), {"momentum": None, "track_running_stats": True}, (4, 5, 3, 2)
    ),
    "instance3d": Setup("InstanceNorm3d", (5,), {"track_running_stats": True}, (2, 5, 3, 2, 2)),
}


def each_setup(*names: str) -> pytest.MarkDecorator:
    """Parametrize a test by some of the setups, or all."""
    chosen = names or tuple(SETUPS)
    return pytest.mark.parametrize("setup", [pytest.param(SETUPS[name], id=name) for name in chosen])


one_of_each_kind = each_setup("layer", "rms", "group", "batch2d", "instance2d-tracked")


def check_states_agree(ours: Any, theirs: Any, **tolerance: float) -> None:
    """Raise unless both layers have the same parameters and buffers, with the same names, in the same order."""
    mine, array = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(array)
    for name in array:
        torch.testing.assert_close(mine[name], array[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)
