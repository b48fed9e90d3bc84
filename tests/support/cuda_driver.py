"""What stands for cuda.bindings.driver where there is no GPU: it notes what it is asked, and fails when told to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_void_p, string_at
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from anynorm_cuda import _driver

ARGUMENT = bytes(range(256)) * 4  # of a kernel

ATTRIBUTES = {
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 9,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 0,
    "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": 132,
    "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 232448,
}
FUNCTIONS = {
    "CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES": 0,
    "CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK": 512,
}
ERRORS = {
    1: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    222: ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."),
    900: ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"),
}
MUTE = ("cuInit", "cuCtxPushCurrent", "cuFuncSetAttribute", "cuLaunchKernel")  # return nothing but the code


class Call(NamedTuple):
    """What was asked of the driver."""

    name: str
    arguments: tuple[Any, ...]
    context: int  # that was current
    mode: str  # that was the thread's for stream capture


class Names:
    """An enumeration whose members are their own names."""

    def __init__(self, driver: Driver, name: str) -> None:
        self.driver, self.name = driver, name

    def __getattr__(self, member: str) -> str:
        self.driver.names.add(f"{self.name}.{member}")
        return member


class Config:
    """What a launch is described by."""

    def __init__(self, driver: Driver) -> None:
        object.__setattr__(self, "driver", driver)

    def __setattr__(self, name: str, value: Any) -> None:
        self.driver.names.add(f"CUlaunchConfig.{name}")
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Driver:
    """The module, as one thread sees it: a call returns a code and what it is asked for, None where it fails."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.names: set[str] = set()  # of functions and constants that were used
        self.fails: dict[str, int] = {}  # functions that return an error
        self.contexts = [0]
        self.mode = "GLOBAL"
        self.functions = dict(FUNCTIONS)  # what is said of each
        self.clusters = 16  # that the device holds at once
        self.given: list[bytes] = []  # the arguments of launched kernels
        self.answers: dict[str, Callable[..., Any]] = {
            "cuDeviceGet": lambda device: device,
            "cuDeviceGetAttribute": lambda attribute, _: ATTRIBUTES[attribute],
            "cuDevicePrimaryCtxRetain": lambda device: 1000 + device,
            "cuCtxGetCurrent": lambda: self.contexts[-1],
            "cuCtxPushCurrent": self.contexts.append,
            "cuCtxPopCurrent": self.contexts.pop,
            "cuThreadExchangeStreamCaptureMode": self.exchange,
            "cuModuleLoadData": lambda code: f"module of {code.decode()}",
            "cuModuleGetFunction": lambda module, name: f"{name.decode()} in {module}",
            "cuFuncGetAttribute": lambda attribute, _: self.functions[attribute],
            "cuOccupancyMaxActiveClusters": lambda *_: self.clusters,
            "cuLaunchKernel": self.run,
            "cuGetErrorName": lambda error: ERRORS[error][0].encode(),
            "cuGetErrorString": lambda error: ERRORS[error][1].encode(),
        }

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            return Names(self, name)
        self.names.add(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(Call(name, arguments, self.contexts[-1], self.mode))
            code = self.fails.get(name, 0)
            answer = None if code or name not in self.answers else self.answers[name](*arguments)
            return (code,) if name in MUTE else (code, answer)

        return call

    def CUlaunchConfig(self) -> Config:  # noqa: N802
        """Return what a launch is described by."""
        return Config(self)

    def arguments(self, name: str) -> list[tuple[Any, ...]]:
        """Return what a function was given, call by call."""
        return [call.arguments for call in self.calls if call.name == name]

    def exchange(self, mode: str) -> str:
        """Set the thread's mode for stream capture, and return what it was."""
        before, self.mode = self.mode, mode
        return before

    def run(self, *arguments: Any) -> None:
        """Read a kernel's argument as the driver does, from the first of the addresses at the address it is given."""
        address = c_void_p.from_address(arguments[9]).value
        assert address
        self.given.append(string_at(address, len(ARGUMENT)))


@contextmanager
def in_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Let a driver that writes down what it is asked stand for CUDA's, and what was known of devices be forgotten."""
    fake = Driver()
    cached = (_driver._cuda, _driver.facts, _driver.launcher)
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=fake))
    for function in cached:
        function.cache_clear()
    yield fake
    for function in cached:
        function.cache_clear()
