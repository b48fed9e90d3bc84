"""Empty copies of a layer to try its forward on, and what one call of it does. Nothing of the model is touched.

No rule is known here: `_probe.py` compares.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import anynorm as an


class Odd(Exception):  # noqa: N818  it is no error: a reason why a layer is left
    """A layer's forward does what no norm layer does. The message is a sentence about `it`."""


class OtherShape(Odd):
    """A forward's result is not one tensor of its input's shape."""


class Recorder(torch.nn.Module):
    """Stands for a submodule: an elementwise function unlike that of any other, which notes that it was called."""

    def __init__(self, name: str, number: int, log: list[str]) -> None:
        super().__init__()
        self.name, self.number, self.log = name, number, log

    def forward(self, x: Tensor) -> Tensor:
        """Return a straight line of x."""
        self.log.append(self.name)
        return x * (0.75 + self.number / 2) + (self.number + 1) / 8


@dataclass
class Call:
    """What a call gave: the result, the buffers afterwards, the submodules in the order of their calls, gradients."""

    y: Tensor
    buffers: dict[str, Tensor]
    log: tuple[str, ...]
    gradients: list[Tensor | None]


class Twin:
    """A layer's class and plain attributes on the CPU, with numbers drawn by chance for its tensors.

    Where the layer says `length`, in shapes and attributes, this one says `short`.
    """

    def __init__(self, layer: torch.nn.Module, length: int, short: int, generator: torch.Generator) -> None:
        self.layer = layer
        self.plain = {name: resized(value, length, short) for name, value in vars(layer).items()}
        # Keras keeps running statistics as parameters; of others, one may be frozen now and learned later.
        self.learned = {
            name for name, value in tensors_of(layer).items() if value.requires_grad or name in layer._parameters
        }
        self.tensors = {
            name: _drawn(name, resized(tuple(value.shape), length, short), value.dtype, generator)
            for name, value in tensors_of(layer).items()
        }

    def call(
        self,
        cls: type[torch.nn.Module],
        tensors: tuple[Tensor, ...],
        dtype: Any,
        *,
        training: bool,
        dy: Tensor | None = None,
    ) -> Call:
        """Return what a class's forward does with tensors, with the parameters in a dtype; with dy, gradients too."""
        log: list[str] = []
        twin = self._made(cls, dtype, log)
        twin.training = training
        given = [x.clone().requires_grad_(dy is not None) for x in tensors]
        versions = [x._version for x in given]
        with torch.set_grad_enabled(dy is not None):
            state = torch.get_rng_state()
            y = getattr(cls, method_of(cls))(twin, *given)
            if not torch.equal(state, torch.get_rng_state()):
                msg = "it draws random numbers"
                raise Odd(msg)
            if [x._version for x in given] != versions:
                msg = "it changes its input"
                raise Odd(msg)
            if not isinstance(y, Tensor) or y.shape != given[0].shape:
                msg = "its result is not one tensor of its input's shape"
                raise OtherShape(msg)
            parameters = [value for name, value in tensors_of(twin).items() if name in self.learned]
            gradients = _gradients(y, [*given, *parameters], dy)
        buffers = {name: value for name, value in twin._buffers.items() if value is not None}
        return Call(y.detach(), buffers, tuple(log), gradients)

    def _made(self, cls: type[torch.nn.Module], dtype: Any, log: list[str]) -> Any:
        twin: Any = object.__new__(cls)
        torch.nn.Module.__init__(twin)  # no hooks
        for name, value in self.plain.items():
            if name not in vars(twin):
                vars(twin)[name] = copy.copy(value) if isinstance(value, list | dict | set) else value
        twin._parameters.update(dict.fromkeys(self.layer._parameters))
        twin._buffers.update(dict.fromkeys(self.layer._buffers))
        for name, value in self.tensors.items():
            drawn = value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
            if name in twin._buffers:
                twin._buffers[name] = drawn
            else:
                where = twin._parameters if name in twin._parameters else vars(twin)
                where[name] = torch.nn.Parameter(drawn, requires_grad=name in self.learned)
        for number, name in enumerate(self.layer._modules):
            twin._modules[name] = Recorder(name, number, log)
        return twin


def method_of(cls: type[torch.nn.Module]) -> str:
    """Return the name of the method that computes: Keras's layers have a forward that calls another."""
    return "call" if any(base.__module__.startswith("keras.") for base in cls.__mro__) else "forward"


def tensors_of(layer: torch.nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers that a layer itself has; of Keras's, the values of its variables."""
    own = {**layer._parameters, **layer._buffers}
    if method_of(type(layer)) == "call":
        own |= {name: tensor_in(value) for name, value in vars(layer).items()}
    return {name: value for name, value in own.items() if isinstance(value, Tensor)}


def tensor_in(value: Any) -> Any:
    """Return the tensor that a variable of Keras holds; anything else as it is."""
    return value if value is None or isinstance(value, Tensor) else getattr(value, "value", value)


def resized(value: Any, length: int, short: int) -> Any:
    """Return a number, or a tuple or list of numbers, with `short` for `length`."""
    if type(value) in (tuple, list, torch.Size):
        return type(value)([resized(part, length, short) for part in value])
    return short if type(value) is int and value == length else value


def _drawn(name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return a tensor of numbers of both signs, but positive ones for a variance; integers are 0."""
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    drawn = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
    return drawn.abs() + 0.25 if "var" in name else drawn


def _gradients(y: Tensor, to: list[Tensor], dy: Tensor | None) -> list[Tensor | None]:
    if dy is None:
        return []
    if not y.requires_grad:
        msg = "its result has no gradient"
        raise Odd(msg)
    return list(torch.autograd.grad((y * dy).sum(), to, allow_unused=True))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Try layers out so that they find and leave none of the modes, devices and random states around."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are small: among other processes threads wait ten times as long as they work
    try:
        with (
            warnings.catch_warnings(),
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.device("cpu"),
            an.fast_paths(False),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_rng_state(state)
        torch.set_num_threads(threads)
