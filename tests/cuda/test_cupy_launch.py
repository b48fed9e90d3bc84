"""What CuPy is asked for a launcher: to compile and load a kernel, to launch it, with which bytes, on which stream."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from anynorm_cuda._compile import OPTIONS
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._thread_groups import Device

if importlib.util.find_spec("cupy") is None:
    pytest.skip("cupy is not installed", allow_module_level=True)

KERNEL = Kernel(
    "given_statistics", ("call", "formula", "parameters"), (("X", "f32"), ("W", "f32"), ("B", "f32"), ("THREADS", 128))
)
ARGUMENT = bytes(range(256)) * 2


class Driver:
    """What stands for CuPy's driver, runtime and compiler, and notes what it is asked."""

    def __init__(self) -> None:
        self.context = 1
        self.freed: list[int] = []
        self.launches: list[tuple[Any, ...]] = []
        self.made: list[tuple[str, str, tuple[str, ...]]] = []
        self.allowed: list[int] = []
        self.refuses: Exception | None = None
        self.declared = 1000  # bytes of shared memory in the source
        self.stream = 77

    def ctxGetCurrent(self) -> int:  # noqa: N802
        return self.context

    def launchKernel(self, *asked: Any) -> None:  # noqa: N802
        """Read the argument as the driver does, before it returns."""
        begin = ctypes.c_size_t.from_address(asked[9]).value
        self.launches.append((*asked[:9], ctypes.string_at(begin, len(ARGUMENT)), asked[10]))

    def free(self, address: int) -> None:
        self.freed.append(address)
        self.context = 1

    def RawKernel(self, code: str, name: str, options: tuple[str, ...]) -> Any:  # noqa: N802
        """Return a kernel whose handle is its number."""
        self.made.append((code, name, options))
        driver, number = self, len(self.made)

        class Raw:
            shared_size_bytes = driver.declared
            max_threads_per_block = 512

            @property
            def kernel(self) -> Any:
                assert driver.context
                if driver.refuses is not None:
                    raise driver.refuses
                return SimpleNamespace(ptr=number)

            def __setattr__(self, attribute: str, value: int) -> None:
                assert attribute == "max_dynamic_shared_size_bytes"
                assert driver.context
                driver.allowed.append(value)

        return Raw()


@pytest.fixture
def driver() -> Iterator[Driver]:
    """Put a stand-in where CuPy's driver is."""
    from anynorm_cupy import _device

    stand_in = Driver()
    streams = {3: stand_in}
    with (
        mock.patch.object(_device, "driver", stand_in),
        mock.patch.object(_device, "runtime", stand_in),
        mock.patch("cupy.RawKernel", stand_in.RawKernel),
        mock.patch("cupy.cuda.get_current_stream", lambda device: SimpleNamespace(ptr=streams[device].stream)),
    ):
        yield stand_in


def _launcher() -> Any:
    from anynorm_cupy._device import launcher

    return launcher.__wrapped__(3)


def _run(launcher: Any, launch: Launch) -> None:
    from anynorm_cupy._device import on_current_stream

    on_current_stream(launcher, 3)(launch, ARGUMENT)


def test_argument(driver: Driver) -> None:
    """The packed argument goes to the driver as it is, with the grid, on the stream that is current at the call."""
    launcher = _launcher()
    _run(launcher, Launch(KERNEL, (5, 7), 128, 64))
    driver.stream = 2  # that of the thread
    _run(launcher, Launch(KERNEL, (5, 7), 128, 0))
    assert driver.launches == [
        (1, 5, 7, 1, 128, 1, 1, 64, 77, ARGUMENT, 0),
        (1, 5, 7, 1, 128, 1, 1, 0, 2, ARGUMENT, 0),
    ]
    assert driver.freed == []


def test_compiled(driver: Driver) -> None:
    """A kernel is compiled from the whole source, as C++17 with its macros."""
    launcher = _launcher()
    for macros in (KERNEL.macros, (*KERNEL.macros[:-1], ("THREADS", 256))):
        for _ in range(2):
            _run(launcher, Launch(KERNEL._replace(macros=macros), (1, 1), 128, 0))
    (code, name, options), (_, _, others) = driver.made
    assert (code, name) == (KERNEL.source(), "given_statistics")
    assert options == (*OPTIONS, "-DWANTS_given_statistics", "-DX=f32", "-DW=f32", "-DB=f32", "-DTHREADS=128")
    assert others[-1] == "-DTHREADS=256"
    assert [launch[0] for launch in driver.launches] == [1, 1, 2, 2]


def test_shared_memory(driver: Driver) -> None:
    """A kernel is told of shared memory beyond 48 KiB, the source's own included."""
    launcher = _launcher()
    limit = (48 << 10) - driver.declared
    for shared in (limit, limit + 1):
        _run(launcher, Launch(KERNEL, (1, 1), 128, shared))
    assert driver.allowed == [limit + 1]


def test_registers(driver: Driver) -> None:
    """A block of more threads than CuPy says there are registers for is not launched."""
    assert "registers for 512 threads, and 1024 are wanted" in _launcher().why_not([Launch(KERNEL, (1, 1), 1024, 0)])
    assert not driver.launches


def test_clusters_are_left_to_the_launch() -> None:
    """CuPy cannot ask how many clusters a device holds."""
    assert not [name for name in dir(importlib.import_module("cupy").cuda.driver) if "luster" in name]


def test_refused_source(driver: Driver) -> None:
    """What CuPy's compiler says of a source is why its kernel does not run."""
    compiler = importlib.import_module("cupy").cuda.compiler
    log = 'kern.cu(3): error: identifier "absent" is undefined\n1 error detected.'
    driver.refuses = compiler.CompileException(log, "source", "kern.cu", ())
    with pytest.warns(RuntimeWarning, match="given_statistics does not compile"):
        said = _launcher().why_not([Launch(KERNEL, (1, 1), 128, 0)])
    assert said == 'the kernel given_statistics does not compile: kern.cu(3): error: identifier "absent" is undefined'


@pytest.mark.parametrize("shared", [0, 60_000])
def test_thread_without_context(shared: int, driver: Driver) -> None:
    """In a thread for which CuPy has made no context current it is made, before anything is loaded or launched."""
    launcher, launch = _launcher(), Launch(KERNEL, (1, 1), 128, shared)
    driver.context = 0
    assert launcher.why_not([launch]) is None
    assert driver.freed == [0]
    driver.context = 0
    _run(launcher, launch)
    assert driver.freed == [0, 0]
    driver.context = 0
    assert launcher.why_not([launch._replace(shared=100_000)]) is None
    assert driver.allowed == [60_000, 100_000][shared == 0 :]


def test_facts() -> None:
    """What a device is comes from CuPy's properties of it."""
    from anynorm_cupy import _device

    properties = {"major": 12, "minor": 1, "multiProcessorCount": 48, "sharedMemPerBlockOptin": 101376, "name": b"a"}
    runtime = SimpleNamespace(getDeviceProperties=lambda device: properties if device == 5 else {}, is_hip=False)
    with mock.patch.object(_device, "runtime", runtime):
        assert _device.facts.__wrapped__(5) == Device(121, 48, 101376)


def test_what_the_adapter_asks_of_cupy_is_there() -> None:
    """The functions that stand-ins replace here are in the CuPy that is installed, with as many parameters."""
    import cupy

    driver, runtime = cupy.cuda.driver, cupy.cuda.runtime
    assert driver.launchKernel.__doc__.count(",") == 10
    asked = (driver.ctxGetCurrent, runtime.free, runtime.getDeviceProperties, runtime.getDevice)
    assert all(callable(function) for function in asked)
    assert runtime.is_hip in (True, False)
    raw = cupy.RawKernel("", "none", ("-std=c++17",))
    assert type(raw).shared_size_bytes
    assert type(raw).max_dynamic_shared_size_bytes
    assert type(raw).max_threads_per_block
    assert issubclass(cupy.cuda.driver.CUDADriverError, RuntimeError)
    assert str(cupy.cuda.compiler.CompileException("said", "", "", ())) == "said"
