"""Calls on torch tensors: with autograd and without, under torch.func, in torch's own layouts, and its modules."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

import anynorm as an
from benchmarks.grid import common, norms
from benchmarks.grid.case import Case
from benchmarks.grid.common import Library, Problem, case
from benchmarks.grid.data import FORWARD_LAYOUTS, NumPyArray, numbers


def tensor(array: NumPyArray) -> Any:
    """Return a tensor on the array's memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an array is read-only
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)


TORCH = Library("torch", tensor, ("float16", "bfloat16", "float32", "float64"), FORWARD_LAYOUTS)


def _differentiable(problem: Problem) -> tuple[Any, dict[str, Any], list[Any]]:
    x = problem.x.requires_grad_()
    options = problem.options
    leaves = [x, *[options[name].requires_grad_() for name in ("weight", "bias") if name in options]]
    return x, options, leaves


def backward(problem: Problem, dy_layout: str = "C") -> Any:
    """Let autograd derive the call."""
    x, options, leaves = _differentiable(problem)
    y = norms.function(problem.norm)(x, *problem.norm.args, **options)
    y.backward(problem.array("normal", 2, dy_layout))
    return y, [leaf.grad for leaf in leaves]


def explain_requiring(problem: Problem) -> str:
    """Explain the call on tensors that require a gradient."""
    x, options, _ = _differentiable(problem)
    route = an.explain(norms.function(problem.norm), x, *problem.norm.args, **options)
    return f"{route.path}: {route.reason}"


def backward_of_x_alone(problem: Problem) -> Any:
    """Let autograd derive by x, then by the parameters."""
    found = []
    for chosen in ("x", "weight"):
        x, options = problem.x, problem.options
        leaf = (x if chosen == "x" else options["weight"]).requires_grad_()
        y = norms.function(problem.norm)(x, *problem.norm.args, **options)
        y.sum().backward()
        found.append((y, leaf.grad))
    return found


def without_grad(problem: Problem) -> Any:
    """Call under no_grad and inference_mode on tensors that require a gradient."""
    x, options, _ = _differentiable(problem)
    function = norms.function(problem.norm)
    with torch.no_grad():
        first = function(x, *problem.norm.args, **options)
    with torch.inference_mode():
        return first, function(x, *problem.norm.args, **options)


def twice(problem: Problem) -> Any:
    """Take the second derivative."""
    x, options, leaves = _differentiable(problem)
    y = norms.function(problem.norm)(x, *problem.norm.args, **options)
    dy = problem.array("normal", 2).requires_grad_()
    first = torch.autograd.grad(y, leaves, dy, create_graph=True)
    total = torch.stack([(one * one).sum() for one in first]).sum()
    return first, torch.autograd.grad(total, [*leaves, dy], allow_unused=True)


def moments_and_backward(problem: Problem) -> Any:
    """Let autograd derive batch norm that returns moments."""
    x, options, leaves = _differentiable(problem)
    y, batch = an.batch_norm(x, **options, return_moments=True)
    y.backward(problem.array("normal", 2))
    return y, tuple(batch), batch.var(), [leaf.grad for leaf in leaves]


def functional(problem: Problem) -> Any:
    """Call under torch.func's vjp, jvp and vmap."""
    options, function = problem.options, norms.function(problem.norm)
    run = partial(_with_x_first, function, problem.norm.args, options)
    y, pullback = torch.func.vjp(run, problem.x)[:2]
    forward = torch.func.jvp(run, (problem.x,), (problem.array("normal", 2),))
    mapped = torch.func.vmap(run)(torch.stack([problem.x, problem.array("offset", 4)]))
    return y, pullback(problem.array("normal", 2)), forward, mapped


def _with_x_first(function: Callable[..., Any], args: Any, options: Any, x: Any) -> Any:
    return function(x, *args, **options)


def compiled(problem: Problem) -> Any:
    """Call under torch.compile."""
    torch.compiler.reset()
    run = partial(_with_x_first, norms.function(problem.norm), problem.norm.args, problem.options)
    return torch.compile(run, fullgraph=True, backend="eager")(problem.x)


def odd_tensors(problem: Problem) -> Any:
    """Call on a subclass, a parameter, a lazily negated view, and in torch's channels_last."""
    function, options = norms.function(problem.norm), problem.options
    x = problem.x
    negated = torch._neg_view(x)
    arrays = [torch.nn.Parameter(x), x.as_subclass(_Tagged), negated, x.expand(x.shape)]
    if x.ndim == 4:
        arrays.append(x.to(memory_format=torch.channels_last))
    found = []
    for array in arrays:
        y = function(array, *problem.norm.args, **options)
        route = an.explain(function, array, *problem.norm.args, **options)
        found.append((y, f"{route.path}: {route.reason}"))
    return found


class _Tagged(torch.Tensor):
    """A tensor subclass that changes nothing."""


def differentiated() -> Iterator[Case]:
    """Yield what torch has beyond other libraries."""
    for norm in norms.SMALL + norms.LARGE + norms.EMPTY:
        for dtype in TORCH.dtypes:
            yield case(Problem(TORCH, norm, dtype), backward)
            yield case(Problem(TORCH, norm, dtype), explain_requiring)
    for norm in norms.SMALL:
        for dtype in ("bfloat16", "float32"):
            yield from _one(Problem(TORCH, norm, dtype))
    for norm in norms.SMALL[::2]:
        for run in (twice, functional):
            yield case(Problem(TORCH, norm, "float64"), run)
            yield case(Problem(TORCH, norm, "float32"), run)
    for norm in norms.SMALL[::6]:
        yield case(Problem(TORCH, norm), compiled)


def _one(problem: Problem) -> Iterator[Case]:
    for run in (backward_of_x_alone, without_grad, odd_tensors):
        yield case(problem, run)
    for layout in TORCH.layouts[1:]:
        yield case(replace(problem, layout=layout), backward)
        yield case(problem, backward, layout)
        yield case(replace(problem, layout=layout), explain_requiring)
    for variant in norms.PARAMETERS:
        yield case(replace(problem, variant=variant, values="offset"), backward)
    for values in ("far", "constant", "huge", "minute", "nan"):
        yield case(replace(problem, values=values, eps=0.0), backward)
    if problem.norm.function == "batch_norm":
        yield case(problem, moments_and_backward)
        for given in ("float32", "float64"):
            yield case(replace(problem, given=given), backward)


def _modules() -> Any:
    try:
        return importlib.import_module("anynorm_torch.nn")
    except ModuleNotFoundError:
        return importlib.import_module("anynorm_torch")


_MODULES: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "LayerNorm": (((6, 5),), (4, 6, 5)),
    "RMSNorm": ((5,), (4, 6, 5)),
    "GroupNorm": ((3, 6), (4, 6, 9, 8)),
    "BatchNorm1d": ((6,), (40, 6)),
    "BatchNorm2d": ((6,), (4, 6, 19, 28)),
    "BatchNorm3d": ((6,), (4, 6, 3, 4, 5)),
    "InstanceNorm1d": ((6,), (4, 6, 40)),
    "InstanceNorm2d": ((6, 1e-5, 0.1, True, True), (4, 6, 9, 8)),
    "InstanceNorm3d": ((6,), (4, 6, 3, 4, 5)),
}


def _module(name: str, dtype: str, channels_last: bool) -> Any:
    args, shape = _MODULES[name]
    module = getattr(_modules(), name)(*args)
    return _trained(module, shape, dtype, channels_last)


def _trained(module: Any, shape: tuple[int, ...], dtype: str, channels_last: bool) -> Any:
    found: list[Any] = []
    for step in range(3):
        x = tensor(numbers("offset", shape, dtype, 20 + step))
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        x.requires_grad_()
        y = module(x)
        y.backward(tensor(numbers("normal", shape, dtype, 2)))
        found.append((y, x.grad, [parameter.grad for parameter in module.parameters()]))
    module.eval()
    x = tensor(numbers("offset", shape, dtype, 25)).requires_grad_()
    y = module(x)
    y.backward(tensor(numbers("normal", shape, dtype, 2)))
    with torch.no_grad():
        return found, y, x.grad, module(x), dict(module.state_dict()), repr(module)


def _accelerated(dtype: str) -> Any:
    model = torch.nn.Sequential(
        torch.nn.BatchNorm2d(6),
        torch.nn.ReLU(),
        torch.nn.Sequential(torch.nn.GroupNorm(2, 6), torch.nn.InstanceNorm2d(6)),
        torch.nn.LayerNorm(8),
        torch.nn.SyncBatchNorm(6),
    )
    swapped = _modules().accelerate(model)
    said = [str(swapped), swapped.swapped, swapped.left]
    del model[-1]
    result = _trained(model, (4, 6, 9, 8), dtype, channels_last=False)
    swapped.undo()
    return said, result, [type(module).__module__ for module in model.modules()]


def modules() -> Iterator[Case]:
    """Yield the training and evaluation of modules."""
    for name, (_, shape) in _MODULES.items():
        for dtype in TORCH.dtypes:
            for channels_last in (False, True) if len(shape) == 4 else (False,):
                run = partial(_module, name, dtype, channels_last)
                yield Case(f"torch {name} {dtype}{' channels_last' * channels_last}", run)
    for dtype in ("float32", "bfloat16"):
        yield Case(f"torch accelerate {dtype}", partial(_accelerated, dtype))


def cases() -> Iterator[Case]:
    """Yield all calls on tensors."""
    yield from common.everything(TORCH)
    yield from differentiated()
    yield from modules()
