"""The array libraries under test: what each has, and how NumPy arrays get in and out. No norm and no test in here."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest

import anynorm_numba
from anynorm._core import cache

NumPyArray = np.ndarray[Any, Any]

HALVES = ("float16", "bfloat16")
ALL_DTYPES = (*HALVES, "float32", "float64")

# What the closing line and the feature table call each family of libraries.
TITLES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "dask": "Dask",
    "array_api_strict": "array-api-strict",
    "cupy": "CuPy",
    "torch_cuda": "PyTorch on CUDA",
}


@dataclass(frozen=True)
class ArrayLibrary:
    """One library, in one of its configurations."""

    name: str  # in test ids
    family: str  # a key of TITLES
    package: str  # what has to be installed
    dtypes: tuple[str, ...]
    make: Callable[[NumPyArray], Any]
    to_numpy: Callable[[Any], NumPyArray]
    layouts: str = (
        "any"  # "numpy": all of inputs.LAYOUTS; "strided": those without NumPy's own; "any": one is as another
    )
    flushes: bool = False  # subnormal numbers are taken as 0, but by the CPU engine
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    device_missing: Callable[[], str | None] = lambda: None

    def missing(self) -> str | None:
        """Return why the library cannot be tested here, or None."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return self.device_missing()

    def make_all(self, arrays: dict[str, NumPyArray]) -> dict[str, Any]:
        """Return the library's own arrays."""
        return {name: self.make(array) for name, array in arrays.items()}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return a NumPy dtype by name; NumPy has bfloat16 from ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, NumPy's bfloat16, is not installed")
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


@contextmanager
def without_engine() -> Iterator[None]:
    """Let no array meet the CPU engine, as where numba is not installed."""
    with nothing_known(), mock.patch.object(anynorm_numba, "missing", return_value="a test does without it"):
        yield


@contextmanager
def nothing_known() -> Iterator[None]:
    """Let every signature be new, and forget what was compiled meanwhile."""
    with mock.patch.object(cache, "entries", {}):
        yield


def _same(array: Any) -> Any:
    return array


def _make_torch(array: NumPyArray, device: str = "cpu") -> Any:
    import torch

    if not array.flags.writeable:
        array = array.copy(order="K")  # torch has no read-only tensors and warns
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)


def _from_torch(tensor: Any) -> NumPyArray:
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()  # type: ignore[no-any-return]
    return tensor.view(torch.uint16).numpy().view(numpy_dtype("bfloat16"))  # type: ignore[no-any-return]


def _no_cuda() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def _make_jax(array: NumPyArray) -> Any:
    import jax

    # jnp.asarray compiles a copy for every new shape. This one shares memory with what it is given: a copy of its own.
    return jax.device_put(array.copy())


@contextmanager
def _jax_settings(x64: bool, engine: bool) -> Iterator[None]:
    import jax

    with jax.enable_x64(x64), nullcontext() if engine else without_engine():
        yield


def _jax(name: str, dtypes: tuple[str, ...], *, x64: bool, engine: bool = True) -> ArrayLibrary:
    context = partial(_jax_settings, x64, engine)
    return ArrayLibrary(name, "jax", "jax", dtypes, _make_jax, np.asarray, flushes=True, context=context)


def _make_dask(array: NumPyArray) -> Any:
    import dask.array as da

    # Two chunks of unequal length along every axis: what a reduction may get wrong lies at the seams.
    chunks = tuple([length // 2 + 1 for length in array.shape])
    return da.from_array(array, chunks=chunks)


def _from_dask(array: Any) -> NumPyArray:
    return array.compute()  # type: ignore[no-any-return]


def _one_thread_of_dask() -> AbstractContextManager[Any]:
    import dask

    context: AbstractContextManager[Any] = dask.config.set(scheduler="synchronous")
    return context


def _make_strict(array: NumPyArray, device: str) -> Any:
    import array_api_strict

    return array_api_strict.asarray(array, device=array_api_strict.Device(device))


def _from_strict(array: Any) -> NumPyArray:
    import array_api_strict

    return np.asarray(array.to_device(array_api_strict.Device("CPU_DEVICE")))


def _make_cupy(array: NumPyArray) -> Any:
    cupy = importlib.import_module("cupy")
    if array.flags.c_contiguous:
        return cupy.asarray(array)
    # A copy of CuPy's lies in C order: what is to lie as it did goes with all that is between its elements.
    first, end = np.lib.array_utils.byte_bounds(array)
    room = cupy.asarray(np.frombuffer(memoryview((ctypes.c_char * (end - first)).from_address(first)), np.uint8))
    begin = room.data + (array.__array_interface__["data"][0] - first)
    return cupy.ndarray(array.shape, array.dtype, begin, array.strides)


def _from_cupy(array: Any) -> NumPyArray:
    return array.get()  # type: ignore[no-any-return]


def _no_cupy_device() -> str | None:
    try:
        importlib.import_module("cupy").empty(1)
    except Exception as error:  # CuPy raises different errors for a missing driver, device or toolkit
        return f"cupy cannot allocate: {error}"
    return None


def _strict(device: str, *dtypes: str) -> ArrayLibrary:
    make = partial(_make_strict, device=device)
    return ArrayLibrary(f"strict_{device}", "array_api_strict", "array_api_strict", dtypes, make, _from_strict)


_TABLE = (
    ArrayLibrary("numpy", "numpy", "numpy", ALL_DTYPES, _same, _same, "numpy"),
    ArrayLibrary("numpy_alone", "numpy", "numpy", ALL_DTYPES, _same, _same, "numpy", context=without_engine),
    ArrayLibrary("torch", "torch", "torch", ALL_DTYPES, _make_torch, _from_torch, "strided"),
    _jax("jax", (*HALVES, "float32"), x64=False),
    _jax("jax_x64", ("float64",), x64=True),
    _jax("jax_xla", (*HALVES, "float32"), x64=False, engine=False),
    _jax("jax_xla_x64", ("float64",), x64=True, engine=False),
    # Its threads, which cost more than what is computed in them, are test_ways_dask.py's.
    ArrayLibrary(
        "dask", "dask", "dask", ("float16", "float32", "float64"), _make_dask, _from_dask, context=_one_thread_of_dask
    ),
    _strict("CPU_DEVICE", "float32", "float64"),
    _strict("device1", "float32", "float64"),
    _strict("device2", "float32", "float64"),
    _strict("no_float64", "float32"),
    _strict("no_x64", "float32"),
    ArrayLibrary(
        "cupy",
        "cupy",
        "cupy",
        ALL_DTYPES,
        _make_cupy,
        _from_cupy,
        "strided",
        flushes=True,
        device_missing=_no_cupy_device,
    ),
    ArrayLibrary(
        "torch_cuda",
        "torch_cuda",
        "torch",
        ALL_DTYPES,
        partial(_make_torch, device="cuda"),
        _from_torch,
        "strided",
        device_missing=_no_cuda,
    ),
)

LIBRARIES = {library.name: library for library in _TABLE}

# One configuration of each, where the differences between configurations cannot matter.
ONE_OF_EACH = ("numpy", "torch", "jax", "dask", "strict_CPU_DEVICE", "cupy", "torch_cuda")

# NumPy's two ways: the CPU engine, wherever it takes the array, and NumPy alone.
BOTH_NUMPY = ("numpy", "numpy_alone")

# One of each, and both ways of NumPy and of JAX: for what depends on how a result is computed.
EACH_WAY = (*BOTH_NUMPY, *ONE_OF_EACH[1:], "jax_xla")

# JAX has float64 only with 64-bit numbers turned on, where it has the other dtypes as well.
JAX_X64 = ("jax_x64", "jax_xla_x64")

DTYPE_FEATURES = {name: [pytest.mark.feature(name)] if name != "float32" else [] for name in ALL_DTYPES}


def marks_of(library: str, dtype: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a test in a grid of libraries and dtypes: of each way of computing, float32 is quick."""
    return [*DTYPE_FEATURES[dtype], *([pytest.mark.quick] if library in EACH_WAY and dtype == "float32" else [])]


def each_library(names: Sequence[str] = tuple(LIBRARIES)) -> pytest.MarkDecorator:
    """Parametrize a test by `library`, the fixture of conftest.py that skips what is not there."""
    return pytest.mark.parametrize("library", names, indirect=True)


def each_library_and_dtype(
    names: Sequence[str] = tuple(LIBRARIES), dtypes: Sequence[str] = ALL_DTYPES
) -> pytest.MarkDecorator:
    """Parametrize a test by `library` and by the names of the dtypes that it has."""
    pairs = [
        pytest.param(name, dtype, id=f"{name}-{dtype}", marks=DTYPE_FEATURES[dtype])
        for name in names
        for dtype in LIBRARIES[name].dtypes
        if dtype in dtypes
    ]
    return pytest.mark.parametrize(("library", "dtype"), pairs, indirect=["library"])
