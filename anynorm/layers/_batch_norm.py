"""The layers that may keep running statistics: batch norm and instance norm."""

from __future__ import annotations

from anynorm._core.arrays import Array, Namespace
from anynorm._core.dispatch import Bound
from anynorm._core.plan import Axes, axes_argument, index_argument
from anynorm.backend import AnyResiduals
from anynorm.batch_norm import batch_norm
from anynorm.group_norm import instance_norm
from anynorm.layers._layer import Step, check_apart, count
from anynorm.layers._pytrees import pytree
from anynorm.layers._tracking import TrackingLayer


class _ByChannel(TrackingLayer):
    """A norm of each channel: by the running statistics, or by what `_function` measures."""

    num_features: int
    channel_axis: int
    batch_axis: Axes = None  # along which statistics are each sample's own

    def _step(self, x: Array, update: bool) -> Step:
        ops = self._check_input(x, (self.channel_axis,))
        options = {**self._affine(ops), "channel_axis": self.channel_axis, "eps": self.eps}
        if self._uses_running():
            statistics = self._statistics
            assert statistics is not None
            return Step(batch_norm, (), {**options, "mean": statistics.running_mean, "var": statistics.running_var})
        if type(self)._function is instance_norm:
            options["batch_axis"] = self.batch_axis
        return Step(type(self)._function, (), options, self._learns(x, ops, update))

    def _learn(self, call: Bound, residuals: AnyResiduals) -> None:
        x = call.x
        if call.entry.backend.ops.is_empty(x.shape):
            return
        ndim = len(x.shape)
        in_batch = () if self.batch_axis is None else self.batch_axis
        samples = {axis % ndim for axis in ((in_batch,) if isinstance(in_batch, int) else in_batch)}
        kept = sorted({self.channel_axis % ndim, *samples})
        self._enter(call, residuals, tuple([place for place, axis in enumerate(kept) if axis in samples]))


@pytree
class BatchNorm(_ByChannel):
    """Batch norm with weight, bias and running statistics.

    y = (x − mean) / √(var + eps) · weight + bias: in training with the batch's own mean and var, in evaluation (and
    while frozen) with the running ones, which each training step moves:

    running_mean ← (1 − momentum) · running_mean + momentum · mean
    running_var  ← (1 − momentum) · running_var  + momentum · var · n / (n − correction)

    A batch whose mean or variance is not finite enters no statistic and is counted in `num_batches_skipped`; an empty
    one changes nothing at all. Training steps of several threads enter one after the other.

    Parameters
    ----------
    num_features : int
        The number of channels: the length of x along channel_axis, and of weight, bias and statistics.
    channel_axis : int
        The axis of the channels; -1 for channels last. Every other axis is reduced.
    eps : float
        Added to the variance.
    momentum : float or None
        The weight of the new value (torch's convention; 1 − 0.99 for the 0.99 of Keras and Flax), or None for the
        average of all batches.
    correction : int
        1 tracks the unbiased variance, as torch does, 0 the biased one, as Keras, Flax and ONNX do.
    weight, bias, xp, dtype, device
        As in `LayerNorm`.
    track_running_stats : bool
        Whether to keep running statistics. Without, evaluation too uses the batch's own.

    Raises
    ------
    TypeError, ValueError
        As `LayerNorm` does.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> layer = an.BatchNorm(2, momentum=0.5, eps=0)
    >>> layer(np.asarray([[1.0, 10.0], [3.0, 30.0]])).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> layer.running_mean.tolist(), layer.running_var.tolist()
    ([1.0, 10.0], [1.5, 100.5])
    >>> layer.eval()(np.asarray([[1.0, 10.0]])).tolist()
    [[0.0, 0.0]]

    """

    _function = staticmethod(batch_norm)

    def __init__(
        self,
        num_features: int,
        *,
        channel_axis: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        correction: int = 1,
        weight: bool | Array = True,
        bias: bool | Array = True,
        track_running_stats: bool = True,
        xp: Namespace | None = None,
        dtype: object = None,
        device: object = None,
    ) -> None:
        self.num_features = count("BatchNorm", "num_features", num_features)
        self.channel_axis = index_argument("BatchNorm", "channel_axis", channel_axis)
        home = self._set_up((self.num_features,), weight, bias, xp, dtype, device, eps)
        self._set_up_statistics(momentum, correction, track_running_stats, home)


@pytree
class InstanceNorm(_ByChannel):
    """Instance norm, by default without parameters and without running statistics.

    y = (x − mean) / √(var + eps) · weight + bias with mean and var per sample and channel; with running statistics, in
    evaluation and while frozen, with those, which are the same for all samples. A training step moves them as in
    `BatchNorm`, towards the mean over the samples of each channel's mean and of its var · n / (n − correction).

    Parameters
    ----------
    num_features : int
        The number of channels: the length of x along channel_axis.
    channel_axis : int
        The axis of the channels; -1 for channels last.
    batch_axis : int, tuple of int or None
        The axes of the batch; None for unbatched input. Axes that are neither are reduced.
    eps, momentum, correction, track_running_stats
        As in `BatchNorm`, but nothing is tracked unless asked for.
    weight, bias, xp, dtype, device
        As in `LayerNorm`, but no weight and bias unless asked for.

    Raises
    ------
    TypeError, ValueError
        As `LayerNorm` does.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> layer = an.InstanceNorm(2, eps=0)
    >>> layer(np.asarray([[[1.0, 3.0], [10.0, 30.0]]])).tolist()
    [[[-1.0, 1.0], [-1.0, 1.0]]]

    """

    _function = staticmethod(instance_norm)

    def __init__(
        self,
        num_features: int,
        *,
        channel_axis: int = 1,
        batch_axis: Axes = 0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        correction: int = 1,
        weight: bool | Array = False,
        bias: bool | Array = False,
        track_running_stats: bool = False,
        xp: Namespace | None = None,
        dtype: object = None,
        device: object = None,
    ) -> None:
        self.num_features = count("InstanceNorm", "num_features", num_features)
        self.channel_axis = index_argument("InstanceNorm", "channel_axis", channel_axis)
        self.batch_axis = axes_argument("InstanceNorm", "batch_axis", batch_axis)
        check_apart("InstanceNorm", self.channel_axis, self.batch_axis)
        home = self._set_up((self.num_features,), weight, bias, xp, dtype, device, eps)
        self._set_up_statistics(momentum, correction, track_running_stats, home)
