"""accelerate: what it swaps, what it leaves, that it can be undone, and that the page of docs about it is true."""

from __future__ import annotations

import copy
import doctest
import re
from pathlib import Path
from typing import Any

import pytest
from torch_compiler import COMPILES

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

import anynorm_torch.nn  # noqa: E402
from anynorm_torch.nn import accelerate  # noqa: E402

pytestmark = COMPILES


class Residual(nn.Module):
    """A block of a residual network, with batch norm before its branches meet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(2, channels))

    def forward(self, x: Any) -> Any:
        return torch.relu(x + self.second(self.first(x)))


class Residuals(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True))
        self.blocks = nn.Sequential(Residual(8), Residual(8))
        self.head = nn.Linear(8, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Any) -> Any:
        return self.norm(self.head(self.blocks(self.stem(x)).mean((2, 3))))


class Transformer(nn.Module):
    """A small transformer: two layers of torch's own, then RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(2)]
        )
        self.norm = nn.RMSNorm(16)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


MODELS = {
    "residual": (Residuals, (4, 3, 8, 8), 6),
    "transformer": (Transformer, (3, 5, 16), 5),
}


def model_and_input(name: str, dtype: Any = None) -> tuple[Any, Any, int]:
    """Return a model, its input and the number of its norm layers."""
    torch.manual_seed(0)
    make, shape, norms = MODELS[name]
    return make().to(dtype), torch.randn(shape, dtype=dtype), norms


each_model = pytest.mark.parametrize("name", MODELS)


def classes(model: Any) -> list[type]:
    """Return the class of every module, in order."""
    return [type(module) for module in model.modules()]


def train(model: Any, x: Any, optimizer: Any, steps: int = 3) -> Any:
    """Take a few steps and return the model's output in evaluation."""
    for _ in range(steps):
        optimizer.zero_grad()
        y = model.train()(x)
        (y * y.detach().cos()).sum().backward()
        optimizer.step()
    return model.eval()(x)


@each_model
def test_model_computes_the_same(name: str) -> None:
    """A model swapped between the steps of an optimizer trains on as it would have with torch's layers."""
    model, x, norms = model_and_input(name, torch.float64)
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(value.parameters(), 1e-3, momentum=0.9) for value in (model, twin)]
    torch.testing.assert_close(train(model, x, optimizers[0]), train(twin, x, optimizers[1]), rtol=0, atol=0)
    acceleration = accelerate(model)
    assert len(acceleration.swapped) == norms
    assert not acceleration.left
    for accelerated in (True, False):
        torch.testing.assert_close(train(model, x, optimizers[0]), train(twin, x, optimizers[1]))
        if accelerated:
            assert classes(model) != classes(twin)
            acceleration.undo()
    assert classes(model) == classes(twin)


@each_model
def test_only_classes_change(name: str) -> None:
    """Every module, parameter and buffer stays the object it is; repr, hooks and modes stay as well."""
    model, x, _ = model_and_input(name)
    objects = [*model.modules(), *model.parameters(), *model.buffers()]
    shown, own = repr(model), classes(model)
    calls: list[Any] = []
    model.norm.register_forward_hook(lambda *_: calls.append(1))
    model.norm.eval()
    acceleration = accelerate(model)
    assert all(a is b for a, b in zip(objects, [*model.modules(), *model.parameters(), *model.buffers()], strict=True))
    assert repr(model) == shown
    model(x)
    assert calls == [1]
    assert not model.norm.training
    for name_of_layer in acceleration.swapped:
        assert type(model.get_submodule(name_of_layer)).__module__ == "anynorm_torch.nn"
    acceleration.undo()
    assert classes(model) == own


def test_every_class_is_swapped() -> None:
    """All of torch's norm layers that anynorm has are known."""
    own = [nn.LayerNorm(2), nn.RMSNorm(2), nn.GroupNorm(1, 2)]
    own += [getattr(nn, f"{kind}Norm{ndim}d")(2) for kind in ("Batch", "Instance") for ndim in (1, 2, 3)]
    model = nn.ModuleList(own)
    assert accelerate(model).swapped == tuple([str(i) for i in range(9)])
    assert [type(value) for value in model] == [getattr(anynorm_torch.nn, type(value).__name__) for value in model]


@pytest.mark.parametrize(
    ("model", "x"),
    [
        pytest.param(nn.LayerNorm(64), 1e6 + torch.linspace(-2, 2, 64), id="layer"),
        pytest.param(nn.Sequential(nn.BatchNorm1d(1)), 1e6 + torch.linspace(-2, 2, 64)[:, None], id="batch"),
    ],
)
def test_accelerated_model_is_right(model: Any, x: Any) -> None:
    """Where torch's float32 layer loses its digits, the accelerated one has them; a norm layer alone is swapped too."""
    exact = copy.deepcopy(model).double()(x.double())
    assert (model(x) - exact).abs().max() > 1e-3
    with accelerate(model):
        assert (model(x) - exact).abs().max() < 1e-6


def left_alone() -> dict[str, tuple[Any, str]]:
    """Return layers that must stay as they are, with words of the reason."""

    class Own(nn.LayerNorm):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    replaced: Any = nn.LayerNorm(2)
    replaced.forward = lambda x: x
    parametrized = nn.LayerNorm(2)
    parametrize.register_parametrization(parametrized, "weight", nn.Softplus())
    return {
        "subclass": (Own(2), "Own: what it computes is none of anynorm's norms"),
        "sync": (nn.SyncBatchNorm(2), "between processes"),
        "lazy": (nn.LazyBatchNorm1d(), "not initialized yet"),
        "parametrized": (parametrized, "parametrized"),
        "replaced": (replaced, "replaced on the object"),
        "anynorm": (anynorm_torch.nn.LayerNorm(2), "anynorm's already"),
    }


@pytest.mark.parametrize("name", left_alone())
def test_left_alone(name: str) -> None:
    """What is not exactly torch's own layer keeps its class and is listed with the reason."""
    layer, words = left_alone()[name]
    own = type(layer)
    model = nn.Sequential(nn.Linear(2, 2), layer)
    acceleration = accelerate(model)
    assert acceleration.swapped == ()
    assert list(acceleration.left) == ["1"]
    assert words in acceleration.left["1"]
    acceleration.undo()
    assert type(layer) is own


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
def test_quantized_layer_is_left_alone() -> None:
    """A quantized layer, which derives from torch's float one, is left alone."""
    quantized = pytest.importorskip("torch.ao.nn.quantized", reason="this torch has no quantized layers")
    layer = quantized.BatchNorm2d(2)
    acceleration = accelerate(layer)
    assert "quantized" in acceleration.left[""]


def test_lazy_layer_is_swapped_once_it_is_initialized() -> None:
    """After its first batch a lazy layer is a plain one."""
    model = nn.Sequential(nn.LazyBatchNorm1d())
    model(torch.randn(3, 2))
    assert accelerate(model).swapped == ("0",)


def test_shared_layer() -> None:
    """A layer registered twice is swapped once, and undone."""
    layer = nn.LayerNorm(2)
    model = nn.Sequential(layer, nn.Linear(2, 2), layer)
    acceleration = accelerate(model)
    assert acceleration.swapped == ("0",)
    acceleration.undo()
    assert type(layer) is nn.LayerNorm


def test_twice() -> None:
    """A second call does nothing, nor does undoing it; undoing the first undoes all, and undoing is idempotent."""
    model = nn.Sequential(nn.LayerNorm(2), nn.LayerNorm(2))
    first = accelerate(model[0])
    second, third = accelerate(model), accelerate(model)
    assert [value.swapped for value in (first, second, third)] == [("",), ("1",), ()]
    third.undo()
    second.undo()
    assert classes(model)[1:] == [anynorm_torch.nn.LayerNorm, nn.LayerNorm]
    first.undo()
    assert classes(model)[1:] == [nn.LayerNorm, nn.LayerNorm]
    again = accelerate(model)
    first.undo()
    second.undo()
    assert [value.swapped for value in (first, second)] == [(), ()]
    assert again.swapped == ("0", "1")
    assert classes(model)[1:] == [anynorm_torch.nn.LayerNorm] * 2


def test_undo_waits_for_a_parametrization() -> None:
    """A layer parametrized after it was swapped works, is left alone by undo, which says so, and undone once plain."""
    model = nn.Sequential(nn.LayerNorm(4))
    acceleration = accelerate(model)
    x = torch.randn(3, 4)
    parametrize.register_parametrization(model[0], "weight", nn.Softplus())
    expected = nn.functional.layer_norm(x, (4,), nn.functional.softplus(torch.ones(4)))
    torch.testing.assert_close(model(x), expected)
    with pytest.warns(RuntimeWarning, match=re.escape("the class of 0 (now a ParametrizedLayerNorm). Take that off")):
        acceleration.undo()
    assert acceleration.swapped == ("0",)
    assert isinstance(model[0], anynorm_torch.nn.LayerNorm)
    parametrize.remove_parametrizations(model[0], "weight")
    acceleration.undo()
    assert not acceleration.swapped
    assert type(model[0]) is nn.LayerNorm


def test_context_manager() -> None:
    """The layers are torch's again after the block, also after one that an error ended."""
    model = nn.Sequential(nn.LayerNorm(2))
    with pytest.raises(KeyError), accelerate(model) as acceleration:  # noqa: PT012
        assert acceleration.swapped == ("0",)
        assert type(model[0]) is anynorm_torch.nn.LayerNorm
        raise KeyError
    assert type(model[0]) is nn.LayerNorm


def test_repr_lists_all() -> None:
    """An acceleration prints what was swapped and what was left, and why."""
    model = nn.ModuleDict({"norm": nn.GroupNorm(1, 2), "sync": nn.SyncBatchNorm(2)})
    lines = repr(accelerate(model)).splitlines()
    assert lines[0] == "Acceleration: 1 swapped, 1 left"
    assert lines[1] == "  norm: anynorm's GroupNorm, by anynorm_numba"
    assert lines[2].startswith("  sync: left, it shares statistics")
    assert "(the model): anynorm's LayerNorm" in repr(accelerate(nn.LayerNorm(2)))


def test_not_a_module() -> None:
    """Anything but a module is a TypeError that says so."""
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        accelerate([nn.LayerNorm(2)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"frozen_statistics: model must be a torch\.nn\.Module, got int"):
        anynorm_torch.nn.frozen_statistics(3)  # type: ignore[arg-type]


def test_copies_stay_accelerated() -> None:
    """A deep copy of an accelerated model is one too, and undo on the original leaves it so."""
    model = nn.Sequential(nn.LayerNorm(2))
    acceleration = accelerate(model)
    copied = copy.deepcopy(model)
    acceleration.undo()
    assert type(copied[0]) is anynorm_torch.nn.LayerNorm
    assert type(model[0]) is nn.LayerNorm


def test_compiled_model_notices() -> None:
    """A model that was compiled before follows the swap, and its undoing."""
    model = nn.Sequential(nn.BatchNorm1d(2))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = 1e6 + torch.randn(16, 2)
    native = compiled(x)
    with accelerate(compiled) as acceleration:
        assert acceleration.swapped == ("_orig_mod.0",)
        y = compiled(x)
        torch.testing.assert_close(y, model(x), rtol=0, atol=1e-5)
    assert (y - native).abs().max() > 1e-3
    torch.testing.assert_close(compiled(x), native, rtol=0, atol=1e-5)


def test_transformers_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known limit: in evaluation torch's encoder layer runs its own kernel and calls no norm, unless told not to."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    accelerate(layer)
    calls: list[Any] = []
    forward = anynorm_torch.nn.LayerNorm.forward

    def counted(self: Any, x: Any) -> Any:
        calls.append(self)
        return forward(self, x)

    monkeypatch.setattr(anynorm_torch.nn.LayerNorm, "forward", counted)
    x = torch.randn(3, 5, 16)
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        fast = layer(x)
        assert calls == []
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            torch.testing.assert_close(layer(x), fast)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert calls == [layer.norm1, layer.norm2]


BLOCKS = re.findall(
    r"```python\n(.*?)```",
    (Path(__file__).parents[2] / "docs" / "torch.md").read_text(encoding="utf-8"),
    flags=re.DOTALL,
)


def test_docs() -> None:
    """The page's Python blocks run as they stand, one after the other, and their assertions hold."""
    assert len(BLOCKS) >= 3
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/torch.md", "exec"), names)  # the page's own words


def test_doctests() -> None:
    """The examples in the docstrings of what this package offers to users are true."""
    runner = doctest.DocTestRunner()
    for public in (accelerate, anynorm_torch.nn.frozen_statistics):
        for example in doctest.DocTestFinder(recurse=False).find(public, public.__name__):
            assert runner.run(example) == (0, len(example.examples))
            assert example.examples
