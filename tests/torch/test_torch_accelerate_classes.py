"""accelerate on layers that are not torch's own: what is taken by what its forward computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from norm_conventions import (  # noqa: E402
    CAST,
    COARSE,
    CONVENTIONS,
    IMAGES,
    BatchNormAct,
    C,
    GroupNormAct,
    Llama,
    each_convention,
    layer_and_input,
)
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from anynorm_torch.nn import _probe, _verdicts, accelerate  # noqa: E402


def trained(layer: Any, inputs: list[Any]) -> list[Any]:
    """Take three steps; return outputs, gradients, parameters and buffers of all."""
    found, layer = [], layer.train()
    for step in range(3):
        inputs = [(x.detach() + step).requires_grad_() for x in inputs]
        y = layer(*inputs)
        (y * y.detach().cos()).sum().backward()
        found += [y.detach(), *[x.grad for x in inputs]]
        with torch.no_grad():
            for value in [value for value in layer.parameters() if value.grad is not None]:
                found.append(value.grad.clone())
                value -= 0.01 * value.grad
                value.grad = None
        found += [value.clone() for value in layer.state_dict().values()]
    return [*found, layer.eval()(*[x.detach() for x in inputs])]


@each_convention
def test_convention_is_taken(name: str) -> None:
    """A layer of each convention is taken, by the rule that it follows; the acceleration says which."""
    layer, inputs = layer_and_input(name)
    own, expected = type(layer), copy.deepcopy(layer).eval()(*inputs)
    acceleration = accelerate(layer)
    assert (acceleration.swapped, acceleration.left) == (("",), {})
    assert repr(acceleration).endswith(f"{own.__name__}: {CONVENTIONS[name][2]}, by anynorm_numba")
    assert isinstance(layer, own)
    torch.testing.assert_close(layer.eval()(*inputs), expected, rtol=0, atol=1e-5)
    acceleration.undo()
    assert type(layer) is own


@each_convention
def test_training_is_the_same(name: str) -> None:
    """Three steps in float64 give outputs, gradients and statistics within 1e-12, if not cast to float32."""
    layer, inputs = layer_and_input(name, torch.float64)
    twin = copy.deepcopy(layer)
    with accelerate(layer):
        ours = trained(layer, inputs)
    share = 1e-5 if name in CAST else 1e-12
    for a, b in zip(ours, trained(twin, inputs), strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= share * b.abs().max()


@each_convention
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_alike(name: str, dtype: Any, weight_dtype: Any) -> None:
    """In half precision a layer gives its own dtype and bits, but for one in 200 that lies near a tie."""
    layer, inputs = layer_and_input(name, dtype)
    layer, inputs = layer.to(weight_dtype).eval(), [x.repeat(4, *[1] * (x.ndim - 1)) for x in inputs]
    try:
        own = layer(*inputs)
    except RuntimeError:
        pytest.skip("torch takes no such pair")
    acceleration = accelerate(layer)
    if not acceleration.swapped:
        assert name in COARSE
        assert "rounds as no rule" in acceleration.left[""]
        return
    ours = layer(*inputs)
    assert ours.dtype == own.dtype
    assert (ours != own).float().mean() < (0.005 if own.dtype == dtype else 1)
    torch.testing.assert_close(ours.float(), own.float(), rtol=0.02, atol=0.02)


def test_other_calls_go_to_the_own_forward() -> None:
    """What was not tried out is computed by the layer's own forward: other arguments, dtypes and numbers of axes."""
    layer, (x,) = layer_and_input("optional argument")
    mask, keyword = layer(x, torch.zeros(C)), layer(x, mask=torch.zeros(C))
    flat = layer(x[0, 0])
    accelerate(layer)
    assert torch.equal(layer(x, torch.zeros(C)), mask)
    assert torch.equal(layer(x, mask=torch.zeros(C)), keyword)
    assert torch.equal(layer(x[0, 0]), flat)
    gated, (x, gate) = layer_and_input("gated by groups")
    alone, by_name = gated(x), gated(x, gate=gate)
    accelerate(gated)
    assert torch.equal(gated(x), alone)
    assert torch.equal(gated(x, gate=gate), by_name)
    torch.testing.assert_close(gated(x, gate), by_name)
    frozen, (images,) = layer_and_input("frozen")
    half = copy.deepcopy(frozen).bfloat16()(images.bfloat16())
    accelerate(frozen)
    assert torch.equal(frozen.bfloat16()(images.bfloat16()), half)


def test_lengths_share_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of one class and eps that differ in length alone are tried once; another eps is tried again."""
    tried: list[Any] = []

    def counted(layer: Any) -> Any:
        tried.append(layer)
        return _probe.find(layer)

    monkeypatch.setattr(_verdicts, "find", counted)
    monkeypatch.setattr(_verdicts.Verdicts, "known", {})
    model = nn.Sequential(Llama(8), Llama(48), Llama(8, 1e-5), Llama(96), nn.LayerNorm(8))
    assert len(accelerate(model).swapped) == 5
    assert len(tried) == 2
    x = torch.randn(3, 96)
    torch.testing.assert_close(model[3](x), functional.rms_norm(x, (96,), eps=1e-6))


def test_autocast() -> None:
    """Under autocast a taken layer gives the dtype and the rounding that its own forward gives."""
    layer, (x,) = layer_and_input("llama")
    block = nn.Sequential(nn.Linear(C, C), layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = block(x)
        accelerate(block)
        ours = block(x)
    assert ours.dtype == own.dtype == torch.float32
    torch.testing.assert_close(ours, own, rtol=1e-6, atol=1e-6)


class FrozenAct(nn.Module):
    """Batch norm by given statistics, and activation."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean"):
            self.register_buffer(name, torch.linspace(-1, 2, C))
        self.register_buffer("running_var", torch.linspace(0.5, 2, C))
        self.act = nn.ReLU()

    def forward(self, x: Any) -> Any:
        layer: Any = self
        mean, var = layer.running_mean, layer.running_var
        return self.act(functional.batch_norm(x, mean, var, layer.weight, layer.bias, False, 0.0, 1e-5))


class GroupNormReLU(GroupNormAct):
    """Group norm and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)


@pytest.mark.parametrize("make", [BatchNormAct, FrozenAct, GroupNormReLU])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_relu_is_applied_in_the_pass_of_the_norm(
    make: Any, training: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer's own ReLU is called only while a hook watches it; results and gradients are the same bits either way."""
    called: list[Any] = []
    own = nn.ReLU.forward

    def noted(self: Any, x: Any) -> Any:
        called.append(self)
        return own(self, x)

    monkeypatch.setattr(nn.ReLU, "forward", noted)
    layer = make().to(dtype).train(training)
    accelerate(layer)
    called.clear()
    x = torch.randn(IMAGES, generator=torch.Generator().manual_seed(1)).to(dtype)

    def results() -> tuple[Any, Any]:
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        return y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y))[0]

    y, dx = results()
    assert not called
    layer.act.register_forward_hook(lambda *_: None)
    expected, expected_dx = results()
    assert called
    assert (y == 0).any()
    assert torch.equal(y, expected)
    assert torch.equal(dx, expected_dx)


def test_dropout_before_the_activation_is_kept() -> None:
    """A dropout that drops is called, and then the activation."""
    layer = BatchNormAct(p=0.9).train()
    accelerate(layer)
    x = torch.randn(IMAGES, generator=torch.Generator().manual_seed(1))
    assert (layer(x) == 0).float().mean() > 0.85
    assert (layer.eval()(x) == 0).float().mean() < 0.7
