"""A model's own layers for a while: for exporters and tools that know torch's classes. Knows no arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from anynorm_torch.nn._modules import check_module
from anynorm_torch.nn._rules import own_class
from anynorm_torch.nn._swap import Swap
from anynorm_torch.nn._verdicts import named_layers


def torch_layers(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Give the anynorm layers of a model torch's own classes, and so torch's operators, within a `with` block.

    For exporters that write one node for a layer of torch's, and for tools that look layers up by their exact class.
    A layer may have been made as anynorm's or accelerated; if it was of another class than torch's, it gets that back.
    Within the block results are those classes', with their accuracy. Afterwards, also after an error, the layers are
    anynorm's again, but for those whose class something else has changed meanwhile. It is the layers that change, and
    so for all threads: no other one should be running the model.

    Parameters
    ----------
    model : torch.nn.Module
        Its layers are concerned, itself included.

    Raises
    ------
    TypeError
        model is no torch.nn.Module.

    Examples
    --------
    >>> import torch
    >>> import anynorm_torch.nn
    >>> model = torch.nn.Sequential(anynorm_torch.nn.LayerNorm(4))
    >>> with anynorm_torch.nn.torch_layers(model):
    ...     type(model[0]) is torch.nn.LayerNorm
    True
    >>> type(model[0]) is anynorm_torch.nn.LayerNorm
    True

    """
    check_module("torch_layers", model)
    return _torch_layers(model)


@contextmanager
def _torch_layers(model: torch.nn.Module) -> Iterator[None]:
    classes = [(layer, own_class(type(layer)), type(layer)) for _, layer in named_layers(model)]
    swaps = [Swap(layer, own, ours) for layer, own, ours in classes if own is not None]
    for swap in swaps:
        swap.revert()
    try:
        yield
    finally:
        for swap in swaps:
            swap.apply()
