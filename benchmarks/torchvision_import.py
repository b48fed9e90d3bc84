"""Importing torchvision beside a torch that its binary was not built for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

# Keeps the operators declared for as long as the process runs.
_DECLARED: list[Any] = []


def import_torchvision() -> None:
    """Import torchvision if it is installed, also where its binary does not load.

    So it is with one that was built for CUDA beside a torch that was not. timm, transformers and diffusers import it,
    and no model calls its operators; but its Python refuses to be imported until they are declared.
    """
    if not find_spec("torchvision"):
        return
    try:
        import_module("torchvision")
    except RuntimeError:
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
        import_module("torchvision")
