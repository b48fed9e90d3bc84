"""The array libraries of this installation: which there are, and how NumPy's arrays get there and back.

One function per library, each the only place that imports it. Knows nothing of norms.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from anynorm._cli import UsageError
from anynorm._core.arrays import FLOATING
from anynorm._reference import NumPyArray


@dataclass(frozen=True)
class ArrayLibrary:
    """One array library, on one device."""

    name: str
    version: str
    dtypes: tuple[str, ...]
    of_numpy: Callable[[NumPyArray], Any]
    to_numpy: Callable[[Any], NumPyArray]
    finish: Callable[[Any], Any] = lambda y: y  # wait until y is computed, where calls return before
    setting: Callable[[], AbstractContextManager[Any]] = nullcontext  # in which all of its work is done


@dataclass
class Installed:
    """The libraries that can be used, and why the others cannot."""

    libraries: list[ArrayLibrary]
    absent: dict[str, str]  # not installed, or without a device
    broken: dict[str, str]  # installed, but its import fails


class NoDeviceError(Exception):
    """The library is installed but has no device to run on."""


def find(wanted: str | None, step: Callable[[str], None]) -> Installed:
    """Import the wanted libraries (comma-separated names), or all that are installed.

    A wanted library that cannot be used is a UsageError.
    """
    found = Installed([], {}, {})
    for name in _names(wanted):
        step(f"import {name}")
        try:
            found.libraries.append(_MAKERS[name]())
        except NoDeviceError as error:
            found.absent[name] = str(error)
        except ModuleNotFoundError as error:
            if error.name == name.partition(".")[0]:
                found.absent[name] = "not installed"
            else:
                found.broken[name] = f"its import failed: {error}"
        except Exception as error:  # a broken installation is a finding, whatever it raises
            found.broken[name] = f"its import failed: {type(error).__name__}: {error}"
    unusable = found.absent | found.broken
    if wanted is not None and unusable:
        msg = "; ".join([f"{name}: {why}" for name, why in unusable.items()])
        raise UsageError(msg)
    return found


def bfloat16() -> Any:
    """Return NumPy's bfloat16, which ml_dtypes brings; None without it."""
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ModuleNotFoundError:
        return None


def _names(wanted: str | None) -> list[str]:
    if wanted is None:
        return list(_MAKERS)
    names = list(dict.fromkeys([name.strip().replace("-", "_") for name in wanted.split(",")]))
    for name in names:
        if name not in _MAKERS:
            msg = f"there is no array library {name!r}. Choose from {', '.join(_MAKERS)}."
            raise UsageError(msg)
    return names


def _dtypes() -> tuple[str, ...]:
    # Without ml_dtypes there is no bfloat16 in NumPy, and so no reference to judge any library's by.
    return tuple([name for name in FLOATING if name != "bfloat16" or bfloat16() is not None])


def _numpy() -> ArrayLibrary:
    return ArrayLibrary("numpy", np.__version__, _dtypes(), of_numpy=lambda a: a, to_numpy=lambda y: y)


def _torch(device: str = "cpu") -> ArrayLibrary:
    torch = importlib.import_module("torch")
    if device == "cuda" and not torch.cuda.is_available():
        msg = "no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
        raise NoDeviceError(msg)

    def of_numpy(a: NumPyArray) -> Any:
        # torch reads no bfloat16 of NumPy's; float32 holds every bfloat16.
        if a.dtype.name == "bfloat16":
            return torch.tensor(a.astype(np.float32), device=device).to(torch.bfloat16)
        return torch.tensor(a, device=device)

    def to_numpy(y: Any) -> Any:
        y = y.cpu()
        return y.float().numpy().astype(bfloat16()) if y.dtype is torch.bfloat16 else y.numpy()

    def finish(y: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return y

    name = "torch" if device == "cpu" else "torch.cuda"
    return ArrayLibrary(name, torch.__version__, _dtypes(), of_numpy, to_numpy, finish)


def _jax() -> ArrayLibrary:
    jax = importlib.import_module("jax")
    # Without it, JAX turns float64 into float32. A context, because the switch itself is the whole process's.
    enable_x64 = (jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")).enable_x64
    return ArrayLibrary(
        "jax",
        jax.__version__,
        _dtypes(),
        of_numpy=jax.numpy.asarray,
        to_numpy=np.asarray,
        finish=lambda y: y.block_until_ready(),
        setting=lambda: enable_x64(True),
    )


def _dask() -> ArrayLibrary:
    dask_array = importlib.import_module("dask.array")

    def of_numpy(a: NumPyArray) -> Any:
        # The first and the longest axis in two: reductions cross chunks, and no graph is large.
        halved = {0, a.shape.index(max(a.shape))}
        chunks = [-(-length // 2) if axis in halved else length for axis, length in enumerate(a.shape)]
        return dask_array.from_array(a, chunks=tuple(chunks))

    version = importlib.metadata.version("dask")
    return ArrayLibrary("dask", version, _dtypes(), of_numpy, to_numpy=np.asarray, finish=lambda y: y.compute())


def _array_api_strict() -> ArrayLibrary:
    strict = importlib.import_module("array_api_strict")
    dtypes = ("float32", "float64")
    return ArrayLibrary("array_api_strict", strict.__version__, dtypes, strict.asarray, np.from_dlpack)


def _cupy() -> ArrayLibrary:
    cupy = importlib.import_module("cupy")
    try:
        cupy.zeros(1).sum().item()
    except Exception as error:  # CuPy raises by driver, runtime or compiler, whichever is missing
        msg = f"it finds no usable device: {type(error).__name__}: {error}"
        raise NoDeviceError(msg) from error

    def finish(y: Any) -> Any:
        cupy.cuda.get_current_stream().synchronize()
        return y

    dtypes = ("float16", "float32", "float64")
    return ArrayLibrary("cupy", cupy.__version__, dtypes, cupy.asarray, cupy.asnumpy, finish)


_MAKERS: dict[str, Callable[[], ArrayLibrary]] = {
    "numpy": _numpy,
    "torch": _torch,
    "torch.cuda": lambda: _torch("cuda"),
    "jax": _jax,
    "dask": _dask,
    "array_api_strict": _array_api_strict,
    "cupy": _cupy,
}
