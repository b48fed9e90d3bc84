"""accelerate on layers that compute something else than a norm, if only a little: left, untouched, with the reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from norm_conventions import IMAGES, BatchNormAct, C, Llama, Weighted  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from anynorm_torch.nn import _verdicts, accelerate  # noqa: E402


class OutsideTheRoot(Weighted):
    """eps outside the root."""

    def forward(self, x: Any) -> Any:
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)


class OtherAxis(Weighted):
    """A mean over another axis."""

    def forward(self, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-2, keepdim=True) + self.variance_epsilon)


class Unbiased(Weighted):
    """The unbiased variance."""

    def forward(self, x: Any) -> Any:
        return self.weight * (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6)


class Twice(Llama):
    """The weight twice."""

    def forward(self, x: Any) -> Any:
        return self.weight * super().forward(x)


class Scaled(Llama):
    """A result that is a little too large."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) * 1.0001


class OtherEps(Llama):
    """Another eps than the layer's, if told so by an object that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"eps": 3e-6}

    def forward(self, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["eps"])


class ClampedInput(Llama):
    """Large values are clamped."""

    def forward(self, x: Any) -> Any:
        return super().forward(x.clamp(-1e4, 1e4))


class ClampedVariance(Weighted):
    """Where eps is added, the variance is clamped."""

    def forward(self, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True).clamp(min=self.variance_epsilon))


class Normalized(Weighted):
    """A division by the norm itself, which is clamped where it is very small; and a number that is no eps."""

    def __init__(self) -> None:
        super().__init__(eps=0.0)
        self.dropout = 0.0

    def forward(self, x: Any) -> Any:
        return functional.normalize(x, dim=-1) * C**0.5 * self.weight


class Absolute(Weighted):
    """The weight's absolute value."""

    def forward(self, x: Any) -> Any:
        return self.weight.abs() * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class Dropped(Llama):
    """Dropout in training."""

    def forward(self, x: Any) -> Any:
        return functional.dropout(super().forward(x), 1e-9, self.training)


class Residual(Llama):
    """A residual."""

    def forward(self, x: Any) -> Any:
        return x + super().forward(x)


class InPlace(Weighted):
    """It changes its input."""

    def forward(self, x: Any) -> Any:
        return x.mul_(torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)) * self.weight


class TwoTensors(Llama):
    """Another tensor, and no function of it that is known."""

    def forward(self, x: Any, gate: Any) -> Any:  # type: ignore[override]
        return super().forward(x * gate)


class ThreeTensors(Llama):
    """Two more tensors."""

    def forward(self, x: Any, scale: Any, shift: Any) -> Any:  # type: ignore[override]
        return super().forward(x) * scale + shift


class Detached(Weighted):
    """Statistics are constants to the gradient."""

    def forward(self, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.detach().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class OtherInTraining(Llama):
    """Training does something else."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) * (2 if self.training else 1)


class Counting(nn.BatchNorm2d):
    """It counts batches by twos."""

    def forward(self, x: Any) -> Any:
        if self.training:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return super().forward(x)


class Broken(Llama):
    """It fails."""

    def forward(self, x: Any) -> Any:
        raise KeyError(x.shape)


IMPOSTORS = {
    OutsideTheRoot: "none of anynorm's norms",
    OtherAxis: "none of anynorm's norms",
    Unbiased: "none of anynorm's norms",
    Twice: "none of anynorm's norms",
    Scaled: "none of anynorm's norms",
    OtherEps: "none of anynorm's norms",
    ClampedInput: "none of anynorm's norms",
    ClampedVariance: "none of anynorm's norms",
    Normalized: "none of anynorm's norms",
    Absolute: "none of anynorm's norms",
    Dropped: "draws random numbers",
    Residual: "none of anynorm's norms",
    InPlace: "changes its input",
    TwoTensors: "none of anynorm's norms",
    ThreeTensors: "takes x, scale, shift",
    Detached: "its gradient is not",
    OtherInTraining: "none of anynorm's norms",
    Broken: "KeyError",
}


@pytest.mark.parametrize("impostor", IMPOSTORS, ids=lambda value: value.__name__)
def test_impostor_is_left(impostor: Any) -> None:
    """A layer that computes something else, if only a little, is left and listed with the reason."""
    model = nn.Sequential(nn.Linear(C, C), impostor())
    acceleration = accelerate(model)
    assert acceleration.swapped == ()
    assert IMPOSTORS[impostor] in acceleration.left["1"]
    assert type(model[1]) is impostor


def test_statistics_decide_too() -> None:
    """A batch norm whose result is right but whose buffers are not is left."""
    assert "none of anynorm's norms" in accelerate(Counting(C)).left[""]


def test_another_eps_by_an_object_is_seen_anew() -> None:
    """A layer that reads an object of its own is tried again for each model, for the object may have changed."""
    layer = OtherEps()
    assert not accelerate(layer).swapped
    layer.config["eps"] = layer.variance_epsilon
    assert accelerate(layer).swapped == ("",)


def test_norm_in_a_larger_forward_is_listed() -> None:
    """A module that computes a norm amid other things is left; a model around norm layers is not listed."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(C, C)

        def forward(self, x: Any) -> Any:
            return x + self.linear(functional.layer_norm(x, (C,)))

    class NormalModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.norm = Block(), nn.LayerNorm(C)

    acceleration = accelerate(NormalModel())
    assert acceleration.swapped == ("norm",)
    assert list(acceleration.left) == ["block"]


def test_what_is_no_norm_is_not_listed() -> None:
    """Losses, layers with steps, and norms of weights are no norm layers."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.steps = nn.Parameter(torch.ones(C)), 3

    weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(C, C))
    model = nn.Sequential(nn.CosineSimilarity(), nn.GaussianNLLLoss(), Steps(), weight_norm)
    assert not accelerate(model).left


def test_model_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying a layer out changes no parameter, buffer, gradient, hook or random state, and calls none of its hooks."""
    monkeypatch.setattr(_verdicts.Verdicts, "known", {})
    layer = BatchNormAct(C, p=0.5).to(torch.bfloat16)
    objects, state = [*layer.parameters(), *layer.buffers()], copy.deepcopy(layer.state_dict())
    calls: list[Any] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer.act.register_forward_hook(lambda *_: calls.append(1))
    random = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), torch.device("meta"):
        assert accelerate(layer).swapped == ("",)
    assert accelerate(Dropped()).left
    assert torch.equal(random, torch.get_rng_state())
    assert calls == []
    assert all(a is b for a, b in zip(objects, [*layer.parameters(), *layer.buffers()], strict=True))
    assert all(value.grad is None for value in layer.parameters())
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name])
    layer(torch.randn(IMAGES, dtype=torch.bfloat16))
    assert calls == [1, 1]
