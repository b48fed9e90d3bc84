"""What bounds a norm: its call with copies in place of the arithmetic, and what a small call is made of.

A copy moves the bytes that any way of computing the norm moves: forward reads x and writes y; backward reads x and dy
and writes dx. Knows no peer but torch, whose copies and sums use all cores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

import anynorm as an
from benchmarks.problems import LARGE, NAMED, Data
from benchmarks.timing import Call, per_call

BOUND = "copies"  # named as the peer

# A part of a call is the least of so many measurements of so many calls.
_ROUNDS, _CALLS = 15, 300


def copying(data: Data, direction: str, arrays: str) -> Call:
    """Return a call of anynorm's with copies in place of the arithmetic: results of the same sizes, made anew."""
    if arrays == "numpy":
        x, dy, _, _ = data.numpy
        if direction == "forward":
            return partial(_copy, x)
        return lambda: (_copy(x), _sum(x, dy))
    x, dy, weight, bias = data.torch
    if direction == "forward":
        return partial(_clone, x)
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    return partial(_there_and_back, _copies(), leaves, dy)


def _copy(x: Any) -> Any:
    import torch

    y = np.empty_like(x)
    if x.size < LARGE:  # torch would use one thread as well, and take longer to begin
        np.copyto(y, x)
    else:
        torch.from_numpy(y).copy_(torch.from_numpy(x))
    return y


def _sum(x: Any, dy: Any) -> Any:
    import torch

    dx = np.empty_like(x)
    if x.size < LARGE:
        np.add(x, dy, out=dx)
    else:
        torch.add(torch.from_numpy(x), torch.from_numpy(dy), out=torch.from_numpy(dx))
    return dx


def _clone(x: Any) -> Any:
    return x.clone()


def _there_and_back(function: Any, leaves: list[Any], dy: Any) -> Any:
    import torch

    y = function.apply(*leaves)
    return y, *torch.autograd.grad(y, leaves, dy)


@cache
def _copies() -> Any:
    """Return an autograd.Function that copies x forward and adds dy to it backward."""
    import torch

    class Copies(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, *parameters: Any) -> Any:
            ctx.save_for_backward(x, *parameters)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, *parameters = ctx.saved_tensors
            return x + dy, *parameters

    return Copies


def calls() -> dict[str, float]:
    """Return microseconds that small calls take, and their parts: layer norm of (8, 64) float32, weight and bias."""
    import torch
    from torch.nn import functional

    data = Data(NAMED[0])
    x, _, weight, bias = data.numpy
    tensor, dy, its_weight, its_bias = data.torch
    leaves = [array.detach().requires_grad_() for array in (tensor, its_weight, its_bias)]
    lengths = tuple(tensor.shape[1:])

    def recorded(function: Callable[..., Any], *arguments: Any) -> Any:
        return torch.autograd.grad(function(*arguments), leaves, dy)

    timed: dict[str, Call] = {
        "anynorm, NumPy arrays": partial(an.layer_norm, x, weight, bias),
        "- numpy.empty_like": partial(np.empty_like, x),
        **_compiled(x, weight, bias),
        "anynorm, torch tensors": partial(an.layer_norm, tensor, its_weight, its_bias),
        "- torch.empty_like": partial(torch.empty_like, tensor),
        "torch.nn.functional.layer_norm": partial(functional.layer_norm, tensor, lengths, its_weight, its_bias),
        "anynorm, torch tensors, forward + backward": partial(recorded, an.layer_norm, *leaves),
        "- an autograd.Function that copies": partial(_there_and_back, _copies(), leaves, dy),
        "torch.nn.functional.layer_norm, forward + backward": partial(
            recorded, functional.layer_norm, leaves[0], lengths, *leaves[1:]
        ),
    }
    return {name: min([per_call(value, _CALLS) for _ in range(_ROUNDS)]) * 1e6 for name, value in timed.items()}


def _compiled(x: Any, weight: Any, bias: Any) -> dict[str, Call]:
    """Return the engine's compiled call of a layer norm, all decided, and the same with nothing to do."""
    from anynorm._core.dispatch import bound
    from anynorm_numba import _geometry, _threads, engine

    plan, y = bound(an.layer_norm, (x, weight, bias), {}).entry.plan, np.empty_like(x)
    strides = x.strides, y.strides
    layouts = (weight.shape, weight.strides), (bias.shape, bias.strides)
    configs = engine.Configs(plan, "float32", x.shape, strides, *layouts)
    assert configs.prepare() is None
    config = configs.now()
    addresses = at_x, at_y, at_weight, at_bias = engine.addresses(x, y, weight, bias)
    engine.forward(config, at_x, at_y, at_weight, at_bias, 0, 1e-5)  # so that it is compiled
    kept = config, y  # memory behind the addresses
    rest = (config.address, *addresses, 0, 0, 0, 1e-5)

    def run(tasks: int, _: Any = kept) -> None:
        _threads.serial(config.kernel[0], _geometry.WHOLE, 0, tasks, *rest)

    return {"- the compiled call": partial(run, config.tasks), "  - with nothing to do": partial(run, 0)}
