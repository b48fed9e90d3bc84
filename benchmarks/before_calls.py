"""The calls that `python -m benchmarks before` times: small ones, and those of `python -m benchmarks cpu`.

Each is made from the `anynorm` of one version.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.problems import AWKWARD, DOUBLES, HALVES, INFERRING, LONG, NAMED, SMALL, Data, Problem
from benchmarks.ways import bind

Make = Callable[[Any], Callable[[], Any]]


class Call(NamedTuple):
    """A call, and whether a block of it is one call: because it is slow, or is not repeated."""

    name: str
    make: Make
    once: bool = False


def _numpy(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape, dtype=np.float32)


def _strict(*shape: int) -> Any:
    return importlib.import_module("array_api_strict").asarray(_numpy(*shape))


def _jax(*shape: int) -> Any:
    return importlib.import_module("jax.numpy").asarray(_numpy(*shape))


def _dask(*shape: int) -> Any:
    return importlib.import_module("dask.array").from_array(_numpy(*shape), chunks=(4, *shape[1:]))


def _torch(*shape: int, dtype: str = "float32", grad: bool = False) -> Any:
    torch = importlib.import_module("torch")
    return torch.from_numpy(_numpy(*shape)).to(getattr(torch, dtype)).requires_grad_(grad)


def _forward(function: str, array: Callable[..., Any], *shape: int, **given: Any) -> Make:
    """Return how to call a norm with weight and bias of the length that `length` says, by default the last."""
    length, args = given.pop("length", shape[-1]), given.pop("args", ())

    def make(an: Any) -> Callable[[], Any]:
        options = dict(given)
        if length:
            options |= {"weight": array(length), "bias": array(length)}
        return partial(getattr(an, function), array(*shape), *args, **options)

    return make


def _with_out(an: Any) -> Callable[[], Any]:
    x, out = _numpy(8, 64), np.empty((8, 64), np.float32)
    return partial(an.layer_norm, x, _numpy(64), _numpy(64), out=out)


def _evaluation(array: Callable[..., Any]) -> Make:
    def make(an: Any) -> Callable[[], Any]:
        ones = array(16) * 0 + 1
        given = {"weight": array(16), "bias": array(16), "mean": array(16), "var": ones}
        return partial(an.batch_norm, array(8, 16, 6, 6), **given)

    return make


def _vjp(an: Any) -> Callable[[], Any]:
    x, weight, bias, dy = _numpy(8, 64), _numpy(64), _numpy(64), _numpy(8, 64)

    def call() -> Any:
        _, pullback = an.vjp(an.layer_norm, x, weight, bias)
        return pullback(dy)

    return call


def _pullback(an: Any) -> Callable[[], Any]:
    _, pullback = an.vjp(an.layer_norm, _numpy(8, 64), _numpy(64), _numpy(64))
    return partial(pullback, _numpy(8, 64))


def _update(an: Any) -> Callable[[], Any]:
    batch = an.moments(_numpy(8, 64), axis=0)
    return partial(an.update_running, _numpy(64), _numpy(64) ** 2, batch)


def _layer(an: Any) -> Callable[[], Any]:
    return partial(an.BatchNorm(16), _numpy(8, 16, 6, 6))


def _backward(function: str, *shape: int, dtype: str = "float32", length: int = 0) -> Make:
    def make(an: Any) -> Callable[[], Any]:
        x, dy = _torch(*shape, dtype=dtype, grad=True), _torch(*shape, dtype=dtype)
        given = [_torch(length, dtype=dtype, grad=True) for _ in range(2)] if length else [None, None]

        def call() -> None:
            getattr(an, function)(x, weight=given[0], bias=given[1]).backward(dy)

        return call

    return make


def _modules() -> Any:
    try:
        return importlib.import_module("anynorm_torch.nn")
    except ModuleNotFoundError:  # as it was before
        return importlib.import_module("anynorm_torch")


def _module(name: str, args: tuple[Any, ...], shape: tuple[int, ...], *, train: bool, backward: bool = False) -> Make:
    def make(_: Any) -> Callable[[], Any]:
        module = getattr(_modules(), name)(*args).train(train)
        x, dy = _torch(*shape, grad=backward), _torch(*shape)
        return (lambda: module(x).backward(dy)) if backward else partial(module, x)

    return make


def _jax_grad(an: Any) -> Callable[[], Any]:
    jax = importlib.import_module("jax")
    gradient = jax.grad(lambda x, weight: (an.layer_norm(x, weight) ** 2).sum(), argnums=(0, 1))
    return partial(gradient, _jax(8, 64), _jax(64))


def _new_signatures(array: Callable[..., Any]) -> Make:
    """Return how to call layer norm on a shape that was not there before, at every call."""

    def make(an: Any) -> Callable[[], Any]:
        lengths: Iterator[int] = itertools.count(9)
        weight, bias = array(64), array(64)
        ready = [array(next(lengths), 64) for _ in range(1000)]
        return lambda: an.layer_norm(ready.pop(), weight, bias)

    return make


CALLS = (
    Call("NumPy layer norm (8, 64)", _forward("layer_norm", _numpy, 8, 64)),
    Call("NumPy layer norm (8, 64), out=", _with_out),
    Call("NumPy layer norm (8, 64), no parameters", _forward("layer_norm", _numpy, 8, 64, length=0)),
    Call("NumPy RMS norm (8, 64)", _forward("rms_norm", _numpy, 8, 64)),
    Call("NumPy layer norm (64, 1024)", _forward("layer_norm", _numpy, 64, 1024)),
    Call("NumPy layer norm (512, 768)", _forward("layer_norm", _numpy, 512, 768)),
    Call("NumPy vjp and pullback (8, 64)", _vjp),
    Call("NumPy pullback (8, 64)", _pullback),
    Call("NumPy batch norm, mean and var given", _evaluation(_numpy)),
    Call(
        "NumPy batch norm, return_moments", _forward("batch_norm", _numpy, 8, 16, 6, 6, length=16, return_moments=True)
    ),
    Call("NumPy group norm", _forward("group_norm", _numpy, 8, 16, 6, 6, length=16, args=(4,))),
    Call("NumPy instance norm", _forward("instance_norm", _numpy, 8, 16, 6, 6, length=16)),
    Call("NumPy moments (8, 64)", _forward("moments", _numpy, 8, 64, length=0, axis=0)),
    Call("NumPy update_running", _update),
    Call("NumPy an.BatchNorm, training", _layer),
    Call("torch layer norm (8, 64)", _forward("layer_norm", _torch, 8, 64)),
    Call("torch layer norm (8, 64), no parameters", _forward("layer_norm", _torch, 8, 64, length=0)),
    Call("torch layer norm (8, 64), requires grad", _forward("layer_norm", partial(_torch, grad=True), 8, 64)),
    Call("torch layer norm (8, 64), and backward", _backward("layer_norm", 8, 64, length=64)),
    Call("torch layer norm, and backward, no parameters", _backward("layer_norm", 8, 64)),
    Call("torch layer norm, and backward, bfloat16", _backward("layer_norm", 8, 64, length=64, dtype="bfloat16")),
    Call("torch batch norm, mean and var given", _evaluation(_torch)),
    Call("torch batch norm, and backward", _backward("batch_norm", 8, 16, 6, 6, length=16)),
    Call("torch nn.LayerNorm", _module("LayerNorm", (64,), (8, 64), train=True)),
    Call("torch nn.LayerNorm, and backward", _module("LayerNorm", (64,), (8, 64), train=True, backward=True)),
    Call("torch nn.BatchNorm2d, training", _module("BatchNorm2d", (16,), (8, 16, 6, 6), train=True)),
    Call("torch nn.BatchNorm2d, evaluation", _module("BatchNorm2d", (16,), (8, 16, 6, 6), train=False)),
    Call("JAX layer norm (8, 64)", _forward("layer_norm", _jax, 8, 64)),
    Call("JAX gradient of layer norm (8, 64)", _jax_grad, once=True),
    Call("Dask layer norm (8, 64), its graph", _forward("layer_norm", _dask, 8, 64), once=True),
    Call("array-api-strict layer norm (8, 64)", _forward("layer_norm", _strict, 8, 64), once=True),
    Call("NumPy layer norm, a new shape", _new_signatures(_numpy), once=True),
    Call("torch layer norm, a new shape", _new_signatures(_torch), once=True),
)


def cells() -> Iterator[Call]:
    """Yield the calls of `python -m benchmarks cpu`, forward and with a backward pass."""
    for problem in dict.fromkeys(NAMED + LONG + AWKWARD + SMALL + INFERRING + DOUBLES + HALVES):
        for direction in ("forward",) if problem.given else ("forward", "both"):
            name = f"{problem} {problem.dtype}, {direction}"
            yield Call(name, partial(_cell, problem, direction), once=problem.elements > 2**18)


def _cell(problem: Problem, direction: str, an: Any) -> Callable[[], Any]:
    halves = problem.dtype in ("bfloat16", "float16")
    data = _data(problem)
    x, dy, weight, bias = data.torch if halves else data.numpy
    axis = 1 if halves else problem.channel_axis
    if halves and direction == "both":
        x, weight, bias = [None if tensor is None else tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    bound = bind(problem, x, weight, bias, channel_axis=axis)
    function = getattr(an, problem.norm)
    if direction == "forward":
        return partial(function, *bound.args, **bound.keywords)

    def call() -> Any:
        if halves:
            return function(*bound.args, **bound.keywords).backward(dy)
        return an.vjp(function, *bound.args, **bound.keywords)[1](dy)

    return call


@lru_cache(maxsize=1)
def _data(problem: Problem) -> Data:
    """Return the data of a problem: for both versions the same."""
    return Data(problem)
