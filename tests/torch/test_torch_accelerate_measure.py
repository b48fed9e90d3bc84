"""accelerate's options: what is timed and decided by it, what small input is computed by, and what it says."""

from __future__ import annotations

import copy
import io
import re
import types
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from anynorm_torch import _engines  # noqa: E402
from anynorm_torch.nn import _modules, _timing, accelerate, frozen_statistics, torch_layers  # noqa: E402

C = 8
NAP = 0.01  # seconds
now = 0.0  # what the clock says: time passes in naps alone, but for a microsecond each time it is asked


def nap() -> None:
    """Let time pass."""
    global now
    now += NAP


def clock() -> float:
    """Tell the time."""
    global now
    now += 1e-6
    return now


class Napping(torch.autograd.Function):  # type: ignore[misc,name-defined]
    """The identity, whose gradient takes long."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:  # noqa: ARG004
        nap()
        return dy


class Slow(nn.LayerNorm):
    """A layer whose own code takes long."""

    def forward(self, x: Any) -> Any:
        nap()
        return super().forward(x)


class SlowGradient(nn.LayerNorm):
    """A layer whose own gradient takes long."""

    def forward(self, x: Any) -> Any:
        return Napping.apply(super().forward(x))


@pytest.fixture(autouse=True)
def clock_of_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is timed be naps."""
    monkeypatch.setattr(_timing, "time", types.SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(_timing, "_SECONDS", 0.0)


@pytest.fixture
def slow_anynorm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let anynorm's layers take long."""
    plain = _modules.normalized  # type: ignore[attr-defined]

    def normalized(*args: Any) -> Any:
        nap()
        return plain(*args)

    monkeypatch.setattr(_modules, "normalized", normalized)


def test_faster_code_is_kept() -> None:
    """A layer whose own code is slower becomes anynorm's; what is printed says by how much, and of which step."""
    model = nn.Sequential(nn.Linear(C, C), Slow(C))
    acceleration = accelerate(model, measure=torch.randn(3, C))
    assert acceleration.swapped == ("1",)
    assert acceleration.left == {}
    times = acceleration.times["1"]
    assert times.own > NAP > times.ours
    assert times.ratio == pytest.approx(times.own / times.ours)
    assert times.shape == (3, C)
    _, gain, line = repr(acceleration).splitlines()
    assert re.fullmatch(r"  a step of training takes 0\.001 ms, with its own layers 10 ms", gain)
    assert f"by anynorm_numba: {times.ratio:.2f} times as fast on (3, {C})" in line


@pytest.mark.usefixtures("slow_anynorm")
def test_slower_code_is_left() -> None:
    """A layer whose own code is faster keeps it, and `left` has the two times as its reason."""
    model = nn.Sequential(nn.LayerNorm(C), nn.BatchNorm1d(C))
    acceleration = accelerate(model, measure=torch.randn(3, C))
    assert type(model[0]) is nn.LayerNorm
    assert list(acceleration.times) == ["0", "1"]
    assert acceleration.times["0"].ratio < 1
    assert acceleration.left["0"].startswith("no sure gain: 0.")
    acceleration.undo()
    assert [type(layer) for layer in model] == [nn.LayerNorm, nn.BatchNorm1d]


@pytest.mark.parametrize(("training", "enabled"), [(True, True), (False, True), (True, False)])
def test_backward_counts_in_training_alone(training: bool, enabled: bool) -> None:
    """The backward pass is timed if the model is in training mode and gradients are enabled."""
    model = nn.Sequential(SlowGradient(C)).train(training)
    with torch.set_grad_enabled(enabled):
        acceleration = accelerate(model, measure=torch.randn(3, C))
    both = training and enabled
    assert (acceleration.times["0"].own > NAP) == both
    assert ("a step of training takes" in repr(acceleration)) == both


def test_all_calls_count() -> None:
    """A layer that a step calls twice, on other shapes, has the time of both calls."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Slow(C)

        def forward(self, x: Any) -> Any:
            return self.norm(self.norm(x)[:1])

    acceleration = accelerate(Twice(), measure=torch.randn(3, C))
    assert acceleration.times["norm"].own > 2 * NAP


class Uneven(nn.LayerNorm):
    """A layer whose own code takes long at each second call."""

    calls = 0

    def forward(self, x: Any) -> Any:
        Uneven.calls += 1
        if Uneven.calls % 2:
            nap()
        return super().forward(x)


def test_like_layers_count_as_one() -> None:
    """Layers that are alike have one measurement, their mean, and layers of another eps their own."""
    model = nn.Sequential(Uneven(C), Uneven(C), Uneven(C, eps=1e-3), Uneven(C, eps=1e-4))
    times = accelerate(model, measure=torch.randn(3, C)).times
    assert times["0"] == times["1"]
    assert times["0"].own == pytest.approx(NAP / 2, rel=0.1)
    assert sorted([times["2"].own, times["3"].own]) == pytest.approx([0, NAP], abs=NAP / 10)


def test_gain_that_is_not_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that is faster in fewer than three of four pairs of steps is left."""
    model = nn.Sequential(nn.LayerNorm(C))
    pairs = [[{id(model[0]): own}, {id(model[0]): 1.0}] for own in (0.9, 0.9, 0.9, 1.1, 1.1, 1.1, 1.1)]

    def in_turn(trial: Any, _: Any, measured: Any, note: Any) -> None:
        measured(trial._fresh())
        for pair in pairs:
            note(pair)

    monkeypatch.setattr(_timing.Trial, "_in_turn", in_turn)
    acceleration = accelerate(model, measure=torch.randn(3, C))
    assert acceleration.times["0"].ratio == pytest.approx(1.1)
    assert not acceleration.times["0"].faster
    assert acceleration.left["0"].startswith("no sure gain: 1.10 times as fast")


@pytest.mark.usefixtures("slow_anynorm")
def test_step_decides_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step takes longer with the few layers that are faster, since their code is cold, none is swapped."""
    model = nn.Sequential(nn.LayerNorm(C))
    times = _timing.Times(2.0, 1.0, (3, C), faster=True)
    monkeypatch.setattr(_timing.Trial, "layers", lambda _: [times])
    acceleration = accelerate(model, measure=torch.randn(3, C))
    assert type(model[0]) is nn.LayerNorm
    assert acceleration.left == {"0": "the whole step takes longer with the layers that gain"}
    assert acceleration.times == {"0": times}


class Named(nn.Module):
    """A model of two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Slow(C)

    def forward(self, x: Any, *, scale: Any) -> Any:
        return self.norm(x * scale["of x"])


@dataclass
class Output:
    """What a model may return."""

    y: Any


class Pair(Named):
    """A model of two positional arguments."""

    def forward(self, x: Any, scale: Any) -> Any:
        return self.norm(x * scale)


def test_batches() -> None:
    """A tuple holds positional arguments, a mapping keyword arguments, and models may return structures of tensors."""
    x = torch.randn(3, C)
    for result in (lambda y: y, lambda y: {"y": [y]}, lambda y: Output(y)):
        model = Named()
        model.register_forward_hook(lambda _, __, y, result=result: result(y))
        assert accelerate(model, measure={"x": x, "scale": {"of x": 2.0}}).times["norm"].shape == (3, C)
    assert accelerate(Pair(), measure=(x, 2.0)).times["norm"].shape == (3, C)


def test_model_is_as_it_was() -> None:
    """Timing changes no parameter, buffer, gradient, mode, hook, class or random state of a model, nor its input."""
    model = nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C), nn.Dropout(0.5), nn.LayerNorm(C))
    model[3].eval()
    x = torch.randn(4, C, requires_grad=True)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    copied = x.detach().clone()
    gradient = model[0].weight.grad = torch.ones(C, C)
    accelerate(model, measure=x).undo()
    assert torch.equal(torch.get_rng_state(), state)
    assert model[0].weight.grad is gradient
    assert torch.equal(gradient, torch.ones(C, C))
    model[0].weight.grad = None
    assert [type(module) for module in model] == [nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.LayerNorm]
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in [x, *model.parameters()])
    assert [module.training for module in model] == [True, True, True, False]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.equal(x, copied)


def test_batch_that_does_not_fit() -> None:
    """What the model raises on the batch is raised, and no layer is swapped nor keeps a hook."""
    model = nn.Sequential(nn.LayerNorm(C), nn.Linear(C, C))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        accelerate(model, measure=torch.randn(3, C + 1))
    assert type(model[0]) is nn.LayerNorm
    assert not model[0]._forward_pre_hooks


def test_layer_that_the_batch_does_not_reach() -> None:
    """A layer that no step calls is left, as nothing is known of it."""
    model = Named()
    model.other = nn.LayerNorm(C)
    acceleration = accelerate(model, measure={"x": torch.randn(3, C), "scale": {"of x": 2.0}})
    assert acceleration.swapped == ("norm",)
    assert acceleration.left == {"other": "no step on the batch calls it"}


def test_model_without_norms() -> None:
    """Where there is nothing to time, no step is taken."""
    assert repr(accelerate(nn.Linear(2, 2), measure="no batch")) == "Acceleration: 0 swapped, 0 left"


class Counting(nn.Module):
    """A model that rebinds a buffer, and has one that cannot be written to."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Slow(C)
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("shared", torch.ones(1).expand(C))

    def forward(self, x: Any) -> Any:
        self.steps: Any = self.steps + 1
        return self.norm(x * self.shared)


def test_buffers_of_all_kinds() -> None:
    """A buffer that a step binds to another tensor is the old one again, and one without memory of its own is kept."""
    model = Counting()
    steps, shared = model.get_buffer("steps"), model.get_buffer("shared")
    accelerate(model, measure=torch.randn(3, C))
    assert model.steps is steps
    assert model.shared is shared
    assert steps.item() == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers(reentrant: bool) -> None:
    """Layers whose forward pass a checkpoint repeats within a backward pass are timed, both times."""

    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(C, C), Slow(C), Slow(C))

        def forward(self, x: Any) -> Any:
            return checkpoint(self.block, x, use_reentrant=reentrant)

    acceleration = accelerate(Repeated(), measure=torch.randn(3, C, requires_grad=True))
    assert acceleration.swapped == ("block.1", "block.2")
    assert acceleration.times["block.1"].own >= 2 * NAP


@pytest.fixture
def without_engine(monkeypatch: pytest.MonkeyPatch) -> str:
    """Take the CPU engine away; return what is said of that."""
    missing = types.SimpleNamespace(__name__="anynorm_numba", missing=lambda: "it is not there")
    monkeypatch.setitem(_engines._ENGINES, "cpu", missing)
    return "it is not there"


def test_missing_engine_is_warned_of(without_engine: str) -> None:
    """Where no engine is installed, accelerate says so at once, and by what each layer runs; where all are, nothing."""
    model = nn.Sequential(nn.LayerNorm(C), nn.LayerNorm(C, device="meta"))
    with pytest.warns(RuntimeWarning, match=rf"2 of the layers swapped run by the formula \({without_engine}\)"):
        acceleration = accelerate(model)
    assert acceleration.paths == {
        "0": f"formula ({without_engine})",
        "1": "formula (no engine reads the memory of meta)",
    }


@pytest.mark.usefixtures("slow_anynorm")
def test_missing_engine_where_layers_are_timed(without_engine: str) -> None:
    """Where layers are timed nothing is warned of, and what is left says why it would be slow."""
    model = nn.Sequential(Slow(C), nn.LayerNorm(C))
    acceleration = accelerate(model, measure=torch.randn(3, C))
    assert acceleration.paths == {"0": f"formula ({without_engine})"}
    assert acceleration.left["1"].endswith(f"by formula ({without_engine})")


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "layer": (lambda: nn.LayerNorm(C), (4, C)),
    "rms": (lambda: nn.RMSNorm(C), (4, C)),
    "group": (lambda: nn.GroupNorm(2, C), (4, C, 3)),
    "batch": (lambda: nn.BatchNorm2d(C), (4, C, 3, 3)),
    "instance": (lambda: nn.InstanceNorm1d(C, affine=True, track_running_stats=True), (4, C, 3)),
    "another": (lambda: Slow(C), (4, C)),
}
OWN = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm")


@pytest.fixture
def own_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of torch's norm functions that are called from now on."""
    calls: list[str] = []
    for name in OWN:
        plain = getattr(functional, name)

        def noted(*args: Any, name: str = name, plain: Any = plain, **options: Any) -> Any:
            calls.append(name)
            return plain(*args, **options)

        monkeypatch.setattr(functional, name, noted)
    return calls


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_min_elements(name: str, training: bool, own_calls: list[str]) -> None:
    """Input of fewer elements is computed by the layer's own forward, other input by anynorm, also in copies."""
    make, shape = LAYERS[name]
    model = nn.Sequential(make()).train(training)
    twin = copy.deepcopy(model)
    x = torch.randn(shape)
    acceleration = accelerate(model, min_elements=x.numel())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for accelerated in (copy.deepcopy(model), torch.load(file, weights_only=False), model):
        own_calls.clear()
        y = accelerated(x)
        assert own_calls == []
        torch.testing.assert_close(y, copy.deepcopy(twin)(x))
        own_calls.clear()
        accelerated(x[:3])
        assert len(own_calls) == 1
    with torch_layers(model):
        assert type(model[0]) is type(twin[0])
    assert isinstance(model[0], type(twin[0]))
    acceleration.undo()
    assert type(model[0]) is type(twin[0])


def test_min_elements_beside_a_wrapper(own_calls: list[str]) -> None:
    """A wrapper that was put around the forward calls torch's once the layer is torch's again."""
    model = nn.Sequential(nn.LayerNorm(C))
    acceleration = accelerate(model, min_elements=1)
    forward = model[0].forward
    model[0].forward = lambda x: forward(x)
    x = torch.randn(3, C)
    model(x)
    assert own_calls == []
    acceleration.undo()
    model(x)
    assert own_calls == ["layer_norm"]


def test_min_elements_compiles() -> None:
    """A layer of either size compiles into one graph, and computes what it does eagerly."""
    model = nn.Sequential(nn.LayerNorm(C), nn.Linear(C, C))
    accelerate(model, min_elements=4 * C)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for rows in (3, 4, 5):
        x = torch.randn(rows, C)
        torch.testing.assert_close(compiled(x), model(x))
    torch.compiler.reset()


@pytest.mark.parametrize(("value", "error", "words"), [(-1, ValueError, "0 or more"), (1.5, TypeError, "integer")])
def test_min_elements_that_is_none(value: Any, error: type[Exception], words: str) -> None:
    """A number of elements is an integer of 0 or more."""
    model = nn.Sequential(nn.LayerNorm(C))
    with pytest.raises(error, match=rf"accelerate: min_elements must be .*{words}"):
        accelerate(model, min_elements=value)
    assert type(model[0]) is nn.LayerNorm


class OverChannels(nn.LayerNorm):
    """Layer norm over the channels of images, whose result lies channels last."""

    def forward(self, x: Any) -> Any:
        x = x.movedim(1, -1)
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)


@pytest.mark.parametrize("shape", [(2, C, 3, 5), (2, C, 3), (2, C, 3, 5, 4)])
def test_memory_order(shape: tuple[int, ...]) -> None:
    """The result, and the gradient of x, lie in memory as the layer's own forward has them: what follows expects it."""
    model = nn.Sequential(OverChannels(C))
    x = torch.randn(shape)
    found = []
    for accelerated in (False, True):
        if accelerated:
            accelerate(model)
        own = x.clone().requires_grad_()
        y = model(own)
        y.square().sum().backward()
        found.append((y, y.stride(), own.grad))
    assert found[0][1] == found[1][1] != x.stride()
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][2], found[0][2])


class Own(nn.LayerNorm):
    """A subclass, which is taken by its rule."""


@pytest.mark.parametrize("make", [nn.LayerNorm, nn.RMSNorm, Own])
def test_result_without_gaps(make: Any) -> None:
    """Layer and RMS norm of a permuted view lie in memory in the order of axes, as torch's result does."""
    model = nn.Sequential(make(C))
    x = torch.randn(2, C, 3, 5).permute(0, 3, 2, 1)
    own = model(x)
    accelerate(model)
    assert own.stride() == model(x).stride() != x.stride()
    torch.testing.assert_close(model(x), own)


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(C), lambda: nn.BatchNorm1d(C, momentum=None)])
def test_batch_norm_compiles_with_open_numbers(make: Any) -> None:
    """Where the compiler leaves numbers of a layer open too, such as its momentum, training is one graph."""
    model, twin = nn.Sequential(make()), nn.Sequential(make())
    accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 5):
        x = torch.randn(rows, C)
        torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(model[0].running_var, twin[0].running_var)
    torch.compiler.reset()


class Skipping(nn.Module):
    """A model that leaves a layer out by chance, writes to its input, and is given part of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = Slow(C), Slow(C)

    def forward(self, batch: Any) -> Any:
        x = batch.pop("x")
        y = self.norm(x * 2)
        x.detach().zero_()
        return self.other(y) if torch.rand([]) < 0.5 else y


def test_model_that_goes_other_ways() -> None:
    """All steps begin in one random state, on a batch of their own."""
    inputs = torch.ones(3, C, requires_grad=True)
    batch = {"x": inputs * 2}
    for seed in range(4):
        torch.manual_seed(seed)
        acceleration = accelerate(Skipping(), measure=(batch,))
        assert acceleration.times["norm"].own > NAP
        assert ("other" in acceleration.times) == (torch.rand([]).item() < 0.5)
    assert torch.equal(batch["x"], torch.full((3, C), 2.0))
    assert inputs.grad is None


def test_graph_made_before_stays() -> None:
    """Tensors that no step wrote to are not written to either: a backward pass of an earlier forward pass works."""
    model = nn.Sequential(nn.LayerNorm(C), nn.BatchNorm1d(C)).eval()
    loss = model(torch.randn(3, C)).sum()
    accelerate(model, measure=torch.randn(3, C))
    loss.backward()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.LayerNorm(C), nn.LazyLinear(3)), "1.weight is not initialized yet. Call the model"),
        (nn.Sequential(nn.LayerNorm(C, elementwise_affine=False)), "requires a gradient, or no tensor is found"),
    ],
)
def test_model_that_cannot_be_timed(model: Any, words: str) -> None:
    """What cannot take a step is refused in words that say what to do."""
    with pytest.raises(ValueError, match=words):
        accelerate(model, measure=torch.randn(3, C))
    assert type(model[0]) is nn.LayerNorm


def test_model_that_differentiates_itself() -> None:
    """In evaluation a step runs in the caller's gradient mode: a model may need gradients within its forward pass."""

    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Slow(C)

        def forward(self, x: Any) -> Any:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.norm(x).square().sum(), x)[0]

    assert accelerate(Force().eval(), measure=torch.randn(3, C)).swapped == ("norm",)


def test_frozen_statistics_of_small_input() -> None:
    """Input that a layer's own code computes moves no statistics that are kept."""
    model = nn.Sequential(nn.InstanceNorm1d(C, track_running_stats=True))
    accelerate(model, min_elements=10**6)
    x = torch.randn(4, C, 5) + 1
    with frozen_statistics(model):
        model(x)
    assert torch.equal(model[0].running_mean, torch.zeros(C))
    model(x)
    assert not torch.equal(model[0].running_mean, torch.zeros(C))


def test_channels_last_rms_norm() -> None:
    """RMS norm of an image whose channels lie last returns it so, as torch's does."""
    model = nn.Sequential(nn.RMSNorm(5))
    x = torch.randn(2, C, 4, 5).to(memory_format=torch.channels_last)
    own = model(x)
    accelerate(model)
    assert model(x).stride() == own.stride()


class Formula(nn.Module):
    """RMS norm written out, whose result lies in memory as its input does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))

    def forward(self, x: Any) -> Any:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("shape", [(5, C), (2, 5, C), (2, 3, 5, C)])
def test_result_that_follows_its_input(shape: tuple[int, ...]) -> None:
    """Where the own result lies as a transposed input does, so does anynorm's."""
    model = nn.Sequential(Formula())
    x = torch.randn(shape).mT.contiguous().mT
    own = model(x)
    accelerate(model)
    assert model(x).stride() == own.stride() == x.stride()
