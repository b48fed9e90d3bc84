"""The layers without statistics of their own: layer norm, RMS norm and group norm."""

from __future__ import annotations

from anynorm._core.arrays import Array, Namespace
from anynorm._core.plan import Axes, axes_argument, index_argument
from anynorm.group_norm import group_norm
from anynorm.layer_norm import layer_norm, rms_norm
from anynorm.layers._layer import Layer, Step, check_apart, count
from anynorm.layers._pytrees import pytree


class _OverAxes(Layer):
    """A norm over axes whose lengths are known when the layer is made."""

    def _set_axes(self, shape: int | tuple[int, ...], axis: Axes) -> None:
        """Check shape and axis, and keep them."""
        name = type(self).__name__
        lengths = shape if isinstance(shape, tuple | list) else (shape,)
        self.shape = tuple([count(name, "shape", length) for length in lengths])
        self.axis = axes_argument(name, "axis", axis)
        axes = self._axes()
        if not axes or len(axes) != len(self.shape) or len(set(axes)) != len(axes):
            msg = (
                f"{name}: shape={shape!r} and axis={axis!r} do not belong together. shape holds the length of each "
                "reduced axis, at least one, and axis names each once; axis=None stands for the last axes."
            )
            raise ValueError(msg)

    def _axes(self) -> tuple[int, ...]:
        if self.axis is None:
            return tuple(range(-len(self.shape), 0))
        return (self.axis,) if isinstance(self.axis, int) else self.axis

    def _step(self, x: Array, update: bool) -> Step:  # noqa: ARG002  nothing to update
        axes = self._axes()
        affine = self._affine(self._check_input(x, axes))
        return Step(type(self)._function, (), {**affine, "axis": axes, "eps": self.eps})


@pytree
class LayerNorm(_OverAxes):
    """Layer norm with weight and bias: mean 0 and variance 1 over the given axes, then scale and shift.

    y = (x − mean) / √(var + eps) · weight + bias, as `layer_norm` computes it.

    Parameters
    ----------
    shape : int or tuple of int
        The lengths of the reduced axes, in ascending order of the axes; the shape of weight and bias.
    axis : int, tuple of int or None
        The axes that are reduced; None for the last ones, as many as `shape` has.
    eps : float
        Added to the variance.
    weight, bias : bool or array
        Whether to have them, starting as ones and zeros; or the array to start with, taken as it is, whose library,
        dtype and device are then the layer's.
    xp : namespace or None
        The library of the layer's arrays, such as the module numpy, torch or jax.numpy; None for NumPy.
    dtype : dtype or str or None
        float16, bfloat16, float32 (None) or float64. x may have another.
    device : device or None
        As the library names it; None for its own choice.

    Raises
    ------
    TypeError
        An argument is of the wrong kind.
    ValueError
        An argument is out of range; arguments do not fit together; the library has no such dtype or device.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> layer = an.LayerNorm(3, eps=0)
    >>> layer(np.asarray([[1.0, 2.0, 3.0]])).round(4).tolist()
    [[-1.2247, 0.0, 1.2247]]
    >>> y, pullback = layer.vjp(np.asarray([[1.0, 2.0, 3.0]]))
    >>> dx, grads = pullback(np.ones((1, 3)))
    >>> grads["bias"].tolist()
    [1.0, 1.0, 1.0]

    """

    _function = staticmethod(layer_norm)

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        axis: Axes = None,
        eps: float = 1e-5,
        weight: bool | Array = True,
        bias: bool | Array = True,
        xp: Namespace | None = None,
        dtype: object = None,
        device: object = None,
    ) -> None:
        self._set_axes(shape, axis)
        self._set_up(self.shape, weight, bias, xp, dtype, device, eps)


@pytree
class RMSNorm(_OverAxes):
    """RMS norm with a weight: a root mean square of 1 over the given axes, then scale.

    y = x / √(mean(x²) + eps) · weight + bias, as `rms_norm` computes it.

    Parameters
    ----------
    shape, axis, weight, bias, xp, dtype, device
        As in `LayerNorm`, but no bias unless asked for.
    eps : float
        Added to the mean square.

    Raises
    ------
    TypeError, ValueError
        As `LayerNorm` does.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> layer = an.RMSNorm(2, eps=0)
    >>> layer(np.asarray([[3.0, 4.0]])).round(4).tolist()
    [[0.8485, 1.1314]]
    >>> list(layer.params)
    ['weight']

    """

    _function = staticmethod(rms_norm)

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        axis: Axes = None,
        eps: float = 1e-6,
        weight: bool | Array = True,
        bias: bool | Array = False,
        xp: Namespace | None = None,
        dtype: object = None,
        device: object = None,
    ) -> None:
        self._set_axes(shape, axis)
        self._set_up(self.shape, weight, bias, xp, dtype, device, eps)


@pytree
class GroupNorm(Layer):
    """Group norm with weight and bias: each sample normalized over groups of channels, then scaled and shifted.

    y = (x − mean) / √(var + eps) · weight + bias, as `group_norm` computes it.

    Parameters
    ----------
    num_groups : int
        A divisor of num_channels.
    num_channels : int
        The length of x along channel_axis, and of weight and bias.
    channel_axis : int
        The axis of the channels; -1 for channels last.
    batch_axis : int, tuple of int or None
        The axes of the batch; None for unbatched input.
    eps, weight, bias, xp, dtype, device
        As in `LayerNorm`.

    Raises
    ------
    TypeError, ValueError
        As `LayerNorm` does.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> layer = an.GroupNorm(2, 4, eps=0)
    >>> layer(np.asarray([[1.0, 3.0, 10.0, 30.0]])).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]

    """

    _function = staticmethod(group_norm)

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        *,
        channel_axis: int = 1,
        batch_axis: Axes = 0,
        eps: float = 1e-5,
        weight: bool | Array = True,
        bias: bool | Array = True,
        xp: Namespace | None = None,
        dtype: object = None,
        device: object = None,
    ) -> None:
        self.num_groups = count("GroupNorm", "num_groups", num_groups)
        self.num_channels = count("GroupNorm", "num_channels", num_channels)
        if self.num_channels % self.num_groups:
            msg = (
                f"GroupNorm: num_groups={num_groups} does not divide num_channels={num_channels}. "
                f"Choose a divisor of {num_channels}."
            )
            raise ValueError(msg)
        self.channel_axis = index_argument("GroupNorm", "channel_axis", channel_axis)
        self.batch_axis = axes_argument("GroupNorm", "batch_axis", batch_axis)
        check_apart("GroupNorm", self.channel_axis, self.batch_axis)
        self._set_up((self.num_channels,), weight, bias, xp, dtype, device, eps)

    def _step(self, x: Array, update: bool) -> Step:  # noqa: ARG002  nothing to update
        affine = self._affine(self._check_input(x, (self.channel_axis,)))
        axes = {"channel_axis": self.channel_axis, "batch_axis": self.batch_axis}
        return Step(type(self)._function, (self.num_groups,), {**affine, **axes, "eps": self.eps})
