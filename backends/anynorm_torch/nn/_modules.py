"""torch.nn's normalization layers with anynorm's arithmetic: subclasses of torch's own that differ in `forward` alone.

Constructors, parameters, buffers and their names, repr and modes are torch's. No formula stands here: each forward ends
in one of anynorm's functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.modules import batchnorm, instancenorm

import anynorm as an
from anynorm._core.arrays import described
from anynorm._core.dispatch import Head, bound, forward, head_of, normalized
from anynorm.backend import RunningStatistics
from anynorm.layers._running import entered_by_moments
from anynorm_torch._ops import OPS

# What a channel norm does behind the shift, by `activation` of its function.
Activation: TypeAlias = Literal["relu"] | None

# What layers call, by the number of trailing axes.
_LAYER_NORM = {ndim: head_of(an.layer_norm, axis=tuple(range(-ndim, 0))) for ndim in range(1, 9)}
_RMS_NORM = {ndim: head_of(an.rms_norm, axis=tuple(range(-ndim, 0))) for ndim in range(1, 9)}
_BY_RUNNING = {
    activation: head_of(an.batch_norm, mean=(), var=(), activation=activation) for activation in (None, "relu")
}


class LayerNorm(torch.nn.LayerNorm):
    """torch.nn.LayerNorm, by `anynorm.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name: it may be passed by keyword
        """Normalize over the trailing axes of length `normalized_shape`."""
        if not (isinstance(input, Tensor) and isinstance(self, LayerNorm)):
            return _not_computed(self, LayerNorm, input)
        weight, bias = _affine(self)
        head, x = _trailing(self, input, _LAYER_NORM)
        return normalized(head, x, weight, bias, None, self.eps)  # type: ignore[no-any-return]


class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm, by `anynorm.rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale over the trailing axes of length `normalized_shape`; eps=None is the compute dtype's own."""
        if not (isinstance(x, Tensor) and isinstance(self, RMSNorm)):
            return _not_computed(self, RMSNorm, x)
        head, x = _trailing(self, x, _RMS_NORM)
        eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps if self.eps is None else self.eps
        return normalized(head, x, self.weight, None, None, eps)  # type: ignore[no-any-return]


class GroupNorm(torch.nn.GroupNorm):
    """torch.nn.GroupNorm, by `anynorm.group_norm`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Normalize each of `num_groups` groups of channels of each sample."""
        if not (isinstance(input, Tensor) and isinstance(self, GroupNorm)):
            return _not_computed(self, GroupNorm, input)
        return self._activated(input, None)

    def _activated(self, x: Tensor, activation: Activation) -> Tensor:
        try:
            weight, bias = _affine(self)
            return an.group_norm(x, self.num_groups, weight, bias, eps=self.eps, activation=activation)
        except ValueError as error:
            raise _of_channels(self, self.num_channels, x, error) from None


def batch_normalized(layer: Any, x: Tensor, activation: Activation) -> Tensor:
    """Return what a batch norm's forward does, through an activation."""
    layer._check_input_dim(x)
    if not layer.training:
        return _by_running(layer, x, activation)
    return _by_batch(layer, an.batch_norm, x, layer.momentum, layer.num_batches_tracked, activation=activation)


class _BatchNorm(batchnorm._BatchNorm):
    """The forward pass that the three batch norms share."""

    _activated = batch_normalized

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Normalize each channel: by the batch in training, else by the running statistics, where there are any."""
        if not (isinstance(input, Tensor) and isinstance(self, _BatchNorm)):
            return _not_computed(self, _BatchNorm, input)
        return batch_normalized(self, input, None)


class _InstanceNorm(instancenorm._InstanceNorm):
    """The forward pass that the three instance norms share. Unbatched input and its checks are torch's forward's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Normalize each channel of each sample: by its own statistics, or in evaluation by those that are tracked."""
        if not (isinstance(input, Tensor) and isinstance(self, _InstanceNorm)):
            return _not_computed(self, _InstanceNorm, input)
        return super().forward(input)

    def _activated(self, x: Tensor, activation: Activation) -> Tensor | None:
        layer: Any = self
        layer._check_input_dim(x)
        if x.ndim == layer._get_no_batch_dim() or x.shape[1] != self.num_features:
            return None
        return self._apply_instance_norm(x, activation)

    def _apply_instance_norm(self, input: Tensor, activation: Activation = None) -> Tensor:  # noqa: A002  torch's name
        """Normalize each channel of each sample of batched input; by running statistics in evaluation, if tracked."""
        if self.track_running_stats and self.running_mean is not None and not self.training:
            return _by_running(self, input, activation)
        if OPS.holds(math.prod(input.shape[2:]) == 1):  # Size.numel() makes a constant of lengths that are open
            msg = (
                f"{type(self).__name__}: input of shape {tuple(input.shape)} has one value per sample and channel, so "
                "its variance is 0 and the result is the bias whatever the input is. Use larger inputs, or LayerNorm."
            )
            raise ValueError(msg)
        return _by_batch(self, an.instance_norm, input, self.momentum, None, samples=(0,), activation=activation)


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, by `anynorm.batch_norm`."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, by `anynorm.batch_norm`."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """torch.nn.BatchNorm3d, by `anynorm.batch_norm`."""


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d, by `anynorm.instance_norm`."""


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d, by `anynorm.instance_norm`."""


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d, by `anynorm.instance_norm`."""


# torch's class -> ours.
CLASSES: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    getattr(torch.nn, ours.__name__): ours
    for ours in (LayerNorm, RMSNorm, GroupNorm, *_BatchNorm.__subclasses__(), *_InstanceNorm.__subclasses__())
}
for own, ours in CLASSES.items():
    ours.__module__ = "anynorm_torch.nn"  # what a saved model names: the public place, not this file
    ours._anynorm_own = own  # type: ignore[attr-defined]


def frozen_statistics(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Keep the running statistics of a model's anynorm layers as they are, within a `with` block.

    Layers in training mode go on normalizing by their batch. For a forward pass that repeats one, as activation
    checkpointing does.

    Parameters
    ----------
    model : torch.nn.Module
        Its layers of this package are concerned, itself included.

    Raises
    ------
    TypeError
        model is no torch.nn.Module.

    Examples
    --------
    >>> import torch
    >>> import anynorm_torch.nn
    >>> layer = anynorm_torch.nn.BatchNorm1d(2)
    >>> with anynorm_torch.nn.frozen_statistics(layer):
    ...     y = layer(torch.ones(3, 2))
    >>> layer.running_mean.tolist()
    [0.0, 0.0]

    """
    check_module("frozen_statistics", model)
    return _frozen(model)


def check_module(function: str, model: object) -> None:
    """Raise a TypeError unless a model is one."""
    if not isinstance(model, torch.nn.Module):
        msg = f"{function}: model must be a torch.nn.Module, got {type(model).__name__}. Pass the model itself."
        raise TypeError(msg)


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    layers: Any = [module for module in model.modules() if isinstance(module, _BatchNorm | _InstanceNorm)]
    tracking = [layer for layer in layers if layer.track_running_stats and layer.training]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


def _not_computed(layer: torch.nn.Module, ours: type[torch.nn.Module], value: Any) -> Any:
    """Return what the forward of one of our classes gives where nothing is to be computed by it; or raise a TypeError.

    Wrappers that were put around a layer's forward call ours also when the layer is torch's again. torch.fx takes
    torch's own layers for one operation each, and so it does ours.
    """
    if not isinstance(layer, ours):
        return type(layer).forward(layer, value)
    if isinstance(value, torch.fx.Proxy):
        tracer: Any = value.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(layer), (value,), {})
    msg = (
        f"{type(layer).__name__}: input must be a tensor of torch, got {described(value)}. "
        "Convert it first, e.g. torch.as_tensor(input, dtype=torch.float32)."
    )
    raise TypeError(msg)


def _of_channels(layer: torch.nn.Module, channels: int, x: Tensor, error: ValueError) -> ValueError:
    """Return the error for input of other channels than a layer was made for, where they are so, else the given one."""
    if x.ndim < 2 or x.shape[1] == channels:
        return error
    return ValueError(
        f"{type(layer).__name__}: input of shape {tuple(x.shape)} has {x.shape[1]} channels along axis 1, but the "
        f"layer was made for {channels}. Pass input of {channels} channels, or make the layer for {x.shape[1]}."
    )


def _affine(layer: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return a layer's weight and bias. From its dict of parameters: as attributes the two take 0.8 µs."""
    own = layer._parameters
    if "weight" in own and "bias" in own:
        return own["weight"], own["bias"]
    return layer.weight, layer.bias  # replicas, and what torch's pruning has replaced


def _running(layer: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return a layer's running mean and variance, likewise."""
    own = layer._buffers
    if "running_mean" in own and "running_var" in own:
        return own["running_mean"], own["running_var"]
    return layer.running_mean, layer.running_var


def _trailing(layer: LayerNorm | RMSNorm, x: Tensor, heads: Mapping[int, Head]) -> tuple[Head, Tensor]:
    """Return the call for as many trailing axes, and x in the order of memory that torch's result has.

    That is without gaps: what follows, which is mostly a product of matrices, would copy it else. Raises a ValueError
    unless x has the layer's lengths there.
    """
    ndim = len(layer.normalized_shape)
    if x.is_nested:  # which has no shape to show
        return heads[ndim], x
    if x.shape[-ndim:] != layer.normalized_shape:
        msg = (
            f"{type(layer).__name__}: input has shape {tuple(x.shape)}, but the layer normalizes trailing axes of "
            f"lengths normalized_shape={layer.normalized_shape}. Pass input of shape (*, "
            f"{', '.join(map(str, layer.normalized_shape))}), or make the layer for {tuple(x.shape[-ndim:])}."
        )
        raise ValueError(msg)
    if ndim not in heads:
        msg = f"{type(layer).__name__}: normalized_shape has {ndim} axes. Make the layer for 1 to {len(heads)} of them."
        raise ValueError(msg)
    return heads[ndim], x if x.is_contiguous() or _stays(layer, x) else x.contiguous()


def _stays(layer: LayerNorm | RMSNorm, x: Tensor) -> bool:
    """Return whether torch's result lies channels last as x does: of RMS norm."""
    if isinstance(layer, LayerNorm) or x.ndim not in (4, 5):
        return False
    return x.is_contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def _by_running(layer: batchnorm._NormBase, x: Tensor, activation: Activation = None) -> Tensor:
    """Normalize each channel by the layer's running statistics; by the batch's own where it has none."""
    (weight, bias), (mean, var) = _affine(layer), _running(layer)
    try:
        if mean is None or var is None:
            return an.batch_norm(x, weight=weight, bias=bias, mean=mean, var=var, eps=layer.eps, activation=activation)
        return normalized(_BY_RUNNING[activation], x, weight, bias, (mean, var), layer.eps)  # type: ignore[no-any-return]
    except ValueError as error:
        raise _of_channels(layer, layer.num_features, x, error) from None


def _by_batch(
    layer: batchnorm._NormBase,
    function: Callable[..., Any],
    x: Tensor,
    momentum: float | None,
    tracked: Tensor | None,
    samples: tuple[int, ...] = (),
    activation: Activation = None,
) -> Tensor:
    """Normalize by the batch's own statistics, which enter the layer's, if it has any, unless they are not finite.

    These are written in place, so that references to them stay valid.
    """
    try:
        weight, bias = _affine(layer)
        call = bound(function, (x,), {"weight": weight, "bias": bias, "eps": layer.eps, "activation": activation})
        y: Tensor
        y, residuals = forward(call)
        mean, var = _running(layer)
        if layer.track_running_stats and mean is not None:
            share = 0.0 if momentum is None and tracked is None else momentum
            running = RunningStatistics(mean, var, tracked)
            if not samples and call.entry.executable.update_running(residuals, running, share, 1, in_place=True):
                return y
            with torch.no_grad():
                new = entered_by_moments(call, residuals, running, share, 1, samples)
                for old, moved in zip(running, new, strict=True):
                    if old is not None:
                        old.copy_(moved)
    except ValueError as error:
        raise _of_channels(layer, layer.num_features, x, error) from None
    return y
