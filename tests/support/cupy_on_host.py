"""CuPy's own arrays over host memory, whose kernels run on the CPU: for tests of the adapter without a GPU.

The adapter, its launcher and CuPy's arrays are the real ones. What stands in: the allocator, the driver and runtime as
far as the adapter asks them, and the copies, casts and few operations that CuPy does by kernels of its own. The rest of
CuPy's arithmetic, and so the formula, cannot run here.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cuda_host
import numpy as np
from cuda_device import HostDevice
from libraries import ArrayLibrary, NumPyArray, nothing_known, numpy_dtype

import anynorm as an
from anynorm_cuda.engine import Device, Kernel, Loaded, Run

H200 = Device(90, 132, 232448)

FULL = 0x7B  # what new memory is full of: large numbers
DEVICE, STREAM = 0, 0x5EED


def missing() -> str | None:
    """Return why CuPy's arrays cannot be had over host memory here, or None."""
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed"
    return cuda_host.missing()


class Host(HostDevice):
    """What stands for a device: its memory, its kernels and what was asked of it."""

    def __init__(self, run: Run, facts: Device) -> None:
        super().__init__(run, DEVICE)
        self.facts = facts
        self.stream = STREAM
        self.context = 1
        self.current = DEVICE
        self.allocated: list[int] = []  # bytes, one after the other
        self.shift = 0  # bytes by which new memory is not aligned
        self.blocks: list[tuple[NumPyArray, int]] | None = None  # new memory, and where what was asked for ends in it
        self.capturing = False  # a CUDA graph
        self.driver = SimpleNamespace(ctxGetCurrent=lambda: self.context)
        self.runtime = SimpleNamespace(
            is_hip=False,
            getDevice=lambda: self.current,
            getDeviceProperties=self._properties,
            free=self._free,
            streamIsCapturing=lambda _: self.capturing,
        )

    def allocate(self, size: int) -> Any:
        """Return new memory, as CuPy's allocators do."""
        import cupy

        self.allocated.append(size)
        block = np.full(size + 512, FULL, np.uint8)
        begin = -block.ctypes.data % 256 + self.shift
        memory = cupy.cuda.UnownedMemory(block.ctypes.data, max(1, size), block, device_id=self.current)
        if self.blocks is not None:
            self.blocks.append((block, begin + size))
        return cupy.cuda.MemoryPointer(memory, begin)

    def load(self, kernel: Kernel) -> Loaded:
        """Note a kernel as loaded, on the current device."""
        assert self.current == DEVICE
        return super().load(kernel)

    def launch(self, *given: int) -> None:
        """Run a kernel, on the current device."""
        assert self.current == DEVICE
        super().launch(*given)

    def _properties(self, device: int) -> dict[str, int]:
        assert device == self.current
        major, minor = divmod(self.facts.arch, 10)
        return {
            "major": major,
            "minor": minor,
            "multiProcessorCount": self.facts.processors,
            "sharedMemPerBlockOptin": self.facts.shared,
        }

    def _free(self, address: int) -> None:
        assert address == 0
        self.context = 1


def make(array: NumPyArray) -> Any:
    """Return CuPy's array over a copy of an array's memory, its strides kept."""
    import cupy

    steps = list(zip(array.shape, array.strides, strict=True)) if array.size else []
    before = sum((length - 1) * -step for length, step in steps if step < 0)
    span = sum((length - 1) * abs(step) for length, step in steps) + array.itemsize
    block = np.zeros(span + 512, np.uint8)
    # As far from a multiple of 256 as it was.
    begin = -block.ctypes.data % 256 + (array.ctypes.data - before) % 256
    copy: NumPyArray = np.ndarray(array.shape, array.dtype, block, begin + before, array.strides)
    copy[...] = array
    memory = cupy.cuda.UnownedMemory(block.ctypes.data, block.nbytes, block, device_id=DEVICE)
    pointer = cupy.cuda.MemoryPointer(memory, begin + before)
    return cupy.ndarray(array.shape, array.dtype, pointer, array.strides)


def to_numpy(array: Any) -> NumPyArray:
    """Return a copy of CuPy's array."""
    return viewed(array).copy(order="K")


def viewed(array: Any) -> NumPyArray:
    """Return NumPy's array over the same memory."""
    steps = list(zip(array.shape, array.strides, strict=True)) if array.size else []
    before = sum((length - 1) * -step for length, step in steps if step < 0)
    span = sum((length - 1) * abs(step) for length, step in steps) + array.itemsize
    block = (ctypes.c_char * span).from_address(array.data.ptr - before)
    return np.ndarray(array.shape, array.dtype, block, before, array.strides)


def _converted(array: Any, dtype: Any = None) -> Any:
    if array.flags.c_contiguous and dtype in (None, array.dtype):
        return array
    return _new(np.ascontiguousarray(viewed(array), dtype=dtype))


def _astype(array: Any, dtype: Any, /, *, copy: bool = True) -> Any:
    return array if array.dtype == dtype and not copy else _new(viewed(array).astype(dtype, order="C"))


def _new(array: NumPyArray) -> Any:
    import cupy

    made = cupy.ndarray(array.shape, array.dtype)
    viewed(made)[...] = array
    return made


def _by_numpy(function: Callable[..., Any], *arrays: Any) -> Any:
    """Return what a function of NumPy's makes of arrays and numbers, or of a list of arrays."""

    def read(array: Any) -> Any:
        if isinstance(array, list):
            return [viewed(one) for one in array]
        return array if isinstance(array, float) else viewed(array)

    return _new(function(*[read(array) for array in arrays]))


def _copyto(to: Any, source: Any) -> None:
    viewed(to)[...] = viewed(source)


LIBRARY = ArrayLibrary("cupy_on_host", "cupy", "cupy", ("float16", "bfloat16", "float32"), make, to_numpy, "strided")


def normal(*shape: int, dtype: str = "float32") -> Any:
    """Return an array of CuPy of ordinary numbers."""
    return make(np.random.default_rng([*shape]).normal(2, 3, size=shape).astype(numpy_dtype(dtype)))


def close(one: Any, other: Any) -> None:
    """Raise unless two float32 arrays hold the same numbers but for rounding."""
    np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=2e-6, atol=2e-6)


def explained(case: Any, arrays: dict[str, Any]) -> Any:
    """Return what `explain` says of a case."""
    others = {name: array for name, array in arrays.items() if name != "x"}
    return an.explain(getattr(an, case.norm.function), arrays["x"], *case.norm.groups, **others, **case.norm.options)


@contextmanager
def on_host(launch: Run, device: Device = H200) -> Iterator[Host]:
    """Let CuPy's arrays lie in host memory, and its kernels run on the CPU as on a device of this model."""
    import array_api_compat.cupy
    import cupy

    from anynorm_cupy import _device

    host = Host(launch, device)
    before = cupy.cuda.get_allocator()
    patch = mock.patch.object
    operations: list[Any] = [
        patch(array_api_compat.cupy, name, partial(_by_numpy, getattr(np, name)))
        for name in ("multiply", "divide", "stack", "zeros_like")
    ]
    with ExitStack() as stack:
        for patched in (
            patch(_device, "driver", host.driver),
            patch(_device, "runtime", host.runtime),
            patch(_device, "current_stream", lambda _: host.stream),
            patch(_device, "_Device", lambda _: host),
            nothing_known(),
            patch(cupy, "ascontiguousarray", _converted),
            patch(cupy, "copyto", _copyto),
            patch(array_api_compat.cupy, "astype", _astype),
            *operations,
        ):
            stack.enter_context(patched)
        _forget()
        cupy.cuda.set_allocator(host.allocate)
        try:
            yield host
        finally:
            cupy.cuda.set_allocator(before)
            _forget()


def _forget() -> None:
    """Forget what was asked of a device that is now another."""
    from anynorm_cupy import _device

    _device.facts.cache_clear()
    _device.launcher.cache_clear()
