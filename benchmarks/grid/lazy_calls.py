"""Calls on JAX and Dask arrays, which trace or build graphs, and on array-api-strict's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.grid import common, layers, norms
from benchmarks.grid.case import Case
from benchmarks.grid.common import Library, Problem, case
from benchmarks.grid.data import NumPyArray

_FEW = (norms.SMALL[0], norms.SMALL[2], norms.SMALL[9], norms.SMALL[12], norms.SMALL[14], norms.SMALL[18])


def _jax_array(array: NumPyArray) -> Any:
    return importlib.import_module("jax").device_put(np.array(array, order="C"))


JAX = Library("jax", _jax_array, ("float16", "bfloat16", "float32", "float64"), writes=False)


def _arrays(problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that are arrays, and the others."""
    options = problem.options
    arrays = {name: value for name, value in options.items() if name in ("weight", "bias", "mean", "var")}
    return {"x": problem.x, **arrays}, {name: value for name, value in options.items() if name not in arrays}


def _apply(function: Callable[..., Any], args: Any, options: Any, arrays: dict[str, Any]) -> Any:
    others = {name: value for name, value in arrays.items() if name != "x"}
    return function(arrays["x"], *args, **others, **options)


def jit(problem: Problem) -> Any:
    """Compile the call and its gradient."""
    jax = importlib.import_module("jax")
    arrays, options = _arrays(problem)
    run = partial(_apply, norms.function(problem.norm), problem.norm.args, options)

    def both(arrays: dict[str, Any], dy: Any) -> Any:
        y, pullback = jax.vjp(run, arrays)
        return y, pullback(dy)

    return jax.jit(run)(arrays), jax.jit(both)(arrays, problem.array("normal", 2))


def grad(problem: Problem) -> Any:
    """Let JAX derive, eagerly."""
    jax = importlib.import_module("jax")
    arrays, options = _arrays(problem)
    run = partial(_apply, norms.function(problem.norm), problem.norm.args, options)
    y, pullback = jax.vjp(run, arrays)
    return y, pullback(problem.array("normal", 2))


def vmap(problem: Problem) -> Any:
    """Map over stacked x."""
    jax = importlib.import_module("jax")
    arrays, options = _arrays(problem)
    x = arrays.pop("x")
    run = partial(_apply, norms.function(problem.norm), problem.norm.args, options)
    stacked = jax.numpy.stack([x, problem.array("offset", 4)])
    return jax.vmap(lambda x: run({"x": x, **arrays}))(stacked)


def jax_cases() -> Iterator[Case]:
    """Yield calls on JAX arrays: few, because each new signature is compiled."""
    yield from common.basic(JAX, norms.SMALL[::4] + norms.EMPTY[::3])
    for norm in (*norms.SMALL, *norms.LONG):
        yield case(Problem(JAX, norm), common.call)
    for norm in _FEW:
        yield case(Problem(JAX, norm), jit)
        yield case(Problem(JAX, norm), grad)
    yield case(Problem(JAX, _FEW[0]), vmap)
    for values in ("far", "constant", "huge", "minute", "nan"):
        yield case(Problem(JAX, _FEW[0], values=values, eps=0.0), common.vjp)
        yield case(Problem(JAX, _FEW[2], values=values), common.call)
    for variant in ("none", "per_sample", "other_dtype"):
        yield from common.both(Problem(JAX, _FEW[1], variant=variant))
    yield from common.both(Problem(JAX, norms.SMALL[11], given="float32"))
    yield from common.special(JAX, [norms.SMALL[0], norms.SMALL[11]], ["float32"])
    yield from common.statistics(JAX, [norms.SMALL[0], norms.SMALL[11]], ["float32"])
    yield from [one for one in layers.cases(JAX) if "float32 nan" in one.name]


def _dask(chunks: int, array: NumPyArray) -> Any:
    return importlib.import_module("dask.array").from_array(array, chunks=chunks)


DASK = Library("dask", partial(_dask, -1), ("float16", "float32", "float64"), writes=False)


def dask_cases() -> Iterator[Case]:
    """Yield calls on Dask arrays of one chunk and of several."""
    few = norms.SMALL[::3] + norms.LONG
    for chunks in (-1, 3, 1000):
        library = replace(DASK, name=f"dask chunks={chunks}", make=partial(_dask, chunks))
        which = few if chunks != 3 else norms.SMALL[1::4]
        yield from common.basic(library, which)
    library = replace(DASK, make=partial(_dask, 4))
    for values in ("far", "constant", "huge", "minute", "nan"):
        yield case(Problem(library, _FEW[0], values=values, eps=0.0), common.vjp)
        yield case(Problem(library, _FEW[3], values=values), common.call)
    for variant in norms.PARAMETERS:
        if variant != "strided":
            yield case(Problem(library, _FEW[1], variant=variant), common.call)
    for given in ("float32", "float64"):
        yield case(Problem(library, norms.SMALL[11], given=given), common.vjp)
    yield from common.special(library, [norms.SMALL[0], norms.SMALL[11]], ["float32"])
    yield from common.statistics(library, [norms.SMALL[0], norms.SMALL[11]], ["float32"])
    yield from [one for one in layers.cases(library) if "Norm(6) float32 nan" in one.name]
    library = replace(DASK, name="dask chunks=1000", make=partial(_dask, 1000))
    yield from common.statistics(library, norms.LONG, ["float32"])


def strict_cases() -> Iterator[Case]:
    """Yield calls on array-api-strict's arrays."""
    strict = importlib.import_module("array_api_strict")
    library = Library("strict", strict.asarray, ("float32", "float64"))
    yield from common.basic(library, norms.SMALL + norms.LONG + norms.EMPTY)
    yield from common.variants(library, norms.SMALL[::2], ["float32"])
    yield from common.hostile(library, norms.SMALL[::4], ["float32", "float64"])
    yield from common.statistics(library, norms.SMALL[::3], ["float32"])
    yield from layers.cases(replace(library, dtypes=("float32",)))
    for norm in norms.SMALL:
        yield case(Problem(library, norm), common.out)
        yield case(Problem(library, norm), common.in_place)
        yield case(Problem(library, norm), common.several_pullbacks)
