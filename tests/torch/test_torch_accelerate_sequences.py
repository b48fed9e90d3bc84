"""accelerate on Sequentials: a channel norm and the ReLU behind it are one pass on the CPU; all else stays."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.modules.module import register_module_forward_hook  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

import anynorm_torch.nn as ann  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # of comparisons that refuse what does not fit
    # Given once per process where the compiler meets a cache; test_ways_torch.py says where there must be none.
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"),
]

C = 6
SHAPE = (4, C, 5, 7)


class Frozen(nn.Module):
    """Batch norm by given statistics, as detection models have it; no class of torch's."""

    def __init__(self) -> None:
        super().__init__()
        for name, first in (("weight", -1.0), ("bias", -1.0), ("running_mean", -1.0), ("running_var", 0.5)):
            self.register_buffer(name, torch.linspace(first, 2, C))

    def forward(self, x: Any) -> Any:
        layer: Any = self
        args = layer.running_mean, layer.running_var, layer.weight, layer.bias
        return nn.functional.batch_norm(x, *args, False, 0.0, 1e-5)


class RoundedBefore(Frozen):
    """Likewise, but rounded before the weight is applied: the same in wide dtypes alone."""

    def forward(self, x: Any) -> Any:
        layer: Any = self
        wide = torch.promote_types(x.dtype, torch.float32)
        mean, var = [value.to(wide).reshape(C, 1, 1) for value in (layer.running_mean, layer.running_var)]
        xhat = (x.to(wide) - mean) / torch.sqrt(var + 1e-5)
        return xhat.to(x.dtype) * layer.weight.reshape(C, 1, 1) + layer.bias.reshape(C, 1, 1)


class ConvNorm(nn.Sequential):
    """A subclass that leaves forward to torch.nn.Sequential, and takes other arguments."""

    def __init__(self, channels: int = C) -> None:
        super().__init__(nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


PAIRS: dict[str, Any] = {
    "batch": lambda: nn.Sequential(nn.BatchNorm2d(C), nn.ReLU()),
    "in place": lambda: nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C), nn.ReLU(inplace=True), nn.Conv2d(C, C, 1)),
    "cumulative": lambda: nn.Sequential(nn.BatchNorm2d(C, momentum=None), nn.ReLU()),
    "untracked": lambda: nn.Sequential(nn.BatchNorm2d(C, track_running_stats=False), nn.ReLU()),
    "group": lambda: nn.Sequential(nn.GroupNorm(2, C), nn.Identity(), nn.ReLU()),
    "instance": lambda: nn.Sequential(nn.InstanceNorm2d(C, affine=True), nn.Dropout(0.0), nn.ReLU()),
    "tracked instance": lambda: nn.Sequential(nn.InstanceNorm2d(C, track_running_stats=True), nn.ReLU()),
    "by a rule": lambda: nn.Sequential(nn.Conv2d(C, C, 1), Frozen(), nn.ReLU()),
    "subclass": ConvNorm,
    "nested, two": lambda: nn.Sequential(ConvNorm(), nn.Sequential(nn.GroupNorm(3, C), nn.ReLU()), nn.ReLU()),
}
each_pair = pytest.mark.parametrize("name", PAIRS)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Return a list in which each call of a ReLU, Identity or Dropout notes its class."""
    noted: list[type] = []
    for cls in (nn.ReLU, nn.Identity, nn.Dropout):

        def forward(self: Any, x: Any, own: Any = cls.forward) -> Any:
            noted.append(type(self))
            return own(self, x)

        monkeypatch.setattr(cls, "forward", forward)
    return noted


def made(name: str, dtype: Any = None, training: bool = True) -> Any:
    """Return a model with weights of both signs."""
    generator = torch.Generator().manual_seed(1)
    model = PAIRS[name]().to(dtype).train(training)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return model


def an_input(dtype: Any = None) -> Any:
    """Return a batch of images, the same at each call."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)).to(dtype)


def results(model: Any, x: Any) -> list[Any]:
    """Return y, all gradients and all buffers after two steps."""
    for _ in range(2):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape))
    return [y.detach(), leaf.grad, *[p.grad for p in model.parameters()], *[b.clone() for b in model.buffers()]]


@each_pair
@each_mode
def test_one_pass_computes_the_same(name: str, training: bool, called: list[type]) -> None:
    """y, gradients and statistics equal the model's own to rounding, and no ReLU behind a norm is called."""
    model = made(name, torch.float64, training)
    expected = results(copy.deepcopy(model), an_input(torch.float64))
    ann.accelerate(model)
    called.clear()
    found = results(model, an_input(torch.float64))
    assert called == ([nn.ReLU] * 2 if name.startswith("nested") else [])
    for ours, own in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-12, atol=1e-12)


@each_pair
@each_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_pass_is_two_calls(name: str, training: bool, dtype: Any, called: list[type]) -> None:
    """The bits are those of anynorm's norm followed by torch's ReLU, which run while a hook watches every module."""
    model, other = made(name, dtype, training), made(name, dtype, training)
    ann.accelerate(model)
    ann.accelerate(other)
    for module in other.modules():
        module.register_forward_hook(lambda *_: None)
    found = results(model, an_input(dtype))
    called.clear()
    expected = results(other, an_input(dtype))
    assert called
    for ours, two in zip(found, expected, strict=True):
        assert torch.equal(ours, two)


def _replace_forward(module: Any) -> None:
    own = module.forward
    module.forward = lambda x: own(x) + 1


WATCHES: dict[str, Any] = {
    "hook": lambda module: module.register_forward_hook(lambda *args: args[-1] + 1),
    "pre-hook": lambda module: module.register_forward_pre_hook(lambda _, args: (args[0] * 2,)),
    "backward hook": lambda module: module.register_full_backward_hook(lambda _, dx, __: (dx[0] * 3,)),
    "forward": _replace_forward,
}


@pytest.mark.parametrize("place", [0, 1, 2], ids=["norm", "between", "relu"])
@pytest.mark.parametrize("watch", WATCHES)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_watched_modules_are_called(watch: str, place: int, before: bool) -> None:
    """What hooks and replaced forwards do to any module of a pair is done, put there before accelerate or after."""
    model = nn.Sequential(nn.GroupNorm(2, C), nn.Identity(), nn.ReLU()).double()
    own = copy.deepcopy(model)
    WATCHES[watch](own[place])
    if before:
        WATCHES[watch](model[place])
    ann.accelerate(model)
    if not before:
        WATCHES[watch](model[place])
    x = an_input(torch.float64)
    for ours, expected in zip(results(model, x), results(own, x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_global_hooks_see_each_module() -> None:
    """A hook on all modules is called for norm and ReLU, with what each of them gives."""
    model = made("batch")
    ann.accelerate(model)
    seen: list[Any] = []

    def note(module: Any, _: Any, y: Any) -> None:
        seen.append((type(module).__name__, bool((y < 0).any())))

    handle = register_module_forward_hook(note)
    try:
        model(an_input())
    finally:
        handle.remove()
    assert seen == [("BatchNorm2d", True), ("ReLU", False), ("Sequential", False)]


def test_dropout_that_drops_is_called(called: list[type]) -> None:
    """Between a norm and its ReLU a dropout is called in training and left out in evaluation."""
    model = nn.Sequential(nn.BatchNorm2d(C), nn.Dropout(0.9), nn.ReLU())
    ann.accelerate(model)
    assert (model(an_input()) == 0).float().mean() > 0.85
    assert called == [nn.Dropout, nn.ReLU]
    called.clear()
    assert (model.eval()(an_input()) == 0).float().mean() < 0.7
    assert not called


def test_parts_are_what_they_were() -> None:
    """A module of the Sequential, a slice of it, and the same with other modules compute by themselves."""
    model, x = made("group"), an_input()
    ann.accelerate(model)
    normed = model[0](x)
    assert (normed < 0).any()
    torch.testing.assert_close(model[:2](x), normed, rtol=0, atol=0)
    torch.testing.assert_close(model[1:](x), x.relu(), rtol=0, atol=0)
    model[2] = nn.Tanh()
    torch.testing.assert_close(model(x), normed.tanh(), rtol=0, atol=0)
    model[2] = nn.ReLU()
    model.append(nn.Tanh())
    torch.testing.assert_close(model(x), normed.relu().tanh(), rtol=0, atol=0)
    model[0] = nn.Identity()
    torch.testing.assert_close(model(x), x.relu().tanh(), rtol=0, atol=0)


def test_only_torchs_own_forward_is_replaced(called: list[type]) -> None:
    """A Sequential with another forward, or without a channel norm right before a ReLU, keeps its class."""

    class Other(nn.Sequential):
        def forward(self, x: Any) -> Any:
            y: Any = nn.Sequential.forward(self, x)  # type: ignore[no-untyped-call]
            return y * 2

    replaced = made("batch")
    _replace_forward(replaced)
    kept: list[Any] = [
        Other(nn.BatchNorm2d(C), nn.ReLU()),
        replaced,
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(C)),
        nn.Sequential(nn.BatchNorm2d(C), nn.Conv2d(C, C, 1), nn.ReLU()),
        nn.Sequential(nn.BatchNorm2d(C), nn.LeakyReLU(), nn.ReLU()),
        nn.Sequential(nn.LayerNorm(7), nn.ReLU()),
    ]
    for model in kept:
        own, expected = type(model), copy.deepcopy(model)(an_input())
        acceleration = ann.accelerate(model)
        assert type(model) is own
        assert "with the ReLU" not in repr(acceleration)
        called.clear()
        torch.testing.assert_close(model(an_input()), expected)
        assert nn.ReLU in called


def test_subclass_of_our_norm_with_a_forward_of_its_own() -> None:
    """A norm whose class changes forward again is called."""

    class Doubled(ann.BatchNorm2d):
        def forward(self, input: Any) -> Any:  # noqa: A002  torch's name
            return super().forward(input) * -2

    model = nn.Sequential(Doubled(C), nn.ReLU(), nn.BatchNorm2d(C), nn.ReLU())
    own = copy.deepcopy(model)
    ann.accelerate(model)
    torch.testing.assert_close(model(an_input()), own(an_input()))


def test_parametrized_norm() -> None:
    """A norm parametrized afterwards has the parametrized weight in the one pass."""
    model = made("group")
    ann.accelerate(model)

    class Negated(nn.Module):
        def forward(self, weight: Any) -> Any:
            return -weight

    expected = torch.relu(2 * model[0].bias.reshape(C, 1, 1) - model[0](an_input()))
    parametrize.register_parametrization(model[0], "weight", Negated())
    torch.testing.assert_close(model(an_input()), expected)


def test_listed_and_undone(called: list[type]) -> None:
    """repr says which norms have a ReLU after them; undo and the end of a block give all classes back."""
    model = nn.Sequential(ConvNorm(), nn.BatchNorm2d(C))
    classes = [type(module) for module in model.modules()]
    acceleration = ann.accelerate(model)
    assert isinstance(model[0], ConvNorm)
    assert acceleration.swapped == ("0.1", "1")
    assert [line.endswith(", with the ReLU after it") for line in repr(acceleration).splitlines()[1:]] == [True, False]
    ann.accelerate(model).undo()  # has nothing to undo
    assert isinstance(model[0], ConvNorm)
    assert type(model[0]) is not ConvNorm
    acceleration.undo()
    assert [type(module) for module in model.modules()] == classes
    model(an_input())
    assert called == [nn.ReLU]
    with ann.accelerate(model):
        assert type(model[0]) is not ConvNorm
    assert [type(module) for module in model.modules()] == classes


def test_wrapped_sequential_after_undo() -> None:
    """A wrapper that was put around a Sequential's forward goes on after undo, around torch's."""
    model = made("batch")
    own = copy.deepcopy(model)
    acceleration = ann.accelerate(model)
    _replace_forward(model)
    acceleration.undo()
    assert type(model) is nn.Sequential
    assert torch.equal(model(an_input()), own(an_input()) + 1)


def test_torch_layers() -> None:
    """Within torch_layers a Sequential is of its own class, so that it can be scripted; afterwards it joins again."""
    model = made("batch", training=False)
    ann.accelerate(model)
    joining, expected = type(model), model(an_input())
    with ann.torch_layers(model):
        assert type(model) is nn.Sequential
        torch.testing.assert_close(torch.jit.script(model)(an_input()), expected)
    assert type(model) is joining is not nn.Sequential


@each_pair
def test_copies_and_files(name: str, called: list[type]) -> None:
    """deepcopy and pickle keep the one pass, a state_dict knows no difference, and each copy is undone by none."""
    model = made(name, training=False)
    own = copy.deepcopy(model)
    acceleration = ann.accelerate(model)
    expected = model(an_input())
    called.clear()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        assert torch.equal(other(an_input()), expected)
        assert len(called) == (1 if name.startswith("nested") else 0)
        called.clear()
    own.load_state_dict(model.state_dict())
    model.load_state_dict(own.state_dict())
    acceleration.undo()
    assert type(model) is type(own)
    assert repr(model) == repr(own)


def test_fx_sees_each_module() -> None:
    """A symbolic trace has one node for each module, as before."""
    model = made("in place", training=False)
    before = [str(node.target) for node in torch.fx.symbolic_trace(model).graph.nodes]
    ann.accelerate(model)
    traced = torch.fx.symbolic_trace(model)
    assert [str(node.target) for node in traced.graph.nodes] == before
    torch.testing.assert_close(traced(an_input()), model(an_input()))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["in place", "group", "by a rule"])
def test_compiled_exported_traced(name: str) -> None:
    """torch.compile makes one graph of an accelerated Sequential; export and jit.trace give its numbers."""
    model = made(name, training=False)
    ann.accelerate(model)
    x, expected = an_input(), model(an_input())
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x), expected)
    for number in range(len(model)):  # as a call of each module
        assert f'getattr(self, "{number}")' in traced.code


def test_compiled_module_of_a_pair() -> None:
    """A module that was compiled in place is called."""
    model = made("batch", training=False)
    ann.accelerate(model)
    ran: list[int] = []

    def compiled(x: Any) -> Any:
        ran.append(1)
        return x.relu()

    model[1]._compiled_call_impl = compiled
    model(an_input())
    assert ran


def test_small_input_runs_its_own_code(called: list[type]) -> None:
    """With min_elements, smaller input has two calls and larger input one, for instance norm too."""
    for norm in (nn.BatchNorm2d(C), nn.InstanceNorm2d(C), Frozen()):
        model = nn.Sequential(norm, nn.ReLU())
        own = copy.deepcopy(model)
        ann.accelerate(model, min_elements=an_input().numel())
        called.clear()
        assert torch.equal(model(an_input()[1:]), torch.relu(own[0](an_input()[1:])))
        assert called == [nn.ReLU]
        model(an_input())
        assert called == [nn.ReLU]


def test_other_input_goes_to_the_modules(called: list[type]) -> None:
    """Unbatched input, which instance norm alone serves, other ranks, and other devices are two calls."""
    instance = made("instance", training=False)
    rule = made("by a rule")[1:]
    own = copy.deepcopy(instance), copy.deepcopy(rule)
    ann.accelerate(instance)
    ann.accelerate(rule)
    unbatched = an_input()[0, :, :, :1].expand(C, 5, C).mT
    torch.testing.assert_close(instance(unbatched), own[0](unbatched))
    flat = an_input().flatten(2).flatten(0, 0)[:, :, 0]
    torch.testing.assert_close(rule(flat), own[1](flat))
    called.clear()
    assert instance.to("meta")(torch.empty(SHAPE, device="meta")).shape == SHAPE
    assert called == [nn.Dropout, nn.ReLU]


def test_dtype_that_a_rule_does_not_serve(called: list[type]) -> None:
    """Where a layer's own forward serves a dtype of x, it is called, and then ReLU."""
    model = nn.Sequential(RoundedBefore(), nn.ReLU()).double()
    own = copy.deepcopy(model)
    assert ann.accelerate(model).swapped == ("0",)
    model(an_input(torch.float64))
    assert not called
    x = an_input(torch.bfloat16)
    assert torch.equal(model.bfloat16()(x), own.bfloat16()(x))
    assert called == [nn.ReLU] * 2


def test_errors_are_the_layers() -> None:
    """Input of other channels is the error that the norm raises by itself."""
    for name in ("batch", "group", "instance"):
        model = made(name)
        ann.accelerate(model)
        for x in (torch.ones(2, C + 1, 3, 3), torch.ones(2)):
            with pytest.raises(ValueError) as alone:  # noqa: PT011  whatever it says
                model[0](x)
            with pytest.raises(ValueError) as joined:  # noqa: PT011
                model(x)
            assert str(joined.value) == str(alone.value)


def test_functorch() -> None:
    """vmap and grad of torch.func run through it."""
    model = made("group")
    ann.accelerate(model)
    x = an_input()
    each = torch.func.vmap(lambda one: model(one[None])[0])(x)
    torch.testing.assert_close(each, model(x))
    found = torch.func.grad(lambda leaf: model(leaf).square().sum())(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(model(leaf).square().sum(), leaf)[0])
