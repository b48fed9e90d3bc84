"""How the adapter for CuPy loads and launches kernels: with which bytes, on which stream, in what shared memory."""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from anynorm_cuda._compile import OPTIONS
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._teams import Device

if importlib.util.find_spec("cupy") is None:
    pytest.skip("cupy is not installed", allow_module_level=True)

KERNEL = Kernel(
    "given", ("call", "formula", "parameters"), (("X", "f32"), ("W", "f32"), ("B", "f32"), ("THREADS", 128))
)
ARGUMENT = bytes(range(256)) * 2


class Driver:
    """What stands for CuPy's driver, runtime and compiler, and notes what it is asked."""

    def __init__(self) -> None:
        self.context = 1
        self.freed: list[int] = []
        self.launches: list[tuple[Any, ...]] = []
        self.made: list[tuple[str, str, tuple[str, ...]]] = []
        self.rooms: list[int] = []
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

    def RawKernel(self, code: str, name: str, options: tuple[str, ...]) -> Any:  # noqa: N802
        """Return a kernel whose handle is its number, after a while."""
        time.sleep(0.01)
        self.made.append((code, name, options))
        driver = self

        class Raw:
            kernel = SimpleNamespace(ptr=len(driver.made))
            shared_size_bytes = driver.declared

            def __setattr__(self, attribute: str, value: int) -> None:
                assert attribute == "max_dynamic_shared_size_bytes"
                driver.rooms.append(value)

        return Raw()


@pytest.fixture
def driver() -> Iterator[Driver]:
    """Put a stand-in where CuPy's driver is."""
    from anynorm_cupy import _launch

    its = Driver()
    streams = {3: its}
    with (
        mock.patch.object(_launch, "driver", its),
        mock.patch.object(_launch, "runtime", its),
        mock.patch("cupy.RawKernel", its.RawKernel),
        mock.patch("cupy.cuda.get_current_stream", lambda device: SimpleNamespace(ptr=streams[device].stream)),
    ):
        yield its


def _launcher() -> Any:
    from anynorm_cupy._launch import Launcher

    return Launcher(3)


def test_argument(driver: Driver) -> None:
    """The packed argument goes to the driver as it is, with the grid, on the stream that is current at the call."""
    launcher = _launcher()
    launcher.now()(Launch(KERNEL, (5, 7), 128, 64), ARGUMENT)
    driver.stream = 2  # that of the thread
    launcher.now()(Launch(KERNEL, (5, 7), 128, 0), ARGUMENT)
    assert driver.launches == [
        (1, 5, 7, 1, 128, 1, 1, 64, 77, ARGUMENT, 0),
        (1, 5, 7, 1, 128, 1, 1, 0, 2, ARGUMENT, 0),
    ]
    assert driver.freed == []


def test_compiled_once(driver: Driver) -> None:
    """Equal kernels are compiled once on a device, from the whole source, as C++17 with their macros."""
    launcher = _launcher()
    for macros in (KERNEL.macros, (*KERNEL.macros[:2], *KERNEL.macros[2:]), (*KERNEL.macros[:-1], ("THREADS", 256))):
        for _ in range(2):
            launcher.now()(Launch(KERNEL._replace(macros=macros), (1, 1), 128, 0), ARGUMENT)
    (code, name, options), (_, _, others) = driver.made
    assert (code, name) == (KERNEL.source(), "given")
    assert options == (*OPTIONS, "-DWANTS_given", "-DX=f32", "-DW=f32", "-DB=f32", "-DTHREADS=128")
    assert others[-1] == "-DTHREADS=256"
    assert [launch[0] for launch in driver.launches] == [1, 1, 1, 1, 2, 2]


def test_forgotten_kernels(driver: Driver) -> None:
    """Kernel objects that are made again and again are not kept for ever, and none is taken for another."""
    from anynorm_cupy import _launch

    launcher = _launcher()
    with mock.patch.object(_launch, "MANY", 4):
        for number in range(20):
            macros = (*KERNEL.macros[:-1], ("THREADS", 128 + number % 2))
            launcher.now()(Launch(Kernel(*KERNEL[:2], macros), (1, 1), 128, 0), ARGUMENT)
            assert len(launcher._met) <= 4
    assert [launch[0] for launch in driver.launches] == [1, 2] * 10


def test_shared_memory(driver: Driver) -> None:
    """A kernel is told of shared memory beyond 48 KiB, the source's own included, once, and never of less again."""
    launcher = _launcher()
    limit = (48 << 10) - driver.declared
    for shared in (0, limit, limit + 1, 100_000, limit + 2, 100_000, 200_000):
        launcher.now()(Launch(KERNEL, (1, 1), 128, shared), ARGUMENT)
    assert driver.rooms == [limit + 1, 100_000, 200_000]


def test_thread_without_context(driver: Driver) -> None:
    """In a thread for which CuPy has made no context current it is made, before the launch."""
    driver.context = 0
    _launcher().now()
    assert driver.freed == [0]


def test_threads(driver: Driver) -> None:
    """Threads that need a kernel at once compile it once."""
    launcher, together = _launcher(), Barrier(8)

    def work(_: int) -> None:
        together.wait(30)
        launcher.now()(Launch(KERNEL, (1, 1), 128, 60_000), ARGUMENT)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(driver.made) == 1
    assert driver.rooms == [60_000]
    assert len(driver.launches) == 8


def test_facts() -> None:
    """What a device is comes from CuPy's properties of it."""
    from anynorm_cupy import _launch

    properties = {"major": 12, "minor": 1, "multiProcessorCount": 48, "sharedMemPerBlockOptin": 101376, "name": b"a"}
    runtime = SimpleNamespace(getDeviceProperties=lambda device: properties if device == 5 else {}, is_hip=False)
    with mock.patch.object(_launch, "runtime", runtime):
        assert _launch.facts.__wrapped__(5) == Device(121, 48, 101376)


def test_what_the_adapter_asks_of_cupy_is_there() -> None:
    """The functions that stand-ins replace here are in the CuPy that is installed, with as many parameters."""
    import cupy

    driver, runtime = cupy.cuda.driver, cupy.cuda.runtime
    assert driver.launchKernel.__doc__.count(",") == 10
    for its in (driver.ctxGetCurrent, runtime.free, runtime.getDeviceProperties, runtime.getDevice, cupy.cuda.alloc):
        assert callable(its)
    assert runtime.is_hip in (True, False)
    raw = cupy.RawKernel("", "none", ("-std=c++17",))
    assert type(raw).shared_size_bytes
    assert type(raw).max_dynamic_shared_size_bytes
