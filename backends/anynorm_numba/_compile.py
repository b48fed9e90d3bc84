"""How functions become machine code and where that is kept: in memory, and on disk where a directory can be written.

Knows numba, no kernel. numba is imported when something is first compiled.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from types import FunctionType
from typing import Any

# numba's type for an element of each dtype in memory. Of the shorter ones kernels see the bits.
STORAGE = {"float64": "float64", "float32": "float32", "float16": "int16", "bfloat16": "uint16"}

# Integers that a task is given beside phase and index: most often addresses, of its geometry and of seven arrays.
ARGUMENTS = 8

# Settings of numba that change machine code and that its cache does not tell apart.
SETTINGS = (
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
    "LLVM_REFPRUNE_FLAGS",
    "LLVM_REFPRUNE_PASS",
    "LOOP_VECTORIZE",
    "OPT",
    "SLP_VECTORIZE",
    "USING_SVML",
)

_built: dict[tuple[Any, ...], Any] = {}
_lock = threading.RLock()


def task(function: Callable[..., None], dtype: str) -> int:
    """Return the address of a kernel compiled for one dtype.

    The kernel's first argument is a null pointer. Only its type counts: it tells a kernel the dtype of its arrays, and
    numba's cache the kernels of one source apart.

    Parameters
    ----------
    function : function
        A module's own `kernel(dtype, phase, index, a0, ..., a7, eps)`: a pointer, ten integers, a float.
    dtype : {"float64", "float32", "float16", "bfloat16"}
        Its name.

    """
    key = function, dtype
    built = _built.get(key)
    if built is None:
        types = numba().types
        signature = task_signature(types.CPointer(getattr(types, STORAGE[dtype])))
        built = _build(key, numba().cfunc, function, signature, error_model="numpy", nogil=True)
    address: int = built.address
    return address


def callback(function: Callable[..., None], signature: Any) -> int:
    """Return the address of a module's own function compiled for C to call."""
    key = function, signature
    built = _built.get(key)
    if built is None:
        built = _build(key, numba().cfunc, function, signature, error_model="numpy", nogil=True)
    address: int = built.address
    return address


def part(function: Any) -> Any:
    """Return a function that kernels call, compiled with each; without what Python or C would call it by.

    A first call takes 0.85 of the time: numba makes both wrappers for each function and dtype otherwise.
    """
    return numba().njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def numba() -> Any:
    """Return numba, imported when first asked for. It is annotated in part, and wrongly: here it is Any."""
    with _lock:
        import numba

    return numba


def task_signature(*first: Any) -> Any:
    """Return the numba signature of a task: what comes first, then phase, index, its integers and eps."""
    types = numba().types
    return types.void(*first, *[types.int64] * (2 + ARGUMENTS), types.float64)


def compiled(function: Callable[..., Any], signature: Any, **options: Any) -> Any:
    """Return a module's own function compiled by `numba.njit` for one signature.

    A function must not be compiled twice with other options: numba's cache would not tell the two apart.
    """
    key = function, signature
    built = _built.get(key)
    if built is None:
        built = _build(key, _njit, function, signature, **options)
    # Not the dispatcher, which looks at the type of each argument before it calls the only function there is: 0.7 µs
    # for thirteen of them, and 0.5 without.
    (only,) = built.overloads.values()
    return only.entry_point


def _njit(signature: Any, **options: Any) -> Any:
    return numba().njit([signature], **options)


@contextmanager
def alone() -> Iterator[None]:
    """Keep other threads from compiling, and processes from being forked, until the block ends.

    A child forked while another thread compiles, or imports numba, would wait for ever: that thread holds numba's lock,
    or that of the import, and does not exist in the child. What others compile with numba is not waited for.
    """
    with _lock:
        yield


def _build(key: tuple[Any, ...], decorator: Callable[..., Any], function: Any, signature: Any, **options: Any) -> Any:
    with alone():
        if key not in _built:
            stamped = _stamped(function, signature)
            try:
                built = decorator(signature, cache=True, **options)(stamped)
            except Exception:  # no directory can be written, the disk is full, a cached file is damaged
                built = decorator(signature, **options)(stamped)  # a fault of the function's own comes again here
            _built[key] = built
        return _built[key]


def _stamped(function: Any, signature: Any) -> Any:
    """Return a copy whose qualified name, from which numba makes the names of cached files, ends in digests.

    One is of the signature: numba numbers the files of one name as they come. Two processes that compile a function for
    two dtypes at once would both write number 1, and one of them would later be given the other's machine code.
    """
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    of_types = hashlib.blake2b(str(signature).encode(), digest_size=4).hexdigest()
    copy.__qualname__ = f"{function.__qualname__}_{_digest()}_{of_types}"
    copy.__module__ = function.__module__
    return copy


@cache
def _digest() -> str:
    """Return what stands for all that a compiled kernel depends on and that the names of numba's files do not say.

    numba's index looks at the file a kernel is written in, its own version and the processor; not at the other files
    whose functions are compiled into the kernel. The processor is in the names too: machines may share a folder, and
    there its files are numbered as they come.
    """
    import llvmlite
    from numba.core.registry import cpu_target

    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(resources.files(__package__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(f"{file.name} {hashlib.blake2b(file.read_bytes()).hexdigest()}\n".encode())
    digest.update(f"llvmlite {llvmlite.__version__}\n".encode())
    digest.update(f"{cpu_target.target_context.codegen().magic_tuple()}\n".encode())
    for name in SETTINGS:
        digest.update(f"{name} {getattr(numba().config, name, None)}\n".encode())
    return digest.hexdigest()


def _acquire() -> None:
    _lock.acquire()


def _release() -> None:
    _lock.release()


def _renew() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_acquire, after_in_parent=_release, after_in_child=_renew)
