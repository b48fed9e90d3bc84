"""anynorm_torch.nn's layers under tools that know torch's: torch.fx, exporters, wrappers around a layer's forward."""

from __future__ import annotations

import functools
import io
from typing import Any

import pytest
from torch_layers import Setup, each_setup, one_of_each_kind

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402

import anynorm_torch.nn  # noqa: E402
from anynorm_torch.nn import accelerate, torch_layers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own


def far_from_zero(setup: Setup) -> Any:
    """Return input at which torch's layer loses digits that anynorm's has, so that the two can be told apart."""
    return setup.x() + 1e4


def counted(monkeypatch: pytest.MonkeyPatch, layer: Any) -> list[Any]:
    """Return a list that grows by one with each call of torch's own forward of a layer's class, or what it calls."""
    calls: list[Any] = []
    for name in ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"):
        own = getattr(nn.functional, name)

        def noted(*args: Any, own: Any = own, **options: Any) -> Any:
            calls.append(layer)
            return own(*args, **options)

        monkeypatch.setattr(nn.functional, name, noted)
    return calls


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_fusing_within_torch_layers() -> None:
    """Within torch_layers torch.ao.quantization folds a batch norm, and the folded model computes the same."""
    quantization = pytest.importorskip("torch.ao.quantization", reason="this torch has no quantization of its own")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    accelerate(model)
    with torch_layers(model):
        fused = quantization.fuse_modules(model, [["0", "1"]])
    x = torch.randn(2, 3, 5, 5)
    assert type(fused[1]) is nn.Identity
    torch.testing.assert_close(fused(x), model(x))


def wrap(layer: Any) -> None:
    """Put a wrapper around a layer's forward on the layer itself, as offloading hooks do."""
    own = layer.forward

    def moved(*args: Any, **options: Any) -> Any:
        return own(*args, **options)

    layer.forward = functools.update_wrapper(functools.partial(moved), own)


@one_of_each_kind
def test_symbolic_trace(setup: Setup) -> None:
    """torch.fx takes a layer for one operation, as it does torch's, and the traced model computes the same."""
    ours, _ = setup.pair()
    model = nn.Sequential(nn.Identity(), nn.ModuleList([ours])[0]).eval()
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert traced.get_submodule("1") is ours
    torch.testing.assert_close(traced(setup.x()), model(setup.x()), rtol=0, atol=0)


def test_symbolic_trace_of_a_block() -> None:
    """A layer within a block is found by its path, and keyword arguments pass."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"norm": anynorm_torch.nn.LayerNorm(4)})

        def forward(self, x: Any) -> Any:
            return x + self.inner["norm"](input=x)

    traced = torch.fx.symbolic_trace(Block())
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["inner.norm"]


@one_of_each_kind
def test_torch_layers(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the block a layer has torch's class and runs torch's operator; afterwards it is anynorm's."""
    layers = setup.pair()
    ours, theirs = [layer.eval() for layer in layers]
    cls, x = type(ours), far_from_zero(setup)
    calls = counted(monkeypatch, ours)
    y = ours(x)
    assert not calls
    with torch_layers(nn.Sequential(ours)):
        assert type(ours) is type(theirs)
        assert torch.equal(ours(x), theirs(x))
        assert len(calls) == 2
    assert type(ours) is cls
    assert torch.equal(ours(x), y)
    assert len(calls) == 2


class Root(nn.Module):
    """A norm layer of no class of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.eps = 1e-6

    def forward(self, x: Any) -> Any:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def test_layer_of_another_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of no class of torch's is of its own within the block, and after undo also under a wrapper."""
    layer = Root()
    acceleration = accelerate(nn.Sequential(layer))
    assert acceleration.swapped == ("0",)
    ours, own, calls = type(layer), torch.rsqrt, []

    def noted(x: Any) -> Any:
        calls.append(x)
        return own(x)

    monkeypatch.setattr(torch, "rsqrt", noted)
    x = torch.randn(3, 6)
    with torch_layers(layer):
        assert type(layer) is Root
        layer(x)
    assert type(layer) is ours
    wrap(layer)
    layer(x)
    assert len(calls) == 1
    acceleration.undo()
    layer(x)
    assert len(calls) == 2


def test_torch_layers_restores_after_an_error() -> None:
    """An error within the block ends it as any other end does; blocks within each other end one after the other."""
    model = nn.Sequential(anynorm_torch.nn.LayerNorm(4), nn.LayerNorm(4))
    accelerate(model)
    own = [type(layer) for layer in model]
    with torch_layers(model):
        with pytest.raises(KeyError), torch_layers(model):
            raise KeyError
        assert [type(layer) for layer in model] == [nn.LayerNorm] * 2
    assert [type(layer) for layer in model] == own == [anynorm_torch.nn.LayerNorm] * 2


def test_torch_layers_leaves_what_changed_meanwhile() -> None:
    """A layer that was given another class within the block keeps it."""

    class Own(nn.LayerNorm):
        pass

    layer: Any = anynorm_torch.nn.LayerNorm(4)
    with torch_layers(layer):
        layer.__class__ = Own
    assert type(layer) is Own


def test_torch_layers_takes_modules_alone() -> None:
    """Anything but a module is a TypeError that says so, before the block."""
    with pytest.raises(TypeError, match=r"torch_layers: model must be a torch\.nn\.Module, got int"):
        torch_layers(3)  # type: ignore[arg-type]


# The legacy exporter's own: of itself, and of torch's instance norm.
@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning")
@pytest.mark.filterwarnings(
    "ignore:ONNX export mode is set to TrainingMode.EVAL, but operator 'instance_norm':UserWarning"
)
@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
def test_onnx_nodes(dynamo: bool) -> None:
    """Exported under torch_layers, layers are single nodes of ONNX."""
    onnx = pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    layers = [anynorm_torch.nn.BatchNorm2d(4), anynorm_torch.nn.InstanceNorm2d(4), anynorm_torch.nn.LayerNorm(6)]
    model = nn.Sequential(nn.ReLU(), *layers).eval()
    file = io.BytesIO()
    with torch_layers(model):
        torch.onnx.export(model, (torch.randn(2, 4, 5, 6),), file, dynamo=dynamo, opset_version=18)
    nodes = [node.op_type for node in onnx.load_from_string(file.getvalue()).graph.node]
    for name in ("BatchNormalization", "InstanceNormalization", "LayerNormalization"):
        assert nodes.count(name) == 1


@one_of_each_kind
def test_undo_under_a_wrapper(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper put on after accelerating computes by torch's operator once that is undone."""
    _, layer = setup.pair()
    layer.eval()
    x = far_from_zero(setup)
    expected = layer(x)
    model = nn.Sequential(layer)
    acceleration = accelerate(model)
    wrap(layer)
    calls = counted(monkeypatch, layer)
    layer(x)
    assert not calls
    acceleration.undo()
    assert not acceleration.swapped
    assert torch.equal(layer(x), expected)
    assert len(calls) == 1


@each_setup("layer", "batch2d")
def test_undo_under_hooks_of_accelerate(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the hooks of Hugging Face's accelerate, also once these are taken off."""
    hooks = pytest.importorskip("accelerate.hooks")
    _, layer = setup.pair()
    acceleration = accelerate(nn.Sequential(layer.eval()))
    hooks.add_hook_to_module(layer, hooks.ModelHook())
    calls = counted(monkeypatch, layer)
    layer(setup.x())
    acceleration.undo()
    assert not calls
    layer(setup.x())
    assert len(calls) == 1
    hooks.remove_hook_from_module(layer)
    layer(setup.x())
    assert len(calls) == 2
