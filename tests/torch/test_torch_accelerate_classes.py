"""accelerate on layers that are not torch's own: what is taken by what its forward computes, and what is left."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from anynorm_torch.nn import _probe, _verdicts, accelerate  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]

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


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Forget compiled graphs."""
    yield
    torch.compiler.reset()


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


@each_convention
def test_copies_and_files(name: str) -> None:
    """A copy and a file of a taken layer are taken too, a state goes both ways, and undo gives the class back."""
    layer, inputs = layer_and_input(name)
    state = layer.state_dict()
    acceleration = accelerate(layer)
    expected = layer.eval()(*inputs)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert type(other) is type(layer)
        assert torch.equal(other(*inputs), expected)
    assert layer.state_dict().keys() == state.keys()
    layer.load_state_dict(state)
    acceleration.undo()
    layer.load_state_dict(state)


@each_convention
def test_compiles_and_exports(name: str) -> None:
    """A taken layer goes into one graph, compiled and exported, in training and evaluation."""
    layer, inputs = layer_and_input(name)
    accelerate(layer)
    for training in (True, False):
        layer.train(training)
        with torch.no_grad():
            expected = copy.deepcopy(layer)(*inputs)
            compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)(*inputs)
        torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5)
    exported = torch.export.export(layer.eval(), tuple(inputs)).module()(*inputs)
    torch.testing.assert_close(exported, layer(*inputs), rtol=0, atol=1e-5)
    mapped = torch.func.vmap(layer)(*[torch.stack([x, x + 1]) for x in inputs])
    torch.testing.assert_close(mapped[1], layer(*[x + 1 for x in inputs]), rtol=0, atol=1e-5)


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
