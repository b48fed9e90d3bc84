"""How anynorm runs a norm on NumPy arrays and torch tensors, and whether another way of running computes the same.

A way of running gives y, or y, dx, dweight and dbias. Knows no peer, and times nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import anynorm as an
from benchmarks.problems import ALONG_ROWS, Data, Problem

NAMES = ("y", "dx", "dweight", "dbias")

# How far two ways may be apart, as a part of the largest value. The data are easy: more is another function.
TOLERANCES = {"float16": 1e-2, "bfloat16": 3e-2, "float32": 1e-3, "float64": 1e-6}


class Run(NamedTuple):
    """A call to time, and how to read what it returns: NumPy arrays in the order of memory, named by NAMES."""

    call: Callable[[], Any]
    read: Callable[[Any], tuple[Any, ...]]


def ours(problem: Problem, data: Data, direction: str, arrays: str) -> Run:
    """Return anynorm on NumPy arrays or torch tensors: "forward", or forward and backward, "both"."""
    if arrays == "torch":
        return on_torch(partial(bind, problem, channel_axis=1), problem, data, direction)
    x, dy, weight, bias = data.numpy
    call = bind(problem, x, weight, bias, channel_axis=problem.channel_axis)
    if direction == "forward":
        return Run(call, plain)
    return Run(partial(_there_and_back, dy, call.func, *call.args, **call.keywords), _plain_gradients)


def bind(problem: Problem, x: Any, weight: Any, bias: Any, *, channel_axis: int) -> partial[Any]:
    """Return anynorm's function with its arguments, as a user would give them."""
    options = {"weight": weight, "bias": bias}
    if problem.norm not in ALONG_ROWS:
        options["channel_axis"] = channel_axis
    if problem.given:
        options["mean"], options["var"] = statistics(weight, bias)
    positional = (x, problem.groups) if problem.norm == "group_norm" else (x,)
    return partial(getattr(an, problem.norm), *positional, **options)


def statistics(weight: Any, bias: Any) -> tuple[Any, Any]:
    """Return a mean and a variance for each channel, in arrays of their own."""
    return bias * 0.5, weight * weight + 0.5


def _there_and_back(dy: Any, *arguments: Any, **options: Any) -> Any:
    y, pullback = an.vjp(*arguments, **options)
    return y, pullback(dy)


def plain(y: Any) -> tuple[Any, ...]:
    """Return what a forward call returned, as NumPy arrays."""
    return (np.asarray(y),)


def _plain_gradients(result: Any) -> tuple[Any, ...]:
    y, gradients = result
    return np.asarray(y), *[np.asarray(gradient) for gradient in gradients if gradient is not None]


def on_torch(binds: Callable[..., partial[Any]], problem: Problem, data: Data, direction: str) -> Run:
    """Return a function that `binds` x, weight and bias, on torch tensors; its gradients by torch's autograd."""
    import torch

    x, dy, weight, bias = data.torch

    def read(result: Any) -> tuple[Any, ...]:
        result = result if isinstance(result, tuple) else (result,)
        large = [array.movedim(1, -1) if problem.channels_last else array for array in result[:2]]
        half = problem.dtype in ("float16", "bfloat16")
        return tuple([(a.detach().float() if half else a.detach()).numpy() for a in (*large, *result[2:])])

    if direction == "forward":
        return Run(binds(x, weight, bias), read)
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    wanted = [leaf for leaf in leaves if leaf is not None]
    forward = binds(*leaves)

    def both() -> Any:
        y = forward()
        return y, *torch.autograd.grad(y, wanted, dy)

    return Run(both, read)


def disagreement(problem: Problem, mine: tuple[Any, ...], tensor: tuple[Any, ...]) -> str | None:
    """Return how a peer's results differ from ours by more than rounding, or None: then both compute the same."""
    if len(mine) != len(tensor):
        return f"{len(tensor)} results where anynorm gives {len(mine)}"
    for name, a, b in zip(NAMES, mine, tensor, strict=False):
        if a.shape != b.shape:
            return f"{name} has shape {b.shape}, anynorm's {a.shape}"
        furthest, largest = float(np.max(np.abs(a - b))), float(np.max(np.abs(a)))
        if not furthest <= TOLERANCES[problem.dtype] * largest:  # NaN too
            return f"{name} differs by {furthest:.2g}, where its largest value is {largest:.2g}"
    return None
