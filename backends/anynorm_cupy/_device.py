"""Kernels compiled and kept by CuPy, for its current stream; and what a device is. Knows no norm, no array."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cupy

from anynorm_cuda.engine import OPTIONS, CompileError, Device, Kernel, Launch, Launcher, Loaded, Run, too_old

driver: Any = cupy.cuda.driver
runtime: Any = cupy.cuda.runtime


def unfit(device: int) -> str | None:
    """Return why no kernel runs on a device, or None."""
    if runtime.is_hip:
        return "the kernels are written for CUDA, and this CuPy is built for ROCm"
    return too_old(facts(device))


@cache
def facts(device: int) -> Device:
    """Return what a device is."""
    found = runtime.getDeviceProperties(device)
    arch = 10 * found["major"] + found["minor"]
    return Device(arch, found["multiProcessorCount"], found["sharedMemPerBlockOptin"])


def current_device() -> int:
    """Return the number of the device that CuPy works on in this thread."""
    return runtime.getDevice()  # type: ignore[no-any-return]


def current_stream(device: int) -> int:
    """Return the handle of the stream that CuPy works on in this thread."""
    return cupy.cuda.get_current_stream(device).ptr  # type: ignore[no-any-return]


def capturing(device: int) -> bool:
    """Say whether a CUDA graph is being captured on the stream that is current in this thread."""
    return bool(runtime.streamIsCapturing(current_stream(device)))


def on_current_stream(launcher: Launcher, device: int) -> Run:
    """Return what runs launches on the stream that is current in this thread, on the current device."""
    _make_context()
    return launcher.on(current_stream(device))


def _make_context() -> None:
    """Make sure that a context is current: none is at a thread's first call, if it writes where another allocated."""
    if not driver.ctxGetCurrent():
        runtime.free(0)


@cache
def launcher(device: int) -> Launcher:
    """Return what runs kernels on a device, which must be current."""
    return Launcher(_Device(device))


class _Device:
    """A device, while it is current."""

    def __init__(self, device: int) -> None:
        self.device = device
        # Straight to the driver, which takes the address of a list of arguments: CuPy's own call makes objects of each.
        self.launch: Callable[..., None] = driver.launchKernel

    def load(self, kernel: Kernel) -> Loaded:
        # CuPy keeps what it compiles on disk, as `name_expressions` would prevent in some of its versions. It adds
        # -ftz=true to the options.
        raw: Any = cupy.RawKernel(kernel.source(), kernel.name, (*OPTIONS, *kernel.options()))
        _make_context()
        try:
            function = raw.kernel.ptr
        except cupy.cuda.compiler.CompileException as error:
            raise CompileError(str(error)) from error
        return Loaded(function, raw.shared_size_bytes, raw.max_threads_per_block, raw)

    def make_room(self, loaded: Loaded, shared: int) -> None:
        _make_context()
        loaded.owner.max_dynamic_shared_size_bytes = shared

    def clusters(self, loaded: Loaded, launch: Launch) -> None:
        """Leave it to the launch itself to fail: CuPy has no call that asks."""
