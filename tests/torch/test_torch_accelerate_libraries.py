"""accelerate on small models of other libraries, with random weights. A library that is not installed is skipped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from anynorm_torch.nn import accelerate  # noqa: E402
from benchmarks.torchvision_import import import_torchvision  # noqa: E402

# They warn about one another.
pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = (4, 3, 64, 64)


def timm(name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return a model of timm and its input."""
    import_torchvision()
    return pytest.importorskip("timm").create_model(name, **options), {"x": torch.randn(IMAGES)}


def frozen() -> tuple[Any, dict[str, Any]]:
    """Return a residual network of torchvision with frozen batch norms, which are not all 0 and 1."""
    import_torchvision()
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d)
    for name, value in model.named_buffers():
        value.uniform_(0.5, 1.5) if "running_mean" not in name else value.normal_()
    return model, {"x": torch.randn(IMAGES)}


def language(kind: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return a language model of transformers and its input."""
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = getattr(transformers, f"{kind}Config")(**{**common, "vocab_size": 50, **options})
    config.torch_dtype = torch.float32
    return getattr(transformers, f"{kind}Model")(config), {"input_ids": torch.randint(0, 50, (2, 9))}


def t5() -> tuple[Any, dict[str, Any]]:
    """Return a small T5."""
    model, given = language("T5", d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2, dropout_rate=0.0)
    return model, {**given, "decoder_input_ids": given["input_ids"]}


def unet() -> tuple[Any, dict[str, Any]]:
    """Return a small U-Net of diffusers."""
    import_torchvision()
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    model = diffusers.UNet2DModel(
        8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4, **blocks
    )
    return model, {"sample": torch.randn(2, 3, 8, 8), "timestep": torch.tensor([3, 4])}


def wan() -> tuple[Any, dict[str, Any]]:
    """Return a small video transformer of diffusers, whose norms are of three kinds."""
    import_torchvision()
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.WanTransformer3DModel(
        num_layers=1, num_attention_heads=2, attention_head_dim=16, ffn_dim=32, text_dim=32, freq_dim=16
    )
    given = {"hidden_states": torch.randn(1, 16, 2, 4, 4), "encoder_hidden_states": torch.randn(1, 5, 32)}
    return model, {**given, "timestep": torch.tensor([3])}


def monai(name: str, *args: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return a network of MONAI and its input."""
    nets = pytest.importorskip("monai.networks.nets")
    return getattr(nets, name)(*args, **options), {"x": torch.randn(2, 1, 8, 8, 8)}


def graphs(norm: str) -> tuple[Any, dict[str, Any]]:
    """Return a network for graphs of PyTorch Geometric and its input; it gives its norms None for the batch."""
    layers = pytest.importorskip("torch_geometric.nn")
    edges = torch.randint(0, 12, (2, 40))
    return layers.GCN(8, 16, 2, norm=norm), {"x": torch.randn(12, 8), "edge_index": edges}


def segmentation() -> tuple[Any, dict[str, Any]]:
    """Return a U-Net for segmentation."""
    import_torchvision()
    segmentation = pytest.importorskip("segmentation_models_pytorch")
    return segmentation.Unet("resnet18", encoder_weights=None), {"x": torch.randn(IMAGES)}


MODELS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "timm resnet": lambda: timm("test_resnet"),
    "timm efficientnet": lambda: timm("test_efficientnet"),
    "timm convnext": lambda: timm("test_convnext"),
    "timm vit": lambda: timm("test_vit", img_size=64),
    "torchvision frozen": frozen,
    "transformers bert": lambda: language("Bert"),
    "transformers llama": lambda: language("Llama", num_key_value_heads=2),
    "transformers gemma": lambda: language("Gemma", num_key_value_heads=2, head_dim=16),
    "transformers mamba2": lambda: language("Mamba2", num_heads=4, head_dim=16, state_size=8, n_groups=2, chunk_size=4),
    "transformers t5": t5,
    "diffusers unet": unet,
    "diffusers wan": wan,
    "monai unet": lambda: monai("UNet", 3, 1, 2, (4, 8), (2,), norm="instance"),
    "monai segresnet": lambda: monai("SegResNet", 3, 8),
    "geometric batch": lambda: graphs("batch"),
    "geometric instance": lambda: graphs("instance"),
    "segmentation unet": segmentation,
}
# Their own norms compute in float32 whatever they are given.
CAST = {"transformers llama", "transformers gemma", "transformers mamba2", "transformers t5", "diffusers wan"}


def first(value: Any) -> Any:
    """Return the first tensor of what a model returns."""
    if torch.is_tensor(value):
        return value
    return first(next(iter(value.values())) if isinstance(value, dict) else value[0])


def trained(model: Any, given: dict[str, Any], steps: int = 3) -> list[list[Any]]:
    """Take steps; return what is to be compared together: outputs, gradients, parameters, buffers."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    outputs = []
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)  # of dropout
        y = first(model.train()(**given))
        (y * y.detach().cos()).mean().backward()
        optimizer.step()
        outputs.append(y.detach())
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    with torch.no_grad():
        outputs.append(first(model.eval()(**given)))
    statistics = [value for value in model.buffers() if value.is_floating_point()]
    return [outputs, gradients, list(model.parameters()), statistics or outputs]


@pytest.mark.parametrize("name", MODELS)
def test_model_computes_the_same(name: str) -> None:
    """All norm layers of a model are taken, and three steps in float64 give the same within 1e-12, if not cast."""
    torch.manual_seed(0)
    model, given = MODELS[name]()
    model = model.double()
    given = {key: value.double() if value.is_floating_point() else value for key, value in given.items()}
    twin = copy.deepcopy(model)
    acceleration = accelerate(model)
    assert acceleration.swapped
    assert not acceleration.left
    share = 2e-5 if name in CAST else 1e-12
    for ours, own in zip(trained(model, given), trained(twin, given), strict=True):
        largest = max([value.abs().max().item() for value in own])  # some are 0 but for rounding
        for a, b in zip(ours, own, strict=True):
            assert a.dtype == b.dtype
            assert (a - b).abs().max() <= share * largest
    acceleration.undo()
    assert [type(module) for module in model.modules()] == [type(module) for module in twin.modules()]


def test_keras_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of Keras on torch predicts the same, and trains the same: its batch norm moves statistics by itself."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras was loaded on another library")
    layers = keras.layers
    blocks = [layers.Conv2D(8, 3), layers.BatchNormalization(), layers.GroupNormalization(4)]
    model = keras.Sequential([layers.Input((8, 8, 3)), *blocks, layers.Flatten(), layers.LayerNormalization()])
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    acceleration = accelerate(model)
    assert len(acceleration.swapped) == 3
    assert not acceleration.left
    x = torch.randn(4, 8, 8, 3)
    for training in (False, True, False):
        torch.testing.assert_close(model(x, training=training), twin(x, training=training), rtol=1e-5, atol=1e-5)
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        assert abs(a - b).max() < 1e-6
