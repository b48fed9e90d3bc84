"""Launching kernels through the CUDA driver, on any stream, and what a device is. Knows no norm and no array library.

cuda.bindings is imported when a device is first asked about.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import addressof, c_char_p
from functools import cache
from typing import Any, NoReturn

from anynorm_cuda import _compile
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._teams import Device

# Bytes of memory that a block's threads may share, declared and dynamic together, without the function being told.
SHARED = 48 << 10

# The default stream by the name that means the same under every setting; 0 does not, under
# CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM.
LEGACY = 1

# Kernel objects whose function is found by their address. There are more only if equal ones are made again and again.
MANY = 4096


@cache
def facts(device: int) -> Device:
    """Return what a device is."""
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
    """Return what runs kernels on a device."""
    return Launcher(device)


class _Loaded:
    """A kernel on the device."""

    def __init__(self, function: Any, room: int) -> None:
        self.function = function
        self.room = room  # bytes of dynamic shared memory that it may be given


class Launcher:
    """Runs kernels on one device, from any thread, in the device's primary context: that of torch and CuPy.

    A kernel is compiled and loaded when it is first run, or by `load`.
    """

    def __init__(self, device: int) -> None:
        cuda = _cuda()
        self._device = device
        self._arch = facts(device).arch
        self._context = _ask("cuDevicePrimaryCtxRetain", _ask("cuDeviceGet", device))
        self._number = int(self._context)
        self._current = cuda.cuCtxGetCurrent
        self._launch = cuda.cuLaunchKernel
        self._lock = threading.Lock()
        self._loaded: dict[Kernel, _Loaded] = {}
        # By the kernel's address, because its hash takes as long as the launch. That the kernel is kept makes it safe.
        self._met: dict[int, tuple[_Loaded, Kernel]] = {}

    def __call__(self, launch: Launch, stream: int, argument: bytes) -> None:
        """Run one launch on a stream, given by its handle, with a copy of the argument."""
        kernel, (x, y), threads, shared = launch
        met = self._met.get(id(kernel))
        loaded = self.load(kernel) if met is None else met[0]
        if shared > loaded.room:
            self._make_room(loaded, shared)
        pointer = c_char_p(argument)  # the pointer's own address is that of an array of one pointer
        given = (loaded.function, x, y, 1, threads, 1, 1, shared, stream or LEGACY, addressof(pointer), 0)
        error, current = self._current()
        if not error and int(current) == self._number:
            (error,) = self._launch(*given)
        else:
            with self._in_context():
                (error,) = self._launch(*given)
        if error:
            _fail(_cuda(), f"cuLaunchKernel of {kernel.name} on device {self._device}", error)

    def on(self, stream: int) -> Callable[[Launch, bytes], None]:
        """Return what runs launches on one stream."""
        return lambda launch, argument: self(launch, stream, argument)

    def load(self, kernel: Kernel) -> _Loaded:
        """Compile and load a kernel, unless that is done."""
        loaded = self._loaded.get(kernel)
        if loaded is None:
            code = _compile.cubin(kernel, self._arch)
            with self._lock:
                loaded = self._loaded.get(kernel)
                if loaded is None:
                    loaded = self._loaded[kernel] = self._load(kernel.name, code)
        if len(self._met) >= MANY:
            self._met.clear()
        self._met[id(kernel)] = loaded, kernel
        return loaded

    def _load(self, name: str, code: bytes) -> _Loaded:
        with self._in_context(), _while_capturing():
            function = _ask("cuModuleGetFunction", _ask("cuModuleLoadData", code), name.encode())
            declared = _ask(
                "cuFuncGetAttribute", _cuda().CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function
            )
        return _Loaded(function, SHARED - declared)

    def _make_room(self, loaded: _Loaded, shared: int) -> None:
        attribute = _cuda().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        with self._lock:  # another thread must not lower what this one has raised
            if shared > loaded.room:
                with self._in_context():
                    _ask("cuFuncSetAttribute", loaded.function, attribute, shared)
                loaded.room = shared

    @contextmanager
    def _in_context(self) -> Iterator[None]:
        """Make the device's primary context current until the block ends, unless it is."""
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
    """Allow what is not put on a stream also while a CUDA graph is captured, as far as the driver can."""
    before = _ask("cuThreadExchangeStreamCaptureMode", _cuda().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
    try:
        yield
    except RuntimeError as error:
        if "CUDA_ERROR_STREAM_CAPTURE" not in str(error):
            raise
        msg = f"{error} This kernel cannot be loaded while a CUDA graph is captured: make the same call once before."
        raise RuntimeError(msg) from None
    finally:
        _ask("cuThreadExchangeStreamCaptureMode", before)


@cache
def _cuda() -> Any:
    from cuda.bindings import driver

    (error,) = driver.cuInit(0)
    if error:
        _fail(driver, "cuInit", error)
    return driver


def _ask(call: str, *arguments: Any) -> Any:
    error, *answer = getattr(_cuda(), call)(*arguments)
    if error:
        _fail(_cuda(), call, error)
    return answer[0] if answer else None


def _fail(cuda: Any, call: str, error: Any) -> NoReturn:
    words: list[bytes | None] = [cuda.cuGetErrorName(error)[1], cuda.cuGetErrorString(error)[1]]
    name, text = (str(error) if word is None else word.decode() for word in words)
    msg = f"{call}: {name}: {text}."
    raise RuntimeError(msg)
