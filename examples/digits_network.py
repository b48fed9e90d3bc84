"""A small convolutional network and its pullbacks, in array API calls: any array library, no automatic differentiation.

Every layer has what anynorm's layers have, so that the network need not tell them apart:

    y = layer(x)
    y, pullback = layer.vjp(x)
    dx, grads = pullback(dy)  # the gradient of x, and those of layer.params by the same names

Images are (N, H, W, C): sample, row, column, channel. Knows neither data nor training, and no library but through `xp`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import anynorm as an

NORMS = ("batch", "group", "layer", "instance", "rms", "none")
GROUPS = 4

Pullback = Callable[[Any], tuple[Any, dict[str, Any]]]


class Layer:
    """A layer that is not one of anynorm's: its arrays in a dict, and no mode."""

    def __init__(self, xp: Any, **params: Any) -> None:
        self.xp = xp
        self.params = params

    def __call__(self, x: Any) -> Any:
        """Return y."""
        return self.vjp(x)[0]

    def vjp(self, x: Any) -> tuple[Any, Pullback]:
        """Return y and its pullback."""
        raise NotImplementedError

    def state_dict(self, prefix: str = "") -> dict[str, Any]:
        """Return the arrays, with `prefix` before their names."""
        return {prefix + name: parameter for name, parameter in self.params.items()}

    def load_state_dict(self, state: Mapping[str, Any], *, prefix: str = "") -> None:
        """Replace the arrays by those of `state`, which are NumPy's."""
        for name, own in self.params.items():
            new = state.get(prefix + name)
            if new is None or new.shape != tuple(own.shape):
                msg = f"nothing fits {prefix}{name} of shape {tuple(own.shape)}"
                raise ValueError(msg)
            self.params[name] = self.xp.asarray(new, dtype=own.dtype)


class Convolution(Layer):
    """y[n, i, j] = Σ over a, b of x[n, i + a - 1, j + b - 1] @ weight[a, b], with zeros around the image.

    weight is (3, 3, C, channels of y). There is no bias: that is the norm's.
    """

    def vjp(self, x: Any) -> tuple[Any, Pullback]:
        """(N, H, W, C) -> (N, H, W, channels of y)."""
        xp, weight = self.xp, self.params["weight"]
        patches = _patches(xp, x)
        y = patches @ xp.reshape(weight, (-1, weight.shape[-1]))

        def pullback(dy: Any) -> tuple[Any, dict[str, Any]]:
            rows = xp.reshape(patches, (-1, patches.shape[-1]))
            dweight = xp.matrix_transpose(rows) @ xp.reshape(dy, (-1, dy.shape[-1]))
            # What x[i] gave to y[i - a + 1], it gets back from there: a convolution with the weight turned around.
            turned = xp.permute_dims(xp.flip(weight, axis=(0, 1)), (0, 1, 3, 2))
            dx = _patches(xp, dy) @ xp.reshape(turned, (-1, turned.shape[-1]))
            return dx, {"weight": xp.reshape(dweight, weight.shape)}

        return y, pullback


def _patches(xp: Any, x: Any) -> Any:
    """(N, H, W, C) -> (N, H, W, 9 C): the 3 x 3 neighbourhood of each place, so that convolving is one product."""
    n, height, width, channels = x.shape
    row = xp.zeros((n, 1, width, channels), dtype=x.dtype)
    x = xp.concat([row, x, row], axis=1)
    column = xp.zeros((n, height + 2, 1, channels), dtype=x.dtype)
    x = xp.concat([column, x, column], axis=2)
    shifted = [x[:, a : a + height, b : b + width, :] for a in range(3) for b in range(3)]
    return xp.concat(shifted, axis=-1)


class Bias(Layer):
    """y = x + bias: what is left of a norm where there is none."""

    def vjp(self, x: Any) -> tuple[Any, Pullback]:
        """(N, H, W, C) -> (N, H, W, C), bias of shape (C,)."""
        return x + self.params["bias"], lambda dy: (dy, {"bias": self.xp.sum(dy, axis=(0, 1, 2))})


class ReLU(Layer):
    """y = max(x, 0)."""

    def vjp(self, x: Any) -> tuple[Any, Pullback]:
        """Any shape."""
        positive = self.xp.astype(x > 0, x.dtype)
        return x * positive, lambda dy: (dy * positive, {})


class Pool(Layer):
    """y is the mean of each 2 x 2 places."""

    def vjp(self, x: Any) -> tuple[Any, Pullback]:
        """(N, H, W, C) -> (N, H/2, W/2, C)."""
        xp = self.xp
        n, height, width, channels = x.shape
        y = xp.mean(xp.reshape(x, (n, height // 2, 2, width // 2, 2, channels)), axis=(2, 4))

        def pullback(dy: Any) -> tuple[Any, dict[str, Any]]:
            return xp.repeat(xp.repeat(dy / 4, 2, axis=1), 2, axis=2), {}

        return y, pullback


class Linear(Layer):
    """y = x @ weight + bias, with all of a sample in one row."""

    def vjp(self, x: Any) -> tuple[Any, Pullback]:
        """(N, ...) -> (N, outputs)."""
        xp, weight = self.xp, self.params["weight"]
        rows = xp.reshape(x, (x.shape[0], -1))

        def pullback(dy: Any) -> tuple[Any, dict[str, Any]]:
            dx = xp.reshape(dy @ xp.matrix_transpose(weight), x.shape)
            return dx, {"weight": xp.matrix_transpose(rows) @ dy, "bias": xp.sum(dy, axis=0)}

        return rows @ weight + self.params["bias"], pullback


def cross_entropy(xp: Any, logits: Any, labels: Any) -> tuple[Any, Any]:
    """Return the mean over the samples of -log(softmax(logits)[label]), and its gradient by the logits (N, classes)."""
    shifted = logits - xp.max(logits, axis=1, keepdims=True)
    log_probabilities = shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))
    wanted = xp.astype(labels[:, None] == xp.arange(logits.shape[1])[None, :], logits.dtype)
    samples = logits.shape[0]
    loss = -xp.sum(wanted * log_probabilities) / samples
    return loss, (xp.exp(log_probabilities) - wanted) / samples


def make_norm(name: str, shape: tuple[int, int, int], xp: Any, dtype: Any) -> Any:
    """Return the layer that normalizes images of one shape (H, W, C)."""
    channels = shape[-1]
    match name:
        case "batch":
            return an.BatchNorm(channels, channel_axis=-1, xp=xp, dtype=dtype)
        case "group":
            return an.GroupNorm(GROUPS, channels, channel_axis=-1, xp=xp, dtype=dtype)
        case "layer":
            return an.LayerNorm(shape, xp=xp, dtype=dtype)
        case "instance":
            return an.InstanceNorm(channels, channel_axis=-1, weight=True, bias=True, xp=xp, dtype=dtype)
        case "rms":
            return an.RMSNorm(shape, bias=True, xp=xp, dtype=dtype)
        case _:
            return Bias(xp, bias=xp.zeros(channels, dtype=dtype))


def last_edge(blocks: int) -> int:
    """Return the height and width of the images in a network's last block."""
    return 8 >> (blocks - 1)


class Network:
    """Blocks of convolution, norm and ReLU, with pooling from one to the next; then a linear layer.

    (N, 8, 8, 1) -> (N, 8, 8, 16) -> (N, 4, 4, 32) -> (N, 2, 2, 64) -> (N, 10)

    A fourth block, where asked for, has images of a single place, (N, 1, 1, 64).

    Weights start normally distributed, with variance 2 / (inputs of one output), the same on every library.
    """

    def __init__(self, norm: str, xp: Any, *, blocks: int = 3, seed: int = 0, dtype: str = "float32") -> None:
        self.xp, self.dtype = xp, getattr(xp, dtype)
        self._random = np.random.default_rng(seed)
        self.layers: dict[str, Any] = {}
        size, inputs = 8, 1
        for block, channels in enumerate((16, 32, 64, 64)[:blocks], start=1):
            if block > 1:
                self.layers[f"pool{block}"] = Pool(xp)
                size //= 2
            # Of the 3 places in a direction, one less lies inside at each border: on average 3 - 2 / size.
            reached = inputs * (3 - 2 / size) ** 2
            self.layers[f"convolution{block}"] = Convolution(xp, weight=self._start((3, 3, inputs, channels), reached))
            self.layers[f"norm{block}"] = make_norm(norm, (size, size, channels), xp, self.dtype)
            self.layers[f"relu{block}"] = ReLU(xp)
            inputs = channels
        inputs *= size * size
        bias = xp.zeros(10, dtype=self.dtype)
        self.layers["linear"] = Linear(xp, weight=self._start((inputs, 10), inputs), bias=bias)

    def _start(self, shape: tuple[int, ...], inputs: float) -> Any:
        return self.xp.asarray(self._random.normal(0, (2 / inputs) ** 0.5, shape), dtype=self.dtype)

    def __call__(self, x: Any) -> Any:
        """Return the logits (N, 10) in evaluation: batch norm by its running statistics."""
        for layer in self._in_mode(training=False):
            x = layer(x)
        return x

    def vjp(self, x: Any) -> tuple[Any, Pullback]:
        """Return the logits in training, and their pullback, whose grads are keyed like `params`."""
        pullbacks = []
        for layer in self._in_mode(training=True):
            x, pullback = layer.vjp(x)
            pullbacks.append(pullback)

        def whole(dy: Any) -> tuple[Any, dict[str, Any]]:
            grads: dict[str, Any] = {}
            for name, pullback in zip(reversed(self.layers), reversed(pullbacks), strict=True):
                dy, theirs = pullback(dy)
                grads |= {f"{name}.{parameter}": gradient for parameter, gradient in theirs.items()}
            return dy, grads

        return x, whole

    def _in_mode(self, *, training: bool) -> list[Any]:
        """Return the layers, those that have modes in this one."""
        return [layer if isinstance(layer, Layer) else layer.train(training) for layer in self.layers.values()]

    @property
    def params(self) -> dict[str, Any]:
        """The trainable arrays by name, such as "norm1.weight", as a new dict."""
        return {
            f"{name}.{key}": parameter for name, layer in self.layers.items() for key, parameter in layer.params.items()
        }

    @params.setter
    def params(self, new: Mapping[str, Any]) -> None:
        for name, layer in self.layers.items():
            layer.params = {key: new[f"{name}.{key}"] for key in layer.params}

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters and, with batch norm, the running statistics."""
        return {
            key: value for name, layer in self.layers.items() for key, value in layer.state_dict(f"{name}.").items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over NumPy arrays by name, whichever library they come from; a ValueError if they do not fit."""
        for name, layer in self.layers.items():
            layer.load_state_dict(state, prefix=f"{name}.")
