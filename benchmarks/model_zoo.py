"""The models that `python -m benchmarks models` times: small, from published configurations, with random weights.

How each is made and fed, and nothing about timing. A model's library is imported when the model is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.machine import installed
from benchmarks.torchvision_import import import_torchvision

Inputs = dict[str, torch.Tensor]


class Model(NamedTuple):
    """A model: its name with the shape of its input, the library it is of, and what makes it and its input."""

    name: str
    package: str
    build: Callable[[], tuple[torch.nn.Module, Inputs]]

    def make(self) -> tuple[torch.nn.Module, Inputs]:
        """Return the model with random weights, the same each time, and its input."""
        import_torchvision()
        torch.manual_seed(0)
        return self.build()

    def missing(self) -> str | None:
        """Return why it cannot be made, where its library is not installed."""
        return None if installed(self.package) else f"{self.package} is not installed"


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def _tokens(vocabulary: int, *shape: int) -> torch.Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))


def _timm(name: str, *shape: int) -> tuple[torch.nn.Module, Inputs]:
    import timm

    return timm.create_model(name, pretrained=False), {"x": _random(*shape)}


def _swin(*shape: int) -> tuple[torch.nn.Module, Inputs]:
    from torchvision.models import swin_t

    return swin_t(weights=None), {"x": _random(*shape)}


def _bert(*shape: int) -> tuple[torch.nn.Module, Inputs]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, vocab_size=2000
    )
    return BertModel(config), {"input_ids": _tokens(2000, *shape)}


def _llama(*shape: int) -> tuple[torch.nn.Module, Inputs]:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=688, vocab_size=2000,
        use_cache=False,
    )  # fmt: skip
    return LlamaModel(config), {"input_ids": _tokens(2000, *shape)}


def _diffusers_unet(*shape: int) -> tuple[torch.nn.Module, Inputs]:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=shape[-1],
        block_out_channels=(64, 128, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
    )
    text = _random(shape[0], 16, 128)
    return model, {"sample": _random(*shape), "timestep": torch.tensor(10), "encoder_hidden_states": text}


def _monai_unet(*shape: int) -> tuple[torch.nn.Module, Inputs]:
    from monai.networks.nets import UNet

    model = UNet(
        spatial_dims=3, in_channels=1, out_channels=2, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2,
        norm="instance",
    )  # fmt: skip
    return model, {"x": _random(*shape)}


def _model(name: str, package: str, build: Callable[..., tuple[torch.nn.Module, Inputs]], *shape: int) -> Model:
    return Model(f"{name} {shape}", package, partial(build, *shape))


MODELS = (
    _model("timm resnet50", "timm", partial(_timm, "resnet50"), 4, 3, 128, 128),
    _model("timm regnety_002", "timm", partial(_timm, "regnety_002"), 4, 3, 128, 128),
    _model("timm convnext_nano", "timm", partial(_timm, "convnext_nano"), 4, 3, 128, 128),
    _model("timm vit_tiny_patch16_224", "timm", partial(_timm, "vit_tiny_patch16_224"), 4, 3, 224, 224),
    _model("torchvision swin_t", "torchvision", _swin, 2, 3, 224, 224),
    _model("transformers BERT 4 × 256", "transformers", _bert, 8, 128),
    _model("transformers Llama 4 × 256", "transformers", _llama, 8, 128),
    _model("diffusers UNet2DCondition", "diffusers", _diffusers_unet, 2, 4, 32, 32),
    _model("monai UNet, instance norm", "monai", _monai_unet, 1, 1, 64, 64, 64),
    _model("monai UNet, instance norm", "monai", _monai_unet, 1, 1, 16, 16, 16),
)
