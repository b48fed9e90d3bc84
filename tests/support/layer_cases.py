"""Layers in their settings, with the function and torch's module of the same meaning. No test is in here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from libraries import ArrayLibrary, NumPyArray, numpy_dtype

import anynorm as an

SHAPE = (4, 6, 5, 3)  # N, C, H, W


class Case(NamedTuple):
    """A layer in one of its settings, the function it calls in training, and torch's module of the same meaning."""

    last: int | tuple[int, ...]  # channel_axis, or axis, for (N, H, W, C)
    make: Callable[..., Any]
    function: Callable[[Any, Any, Any], Any]  # of the layer, x and the axis
    module: Callable[[Any], Any]  # of torch


CASES = {
    "layer": Case(
        (1, 2, 3),
        lambda axis, **home: an.LayerNorm(_lengths(axis), axis=axis, **home),
        lambda layer, x, axis: an.layer_norm(x, layer.weight, layer.bias, axis=axis),
        lambda torch: torch.nn.LayerNorm(SHAPE[1:]),
    ),
    "layer-channels": Case(
        -1,
        lambda axis, **home: an.LayerNorm(6, axis=axis, eps=1e-3, **home),
        lambda layer, x, axis: an.layer_norm(x, layer.weight, layer.bias, axis=axis, eps=1e-3),
        lambda torch: _over_channels(torch, torch.nn.LayerNorm(6, eps=1e-3)),
    ),
    "rms-channels": Case(
        -1,
        lambda axis, **home: an.RMSNorm(6, axis=axis, **home),
        lambda layer, x, axis: an.rms_norm(x, layer.weight, axis=axis),
        lambda torch: _over_channels(torch, torch.nn.RMSNorm(6, eps=1e-6)),
    ),
    "group": Case(
        -1,
        lambda axis, **home: an.GroupNorm(3, 6, channel_axis=axis, **home),
        lambda layer, x, axis: an.group_norm(x, 3, layer.weight, layer.bias, channel_axis=axis),
        lambda torch: torch.nn.GroupNorm(3, 6),
    ),
    "instance": Case(
        -1,
        lambda axis, **home: an.InstanceNorm(6, channel_axis=axis, **home),
        lambda _, x, axis: an.instance_norm(x, channel_axis=axis),
        lambda torch: torch.nn.InstanceNorm2d(6),
    ),
    "instance-tracked": Case(
        -1,
        lambda axis, **home: an.InstanceNorm(
            6, channel_axis=axis, weight=True, bias=True, track_running_stats=True, momentum=0.3, **home
        ),
        lambda layer, x, axis: an.instance_norm(x, weight=layer.weight, bias=layer.bias, channel_axis=axis),
        lambda torch: torch.nn.InstanceNorm2d(6, affine=True, track_running_stats=True, momentum=0.3),
    ),
    "batch": Case(
        -1,
        lambda axis, **home: an.BatchNorm(6, channel_axis=axis, **home),
        lambda layer, x, axis: an.batch_norm(x, weight=layer.weight, bias=layer.bias, channel_axis=axis),
        lambda torch: torch.nn.BatchNorm2d(6),
    ),
    "batch-cumulative": Case(
        -1,
        lambda axis, **home: an.BatchNorm(6, channel_axis=axis, momentum=None, eps=1e-3, **home),
        lambda layer, x, axis: an.batch_norm(x, weight=layer.weight, bias=layer.bias, channel_axis=axis, eps=1e-3),
        lambda torch: torch.nn.BatchNorm2d(6, momentum=None, eps=1e-3),
    ),
    "batch-untracked": Case(
        -1,
        lambda axis, **home: an.BatchNorm(6, channel_axis=axis, track_running_stats=False, weight=False, **home),
        lambda layer, x, axis: an.batch_norm(x, bias=layer.bias, channel_axis=axis),
        lambda torch: torch.nn.BatchNorm2d(6, track_running_stats=False),
    ),
}

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _lengths(axis: tuple[int, ...]) -> tuple[int, ...]:
    return SHAPE[1:] if axis == (-3, -2, -1) else (*SHAPE[2:], SHAPE[1])


def _over_channels(torch: Any, module: Any) -> Any:
    """Return torch's module, which normalizes over the last axis, for channels first."""

    class OverChannels(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.weight = module.weight
            self.bias = getattr(module, "bias", None)

        def forward(self, x: Any) -> Any:
            return module(x.movedim(1, -1)).movedim(-1, 1)

    return OverChannels()


def axis_of(case: Case, last: bool) -> Any:
    """Return the axis argument for either order of axes."""
    if isinstance(case.last, tuple):
        return case.last if last else (-3, -2, -1)
    return -1 if last else 1


def ordered(array: NumPyArray, last: bool) -> NumPyArray:
    """Return an (N, C, H, W) array, or the lengths and the weight of layer norm's (C, H, W), in the wanted order."""
    return np.moveaxis(array, -3, -1) if last and array.ndim > 2 else array


def make_layer(case: Case, library: ArrayLibrary, last: bool, dtype: str = "float32", seed: int = 0) -> Any:
    """Return a layer whose parameters and statistics are those of a model in the midst of training."""
    layer = case.make(axis_of(case, last), weight=True) if case is CASES["layer"] else case.make(axis_of(case, last))
    rng = np.random.default_rng(seed)
    state = {}
    for name, value in layer.state_dict().items():
        if name == "num_batches_tracked":
            state[name] = library.make(np.asarray(value))
            continue
        values = rng.uniform(0.5, 1.5, (6, *SHAPE[2:]) if value.ndim == 3 else 6).astype(numpy_dtype(dtype))
        state[name] = library.make(np.ascontiguousarray(ordered(values, last)))
    if "running_mean" in state:
        state["num_batches_skipped"] = library.make(np.asarray(layer.num_batches_skipped))
    layer._assign(state)
    return layer


def batch(step: int, samples: int = 4) -> NumPyArray:
    """Return an x of float64, another for each step."""
    return np.random.default_rng(100 + step).normal(1.0, 2.0, (samples, *SHAPE[1:]))


def namespace_of(library: ArrayLibrary) -> Any:
    """Return what a layer takes as xp."""
    if library.package == "dask":
        return pytest.importorskip("dask.array")
    return pytest.importorskip("jax.numpy" if library.package == "jax" else library.package)
