"""The array libraries: how an array in memory of our own becomes one of theirs, without a copy where it can."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.fuzz.memory import NumPyArray, Placed, numpy_dtype


@dataclass(frozen=True)
class Home:
    """An array library."""

    name: str
    make: Callable[[Placed, Random], Any]
    read: Callable[[Any], NumPyArray]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    flushes: bool = False  # subnormal numbers are taken as 0, but by the CPU engine
    strided: bool = False  # arrays lie in memory of our own


@lru_cache
def home(name: str) -> Home:
    """Import a library and return it."""
    return _MAKERS[name]()


def flushed(array: NumPyArray) -> NumPyArray:
    """Return the array with subnormal numbers as zeros; those of float16 are normal where they are computed with."""
    if array.dtype.name == "float16":
        return array
    smallest = 2.0**-1022 if array.dtype.name == "float64" else 2.0**-126
    return np.where(np.abs(array) < smallest, np.copysign(np.zeros_like(array), array), array)


@contextmanager
def _without_engine() -> Iterator[None]:
    import anynorm_numba

    with mock.patch.object(anynorm_numba, "missing", return_value="the fuzzer does without it"):
        yield


def _array(placed: Placed, _: Random) -> Any:
    return placed.array


def _numpy() -> Home:
    return Home("numpy", _array, np.asarray, strided=True)


def _numpy_alone() -> Home:
    return Home("numpy_alone", _array, np.asarray, _without_engine, strided=True)


def _torch() -> Home:
    torch: Any = importlib.import_module("torch")

    class Tagged(torch.Tensor):  # type: ignore[misc]
        """A tensor subclass that changes nothing."""

    def make(placed: Placed, _: Random) -> Any:
        array, memory = placed.array, placed.memory
        dtype = getattr(torch, array.dtype.name)
        if not array.size:
            return torch.empty(array.shape, dtype=dtype)
        size = array.itemsize
        reach = sum((length - 1) * step for length, step in zip(array.shape, array.strides, strict=True)) // size + 1
        flat = torch.frombuffer(memory, dtype=dtype, count=reach, offset=placed.offset)
        tensor = flat.as_strided(array.shape, [step // size for step in array.strides])
        return tensor.as_subclass(Tagged) if type(array) is not np.ndarray else tensor

    def read(tensor: Any) -> NumPyArray:
        tensor = tensor.detach().as_subclass(torch.Tensor)
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(numpy_dtype("bfloat16"))  # type: ignore[no-any-return]
        return tensor.numpy()  # type: ignore[no-any-return]

    return Home("torch", make, read, strided=True)


def _jax() -> Home:
    jax: Any = importlib.import_module("jax")
    return Home(
        "jax",
        lambda placed, _: jax.device_put(placed.array.copy()),
        np.asarray,
        lambda: jax.enable_x64(True),
        flushes=True,
    )


def _dask() -> Home:
    dask_array: Any = importlib.import_module("dask.array")
    dask: Any = importlib.import_module("dask")

    def make(placed: Placed, random: Random) -> Any:
        chunks = tuple([_chunks(length, random) for length in placed.array.shape])
        return dask_array.from_array(placed.array, chunks=chunks)

    return Home(
        "dask", make, lambda array: np.asarray(array.compute()), lambda: dask.config.set(scheduler="synchronous")
    )


def _chunks(length: int, random: Random) -> tuple[int, ...]:
    """Return lengths that add up to a length, at times an empty one."""
    if length < 2 or random.random() < 0.4:
        return (length,)
    cut = random.randint(0 if random.random() < 0.1 else 1, length - 1)
    rest = _chunks(length - cut, random) if random.random() < 0.3 else (length - cut,)
    return (cut, *rest)


def _array_api_strict() -> Home:
    strict: Any = importlib.import_module("array_api_strict")
    return Home("array_api_strict", lambda placed, _: strict.asarray(placed.array), lambda array: np.from_dlpack(array))


_MAKERS: dict[str, Callable[[], Home]] = {
    "numpy": _numpy,
    "numpy_alone": _numpy_alone,
    "torch": _torch,
    "jax": _jax,
    "dask": _dask,
    "array_api_strict": _array_api_strict,
}
