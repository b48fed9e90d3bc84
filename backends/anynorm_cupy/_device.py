"""Kernels compiled and cached by CuPy, on its current stream; a device's properties. Knows no norm and no array."""

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
    """Return the properties of a device."""
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
    """Return whether a CUDA graph is being captured on the stream that is current in this thread."""
    return bool(runtime.streamIsCapturing(current_stream(device)))


def on_current_stream(launcher: Launcher, device: int) -> Run:
    """Return a function that runs launches on the current stream of this thread, on the current device."""
    _make_context()
    return launcher.on(current_stream(device))


def _make_context() -> None:
    """Make a context current. In a thread's first call none is, if another thread allocated the arrays."""
    if not driver.ctxGetCurrent():
        runtime.free(0)


@cache
def launcher(device: int) -> Launcher:
    """Return the launcher of a device, which must be current."""
    return Launcher(_Device(device))


class _Device:
    """The driver of the launcher, for a device that is current."""

    def __init__(self, device: int) -> None:
        self.device = device
        # The driver's function, which takes the address of the argument: CuPy's own call makes an object of it.
        self.launch: Callable[..., None] = driver.launchKernel

    def load(self, kernel: Kernel) -> Loaded:
        # Without `name_expressions`, with which some versions of CuPy do not cache on disk. CuPy adds -ftz=true.
        raw: Any = cupy.RawKernel(kernel.source(), kernel.name, (*OPTIONS, *kernel.options()))
        _make_context()
        try:
            function = raw.kernel.ptr
        except cupy.cuda.compiler.CompileException as error:
            raise CompileError(str(error)) from error
        return Loaded(function, raw.shared_size_bytes, raw.max_threads_per_block, raw)

    def allow_shared(self, loaded: Loaded, shared: int) -> None:
        _make_context()
        loaded.owner.max_dynamic_shared_size_bytes = shared

    def clusters(self, loaded: Loaded, launch: Launch) -> None:
        """Return None, as CuPy cannot ask: the launch itself fails."""
