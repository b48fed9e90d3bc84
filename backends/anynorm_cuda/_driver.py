"""A device for a launcher, by the CUDA driver, and the device's properties. No norm and no array library is known here.

The first question about a device imports cuda.bindings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, NoReturn

from anynorm_cuda import _compile
from anynorm_cuda._launcher import Launcher, Loaded
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._thread_groups import Device


@cache
def facts(device: int) -> Device:
    """Return the properties of a device."""
    handle, attribute = _ask("cuDeviceGet", device), _cuda().CUdevice_attribute
    major, minor, processors, shared = (
        int(_ask("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), handle))
        for name in (
            "COMPUTE_CAPABILITY_MAJOR",
            "COMPUTE_CAPABILITY_MINOR",
            "MULTIPROCESSOR_COUNT",
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
        )
    )
    return Device(10 * major + minor, processors, shared)


@cache
def launcher(device: int) -> Launcher:
    """Return the launcher of a device."""
    return Launcher(_Device(device))


class _Device:
    """A device in its primary context, which is also torch's and CuPy's."""

    def __init__(self, device: int) -> None:
        cuda = _cuda()
        self.device = device
        self._context = _ask("cuDevicePrimaryCtxRetain", _ask("cuDeviceGet", device))
        self._number = int(self._context)
        self._current = cuda.cuCtxGetCurrent
        self._launch = cuda.cuLaunchKernel

    def launch(self, *given: object) -> None:
        error, current = self._current()
        if not error and int(current) == self._number:
            (error,) = self._launch(*given)
        else:
            with self._in_context():
                (error,) = self._launch(*given)
        if error:
            _fail(_cuda(), "cuLaunchKernel", error)

    def load(self, kernel: Kernel) -> Loaded:
        code = _compile.cubin(kernel, facts(self.device).arch)
        names = _cuda().CUfunction_attribute
        asked = names.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, names.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        with self._in_context(), _while_capturing():
            function = _ask("cuModuleGetFunction", _ask("cuModuleLoadData", code), kernel.name.encode())
            return Loaded(function, *[_ask("cuFuncGetAttribute", attribute, function) for attribute in asked])

    def allow_shared(self, loaded: Loaded, shared: int) -> None:
        attribute = _cuda().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        with self._in_context():
            _ask("cuFuncSetAttribute", loaded.function, attribute, shared)

    def clusters(self, loaded: Loaded, launch: Launch) -> int:
        config = _cuda().CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = *launch.grid, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.threads, 1, 1
        config.sharedMemBytes = launch.shared
        with self._in_context():
            return int(_ask("cuOccupancyMaxActiveClusters", loaded.function, config))

    @contextmanager
    def _in_context(self) -> Iterator[None]:
        """Make the device's primary context current until the block ends."""
        error, current = self._current()
        if not error and int(current) == self._number:
            yield
            return
        _ask("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            _ask("cuCtxPopCurrent")


@contextmanager
def _while_capturing() -> Iterator[None]:
    """Allow calls that are not put on a stream while a CUDA graph is captured, as far as the driver can."""
    before = _ask("cuThreadExchangeStreamCaptureMode", _cuda().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
    try:
        yield
    finally:
        _ask("cuThreadExchangeStreamCaptureMode", before)


@cache
def _cuda() -> Any:
    from cuda.bindings import driver

    (error,) = driver.cuInit(0)
    if error:
        _fail(driver, "cuInit", error)
    return driver


def _ask(call: str, *arguments: object) -> Any:
    error, *answer = getattr(_cuda(), call)(*arguments)
    if error:
        _fail(_cuda(), call, error)
    return answer[0] if answer else None


def _fail(cuda: ModuleType, call: str, error: object) -> NoReturn:
    words: list[bytes | None] = [cuda.cuGetErrorName(error)[1], cuda.cuGetErrorString(error)[1]]
    name, text = (str(error) if word is None else word.decode() for word in words)
    msg = f"{call}: {name}: {text}."
    raise RuntimeError(msg)
