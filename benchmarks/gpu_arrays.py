"""The two libraries whose arrays are timed on a GPU: how they make data, copy, tell the time and give memory back.

Knows no norm but the layout of a problem's data, and no peer.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from benchmarks.gpu_card import no_gpu
from benchmarks.problems import Arrays, Problem

# Most memory of the GPU that a library may take; JAX's comes beside torch's.
MEMORY, MEMORY_OF_JAX = 12 << 30, 3 << 30

# More than any GPU's clock: a stall is then no shorter than it should be.
_CYCLES_PER_SECOND = 2.2e9


class TorchArrays:
    """torch's CUDA tensors."""

    name = "torch"

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._device = torch.device("cuda", torch.cuda.current_device())
        properties: Any = torch.cuda.get_device_properties(self._device)
        self.cache = int(getattr(properties, "L2_cache_size", 0)) or 64 << 20
        torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY / properties.total_memory), self._device)

    @staticmethod
    def missing() -> str | None:
        """Return why there are no such arrays here, or None."""
        try:
            import torch
        except ImportError:
            return "torch is not installed"
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA"
        return None if torch.cuda.is_available() else "torch finds no CUDA device"

    def data(self, problem: Problem, count: int) -> list[Arrays]:
        """Return so many inputs in the order of memory, easy data; weight and bias are the same in all."""
        torch = self._torch
        generator = torch.Generator(self._device).manual_seed(problem.elements)
        dtype = getattr(torch, problem.dtype)

        def values(*shape: int) -> Any:
            return torch.randn(shape, generator=generator, device=self._device).to(dtype)

        weight = values(problem.shape[1])
        bias = values(problem.shape[1]) if problem.has_bias else None
        return [Arrays(values(*problem.stored), values(*problem.stored), weight, bias) for _ in range(count)]

    def seen(self, problem: Problem, arrays: Arrays) -> Arrays:
        """Return the arrays as the library's users have them: the channels second, whatever the layout."""
        x, dy, weight, bias = arrays
        if problem.channels_last:
            x, dy = x.movedim(-1, 1), dy.movedim(-1, 1)
        return Arrays(x, dy, weight, bias)

    def stored(self, problem: Problem, array: Any) -> Any:
        """Return a result of x's shape in the order of memory."""
        return array.movedim(1, -1) if problem.channels_last else array

    def wide(self, array: Any) -> Any:
        """Return an array as float64."""
        return array.detach().double()

    def empty_like(self, array: Any) -> Any:
        """Return room for a copy."""
        return self._torch.empty_like(array)

    def copy(self, source: Any, target: Any) -> None:
        """Copy on the device."""
        target.copy_(source)

    def events(self, run: Callable[[], object], stall: float) -> float:
        """Return the seconds between two events around what is launched, with the queue held back before."""
        torch = self._torch
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(stall * _CYCLES_PER_SECOND))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def synchronize(self) -> None:
        """Wait until all that was launched is done."""
        self._torch.cuda.synchronize()

    def taken(self) -> int:
        """Return the bytes of memory that the library has taken from the GPU."""
        return int(self._torch.cuda.memory_reserved())

    def release(self) -> None:
        """Give back all memory that no array has."""
        gc.collect()
        self._torch.cuda.empty_cache()


class CupyArrays:
    """CuPy's arrays."""

    name = "cupy"

    def __init__(self) -> None:
        self._cupy: Any = importlib.import_module("cupy")
        attributes = self._cupy.cuda.Device().attributes
        self.cache = int(attributes.get("L2CacheSize", 0)) or 64 << 20
        self._pool = self._cupy.get_default_memory_pool()
        self._pool.set_limit(size=MEMORY)

    @staticmethod
    def missing() -> str | None:
        """Return why there are no such arrays here, or None."""
        try:
            cupy = importlib.import_module("cupy")
        except ImportError as error:
            return "CuPy is not installed" if error.name == "cupy" else f"CuPy cannot be imported: {_line(error)}"
        try:
            cupy.zeros(1).sum().get()
        except Exception as error:  # of the driver, the runtime or the compiler
            return f"CuPy cannot compute: {_line(error)}"
        return None

    def data(self, problem: Problem, count: int) -> list[Arrays]:
        """Return so many inputs, easy data; weight and bias are the same in all."""
        generator = self._cupy.random.default_rng(problem.elements)
        dtype = _dtype(problem.dtype)

        def values(*shape: int) -> Any:
            return generator.standard_normal(shape, dtype=self._cupy.float32).astype(dtype, copy=False)

        weight = values(problem.shape[1])
        bias = values(problem.shape[1]) if problem.has_bias else None
        return [Arrays(values(*problem.stored), values(*problem.stored), weight, bias) for _ in range(count)]

    def seen(self, problem: Problem, arrays: Arrays) -> Arrays:  # noqa: ARG002
        """Return the arrays as the library's users have them: in the order of memory."""
        return arrays

    def stored(self, problem: Problem, array: Any) -> Any:  # noqa: ARG002
        """Return a result of x's shape in the order of memory."""
        return array

    def wide(self, array: Any) -> Any:
        """Return an array as float64."""
        return array.astype("float64", copy=False)

    def empty_like(self, array: Any) -> Any:
        """Return room for a copy."""
        return self._cupy.empty_like(array)

    def copy(self, source: Any, target: Any) -> None:
        """Copy on the device, by the driver as torch does; an assignment would run a kernel."""
        target.data.copy_from_device_async(source.data, source.nbytes, self._cupy.cuda.get_current_stream())

    def events(self, run: Callable[[], object], stall: float) -> float:
        """Return the seconds between two events around what is launched, with the queue held back before."""
        cuda = self._cupy.cuda
        start, end = cuda.Event(), cuda.Event()
        _spin()((1,), (1,), (int(stall * _CYCLES_PER_SECOND),))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(cuda.get_elapsed_time(start, end)) / 1e3

    def synchronize(self) -> None:
        """Wait until all that was launched is done."""
        self._cupy.cuda.Device().synchronize()

    def taken(self) -> int:
        """Return the bytes of memory that the library has taken from the GPU."""
        return int(self._pool.total_bytes())

    def release(self) -> None:
        """Give back all memory that no array has."""
        gc.collect()
        self._pool.free_all_blocks()
        self._cupy.get_default_pinned_memory_pool().free_all_blocks()


LIBRARIES: dict[str, Any] = {library.name: library for library in (TorchArrays, CupyArrays)}


def usable() -> dict[str, Any]:
    """Return the libraries by name, or instead of one why it cannot be used here."""
    reason = no_gpu()
    if reason is not None:
        return dict.fromkeys(LIBRARIES, reason)
    return {name: library.missing() or library() for name, library in LIBRARIES.items()}


def _dtype(name: str) -> Any:
    return importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name


@cache
def _spin() -> Any:
    """Return a kernel that takes as many cycles as it is told."""
    source = (
        'extern "C" __global__ void spin(long long cycles) { long long t = clock64(); while (clock64() - t < cycles); }'
    )
    return importlib.import_module("cupy").RawKernel(source, "spin")


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
