"""Norm layers as libraries and models write their own, each by the rule that its forward follows. No test is here."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

C = 32


class Weighted(nn.Module):
    """A layer with a weight and eps under names of its own."""

    def __init__(self, length: int = C, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(length))
        self.variance_epsilon = eps


class Llama(Weighted):
    """RMS norm that is rounded before the weight."""

    def forward(self, hidden_states: Any) -> Any:
        dtype = hidden_states.dtype
        x = hidden_states.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(dtype)


class T5(Weighted):
    """RMS norm that is rounded to the weight's dtype."""

    def forward(self, x: Any) -> Any:
        x = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x.to(self.weight.dtype) if self.weight.dtype.itemsize == 2 else x)


class Gemma(Weighted):
    """RMS norm by 1 + weight, rounded once."""

    def forward(self, x: Any) -> Any:
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (y * (1.0 + self.weight.float())).type_as(x)


class RoundedGain(nn.LayerNorm):
    """Layer norm by 1 + weight, which is rounded first."""

    def forward(self, x: Any) -> Any:
        return functional.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class ByHand(nn.Module):
    """Layer norm written out, with Keras's names."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))
        self.epsilon = 1e-3

    def forward(self, x: Any) -> Any:
        d = x - x.mean(-1, keepdim=True)
        return self.gamma * d / (d.square().mean(-1, keepdim=True) + self.epsilon).sqrt() + self.beta


class Olmo(nn.Module):
    """Layer norm without parameters, whose eps stands in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.normalized_shape = (C,)

    def forward(self, x: Any) -> Any:
        return functional.layer_norm(x.float(), self.normalized_shape, None, None, eps=1e-5).to(x.dtype)


class Plain(nn.LayerNorm):
    """A subclass that changes nothing."""


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of images."""

    def forward(self, x: Any) -> Any:
        x = functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ChannelsFirst(nn.Module):
    """The same, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))
        self.eps = 1e-6

    def forward(self, x: Any) -> Any:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class BatchNormAct(nn.BatchNorm2d):
    """Batch norm, dropout and activation."""

    def __init__(self, channels: int = C, p: float = 0.0) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(p), nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        return self.act(self.drop(super().forward(x)))


class GroupNormAct(nn.GroupNorm):
    """Group norm and activation, by arguments in another order."""

    def __init__(self, channels: int = C, groups: int = 8) -> None:
        super().__init__(groups, channels)
        self.act: nn.Module = nn.SiLU()

    def forward(self, x: Any) -> Any:
        return self.act(functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class Frozen(nn.Module):
    """Batch norm of buffers."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in {"weight": 2.0, "bias": 0.5, "running_mean": 0.25, "running_var": 3.0}.items():
            self.register_buffer(name, torch.full((C,), value))

    def forward(self, x: Any) -> Any:
        w, b, mean, var = [value.reshape(1, -1, 1, 1) for value in self.buffers()]
        scale = w * (var + 1e-5).rsqrt()
        return x * scale + (b - mean * scale)


class GatedByGroups(Weighted):
    """RMS norm of groups of x times silu of a gate, as Mamba 2 has it; the gate may be missing."""

    def __init__(self, length: int = C, group_size: int = 8) -> None:
        super().__init__(length)
        self.group_size = group_size

    def forward(self, x: Any, gate: Any = None) -> Any:
        y = x.float() if gate is None else x.float() * functional.silu(gate.float())
        groups = y.unflatten(-1, (-1, self.group_size))
        groups = groups * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * groups.flatten(-2).to(x.dtype)


class GatedAfter(Llama):
    """RMS norm times sigmoid of a gate, rounded twice."""

    def forward(self, hidden_states: Any, gate: Any) -> Any:  # type: ignore[override]
        y = super().forward(hidden_states) * gate.float().sigmoid()
        return y.to(hidden_states.dtype)


class Unused(Llama):
    """RMS norm that does not use its weight."""

    def forward(self, x: Any) -> Any:
        return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(x.dtype)


class Optional(nn.LayerNorm):
    """Layer norm that takes a mask, too."""

    def forward(self, x: Any, mask: Any = None) -> Any:
        return super().forward(x) if mask is None else super().forward(x) * mask


IMAGES = (4, C, 5, 6)
ROWS = (4, 5, C)
CONVENTIONS: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "llama": (Llama, ROWS, "rms_norm, rounded before the weight"),
    "t5": (T5, ROWS, "rms_norm, rounded before the weight"),
    "gemma": (Gemma, ROWS, "rms_norm, 1 + weight"),
    "rounded gain": (lambda: RoundedGain(C), ROWS, "layer_norm, 1 + weight"),
    "by hand": (ByHand, ROWS, "layer_norm"),
    "olmo": (Olmo, ROWS, "layer_norm"),
    "plain subclass": (lambda: Plain(C), ROWS, "layer_norm"),
    "optional argument": (lambda: Optional(C), ROWS, "layer_norm"),
    "LayerNorm2d": (lambda: LayerNorm2d(C), IMAGES, "layer_norm"),
    "channels first": (ChannelsFirst, IMAGES, "layer_norm"),
    "BatchNormAct": (BatchNormAct, IMAGES, "tracking batch_norm, then drop, then act"),
    "GroupNormAct": (GroupNormAct, IMAGES, "group_norm, then act"),
    "frozen": (Frozen, IMAGES, "batch_norm"),
    "unused weight": (Unused, ROWS, "rms_norm"),
    "gated by groups": (
        GatedByGroups,
        ROWS,
        "rms_norm of groups by their size, rounded before the weight, of x times silu of a gate",
    ),
    "gated after": (GatedAfter, ROWS, "rms_norm, rounded before the weight, times sigmoid of a gate"),
}
each_convention = pytest.mark.parametrize("name", CONVENTIONS)
# Their own arithmetic is half precision's, step by step.
COARSE = {"by hand", "channels first", "frozen"}
CAST = {"llama", "t5", "gemma", "olmo", "unused weight", "gated by groups", "gated after"}


def layer_and_input(name: str, dtype: Any = torch.float32) -> tuple[Any, list[Any]]:
    """Return a layer with parameters unlike those it began with, and its input."""
    generator = torch.Generator().manual_seed(3)
    make, shape, _ = CONVENTIONS[name]
    layer = make().to(dtype)
    with torch.no_grad():
        for value in layer.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    inputs = 2 if name.startswith("gated") else 1
    return layer, [(torch.randn(shape, generator=generator) + 0.5).to(dtype) for _ in range(inputs)]
