"""Kernels compiled and kept by CuPy, launched on its current stream; and what a device is. Knows no norm, no array."""

from __future__ import annotations

import threading
from collections.abc import Callable
from ctypes import addressof, c_char_p
from functools import cache, partial
from typing import Any

import cupy

from anynorm_cuda._compile import OPTIONS
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._teams import Device

driver: Any = cupy.cuda.driver
runtime: Any = cupy.cuda.runtime

# The kernels copy from global to shared memory past the registers, and convert to bfloat16.
LEAST_ARCH = 80

# Bytes of memory that a block's threads may share, declared and dynamic together, without the function being told.
SHARED = 48 << 10

# Kernel objects whose function is found by their address. There are more only if equal ones are made again and again.
MANY = 4096


def unfit(device: int) -> str | None:
    """Return why no kernel runs on a device, or None."""
    if runtime.is_hip:
        return "the kernels are written for CUDA, and this CuPy is built for ROCm"
    arch = facts(device).arch
    if arch < LEAST_ARCH:
        return f"device {device} has compute capability {arch / 10}, and the kernels need {LEAST_ARCH / 10}"
    return None


@cache
def facts(device: int) -> Device:
    """Return what a device is."""
    its = runtime.getDeviceProperties(device)
    return Device(10 * its["major"] + its["minor"], its["multiProcessorCount"], its["sharedMemPerBlockOptin"])


def current_device() -> int:
    """Return the number of the device that CuPy works on in this thread."""
    return runtime.getDevice()  # type: ignore[no-any-return]


def current_stream(device: int) -> int:
    """Return the handle of the stream that CuPy works on in this thread."""
    return cupy.cuda.get_current_stream(device).ptr  # type: ignore[no-any-return]


@cache
def launcher(device: int) -> Launcher:
    """Return what runs kernels on a device."""
    return Launcher(device)


class _Loaded:
    """A kernel on the device."""

    def __init__(self, kernel: Kernel) -> None:
        # CuPy keeps what it compiles on disk, as `name_expressions` would prevent in some of its versions. It adds
        # -ftz=true to the options.
        self.raw: Any = cupy.RawKernel(kernel.source(), kernel.name, (*OPTIONS, *kernel.options()))
        self.function = self.raw.kernel.ptr
        self.room = SHARED - self.raw.shared_size_bytes  # bytes of dynamic shared memory that it may be given


class Launcher:
    """Runs kernels on one device, which must be current, from any thread."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._loaded: dict[Kernel, _Loaded] = {}
        # By the kernel's address, because its hash takes as long as the launch. That the kernel is kept makes it safe.
        self._met: dict[int, tuple[_Loaded, Kernel]] = {}

    def now(self) -> Callable[[Launch, bytes], None]:
        """Return what runs launches on the stream that is current in this thread."""
        if not driver.ctxGetCurrent():  # a thread's first call, if it writes where another has allocated
            runtime.free(0)
        return partial(self._launch, current_stream(self._device))

    def _launch(self, stream: int, launch: Launch, argument: bytes) -> None:
        kernel, (x, y), threads, shared = launch
        met = self._met.get(id(kernel))
        loaded = self._load(kernel) if met is None else met[0]
        if shared > loaded.room:
            self._make_room(loaded, shared)
        # Straight to the driver, which takes the address of a list of arguments: CuPy's own call makes objects of each.
        pointer = c_char_p(argument)
        driver.launchKernel(loaded.function, x, y, 1, threads, 1, 1, shared, stream, addressof(pointer), 0)

    def _load(self, kernel: Kernel) -> _Loaded:
        """Compile and load a kernel, unless that is done."""
        with self._lock:
            loaded = self._loaded.get(kernel)
            if loaded is None:
                loaded = self._loaded[kernel] = _Loaded(kernel)
            if len(self._met) >= MANY:
                self._met.clear()
            self._met[id(kernel)] = loaded, kernel
        return loaded

    def _make_room(self, loaded: _Loaded, shared: int) -> None:
        with self._lock:  # another thread must not lower what this one has raised
            if shared > loaded.room:
                loaded.raw.max_dynamic_shared_size_bytes = shared
                loaded.room = shared
