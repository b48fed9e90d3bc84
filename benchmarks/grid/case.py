"""A call of the grid, how it is run, and how its result becomes one line. Which calls there are is said elsewhere."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """A call: a name that says all about it, and the function that makes its arrays and makes the call."""

    name: str
    run: Callable[[], Any]


def lines(cases: Iterator[Case]) -> Iterator[tuple[str, str]]:
    """Run every call with one thread and then with two, and yield name and result, once for each name.

    The second run also is the later call of its signature. What it returns must be what the first returned, to the bit.
    """
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:  # the same call, of two lists
            continue
        seen.add(case.name)
        found = []
        for threads in (1, 2):
            _use(threads)
            found.append(outcome(case))
        first, second = found
        yield case.name, first if first == second else f"DIFFERS {first} with 1 thread, then {second} with 2"


def _use(threads: int) -> None:
    """Make the next calls run in so many threads: the engine asks torch, and which cores it may use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    elif "jax" not in sys.modules and hasattr(os, "sched_setaffinity"):  # its threads would stay on one core
        os.sched_setaffinity(0, _CORES[:threads])


_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def outcome(case: Case) -> str:
    """Return the hash of what a call returns, or type and message of what it raises."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            result = case.run()
            return result if isinstance(result, str) else digest(result)
        except Exception as error:
            message = re.sub(r"\b0x[0-9a-f]+", "0x", " ".join(str(error).split()))
            return f"{type(error).__name__}: {message}"


def digest(result: Any) -> str:
    """Return a hash of all arrays in a result: of dtype, shape, strides and bytes; and of what else is in it."""
    found = hashlib.blake2b(digest_size=10)
    parts = list(_leaves(result))
    if any(type(part).__module__.startswith("dask") for part in parts):
        for part in parts:
            found.update(
                f"{type(part).__name__} {getattr(part, 'dtype', None)} {getattr(part, 'shape', None)}".encode()
            )
        parts = list(sys.modules["dask"].compute(*parts, scheduler="synchronous"))
    for part in parts:
        for described in _described(part):
            found.update(described)
            found.update(b"|")
    return found.hexdigest()


def _leaves(result: Any) -> Iterator[Any]:
    """Yield the arrays and the plain values in a result, with the lengths and keys of what holds them."""
    if isinstance(result, dict):
        for name in sorted(result):
            yield str(name)
            yield from _leaves(result[name])
    elif isinstance(result, tuple | list):
        yield len(result)
        for one in result:
            yield from _leaves(one)
    else:
        yield result


def _described(leaf: Any) -> Iterator[bytes]:
    if leaf is None or isinstance(leaf, bool | int | float | str):
        yield repr(leaf).encode()
        return
    name, strides = type(leaf).__name__, ""
    if hasattr(leaf, "as_subclass"):  # a tensor
        torch = sys.modules["torch"]
        yield f"{name} {leaf.dtype} {tuple(leaf.shape)} {leaf.stride()} {leaf.requires_grad}".encode()
        if not leaf.is_meta:
            plain = leaf.detach().as_subclass(torch.Tensor).resolve_neg().contiguous()
            yield (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy().tobytes()
        return
    strict = type(leaf).__module__.startswith("array_api_strict")
    found = np.from_dlpack(leaf) if strict else np.asarray(leaf)
    if strict or isinstance(leaf, np.ndarray | np.generic):
        strides = f"{found.strides}"
    yield f"{name} {leaf.dtype} {found.shape} {strides}".encode()
    yield found.tobytes()
