"""How kernels are launched, on a driver that only writes down what it is asked.

What kernels compute is not tested here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from threading import Barrier
from types import SimpleNamespace

import pytest
from cuda_driver import ARGUMENT, Driver

import anynorm_cuda
from anynorm_cuda import _compile, _driver, _geometry
from anynorm_cuda._driver import Launcher
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._teams import Device

STREAM = 0x5EED
KERNEL = Kernel("rows", ("call",), (("THREADS", 128), ("CTAS", 1)))
LAUNCH = Launch(KERNEL, (7, 3), 128, 0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Return the driver, which stands for the real one until the test ends."""
    fake = Driver()
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=fake))
    monkeypatch.setattr(_compile, "cubin", lambda kernel, arch: f"{kernel.name} for {arch}".encode())
    cached = (_driver._cuda, _driver.facts, _driver.launcher)
    for function in cached:
        function.cache_clear()
    yield fake
    for function in cached:
        function.cache_clear()


def test_facts(driver: Driver) -> None:
    """What a device is, is asked once, after the driver is initialized."""
    assert _driver.facts(2) == Device(arch=90, processors=132, shared=232448)
    assert _driver.facts(2) is _driver.facts(2)
    assert [call.name for call in driver.calls] == ["cuInit", "cuDeviceGet", *["cuDeviceGetAttribute"] * 4]
    assert driver.arguments("cuDeviceGet") == [(2,)]


def test_launch(driver: Driver) -> None:
    """A launch passes the grid, the threads, the shared memory, the stream, and the argument by value."""
    Launcher(0)(LAUNCH._replace(shared=1000), STREAM, ARGUMENT)

    ((function, *shape, _, extra),) = driver.arguments("cuLaunchKernel")
    assert function == "rows in module of rows for 90"
    assert shape == [7, 3, 1, 128, 1, 1, 1000, STREAM]
    assert extra == 0
    assert driver.given == [ARGUMENT]


def test_launch_on_a_stream(driver: Driver) -> None:
    """What is bound to a stream takes a launch and an argument, as the engine asks for."""
    Launcher(0).on(STREAM)(LAUNCH, ARGUMENT)

    ((*_, stream, _, _),) = driver.arguments("cuLaunchKernel")
    assert stream == STREAM
    assert driver.given == [ARGUMENT]


def test_default_stream(driver: Driver) -> None:
    """The stream 0 is passed by the name that no setting turns into the default stream of the thread."""
    Launcher(0)(LAUNCH, 0, ARGUMENT)

    ((*_, stream, _, _),) = driver.arguments("cuLaunchKernel")
    assert stream == 1


def test_launcher_for_each_device(driver: Driver) -> None:
    """A device has one launcher, whose context and module are its own."""
    for device in (0, 1, 0):
        _driver.launcher(device)(LAUNCH, STREAM, ARGUMENT)

    assert driver.arguments("cuDevicePrimaryCtxRetain") == [(0,), (1,)]
    assert [call.context for call in driver.calls if call.name == "cuModuleLoadData"] == [1000, 1001]
    assert [call.context for call in driver.calls if call.name == "cuLaunchKernel"] == [1000, 1001, 1000]


def test_loaded_once(driver: Driver) -> None:
    """A kernel is loaded when it is first run; an equal one that was made again is the same kernel."""
    run = Launcher(0)
    for _ in range(3):
        run(LAUNCH._replace(kernel=Kernel(*KERNEL)), STREAM, ARGUMENT)
        run(LAUNCH, STREAM, ARGUMENT)

    assert driver.arguments("cuModuleLoadData") == [(b"rows for 90",)]
    assert len(driver.arguments("cuLaunchKernel")) == 6


def test_loaded_once_by_threads(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that run a kernel for the first time at the same time load it once."""
    run, together = Launcher(0), Barrier(4)

    def compiled(*_: object) -> bytes:
        together.wait(30)
        return b"code"

    monkeypatch.setattr(_compile, "cubin", compiled)
    with ThreadPoolExecutor(4) as pool:
        loaded = set(pool.map(run.load, [KERNEL] * 4))

    assert len(loaded) == 1
    assert driver.arguments("cuModuleLoadData") == [(b"code",)]


def test_kernels_told_apart(driver: Driver) -> None:
    """Kernels that differ in a macro are loaded each, and each launch runs its own."""
    run = Launcher(0)
    for name in ("one", "two", "one"):
        run(LAUNCH._replace(kernel=KERNEL._replace(name=name)), STREAM, ARGUMENT)
    other = KERNEL._replace(macros=(("THREADS", 64), ("CTAS", 1)), name="one")
    run(LAUNCH._replace(kernel=other), STREAM, ARGUMENT)

    assert driver.arguments("cuModuleLoadData") == [(b"one for 90",), (b"two for 90",), (b"one for 90",)]
    functions = [function.partition(" ")[0] for function, *_ in driver.arguments("cuLaunchKernel")]
    assert functions == ["one", "two", "one", "one"]


def test_equal_kernels_do_not_pile_up(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many equal kernels are made, a bounded number is kept, and the right function runs."""
    monkeypatch.setattr(_driver, "MANY", 4)
    run = Launcher(0)
    for index in range(20):
        run(LAUNCH._replace(kernel=KERNEL._replace(name=f"kernel{index % 3}")), STREAM, ARGUMENT)

    assert len(run._met) <= 4
    functions = [function.partition(" ")[0] for function, *_ in driver.arguments("cuLaunchKernel")]
    assert functions == [f"kernel{index % 3}" for index in range(20)]


@pytest.mark.parametrize(
    ("declared", "shared", "asked"),
    [
        pytest.param(0, (0, 48 << 10), (), id="48-KiB"),
        pytest.param(0, (49153, 49153), (49153,), id="more"),
        pytest.param(128, (49152 - 128,), (), id="declared-fits"),
        pytest.param(128, (49152 - 127,), (49152 - 127,), id="declared-does-not"),
        pytest.param(0, (60000, 50000, 60000), (60000,), id="less-after-more"),
        pytest.param(0, (50000, 60000), (50000, 60000), id="more-after-less"),
    ],
)
def test_shared_memory(driver: Driver, declared: int, shared: tuple[int, ...], asked: tuple[int, ...]) -> None:
    """A function is told of its dynamic memory where that and what it declares pass 48 KiB, and only when it grows."""
    driver.declared = declared
    run = Launcher(0)
    for size in shared:
        run(LAUNCH._replace(shared=size), STREAM, ARGUMENT)

    function, attribute = "rows in module of rows for 90", "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
    assert driver.arguments("cuFuncSetAttribute") == [(function, attribute, size) for size in asked]
    assert [arguments[7] for arguments in driver.arguments("cuLaunchKernel")] == list(shared)


def test_shared_memory_never_shrinks(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread has raised, between the moment a thread looks and its turn, is not lowered."""
    run = Launcher(0)
    loaded = run.load(KERNEL)

    @contextmanager
    def turn() -> Iterator[None]:
        loaded.room = 60000  # as the other thread leaves it
        yield

    monkeypatch.setattr(run, "_lock", turn())
    run(LAUNCH._replace(shared=50000), STREAM, ARGUMENT)

    assert not driver.arguments("cuFuncSetAttribute")
    assert driver.given == [ARGUMENT]


@pytest.mark.parametrize("current", [pytest.param(0, id="none"), pytest.param(77, id="other")])
def test_context_pushed(driver: Driver, current: int) -> None:
    """Everything happens in the device's primary context, and afterwards the thread has its own again."""
    driver.contexts[:] = [current]
    Launcher(0)(LAUNCH._replace(shared=60000), STREAM, ARGUMENT)

    within = ("cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel")
    assert [call.context for call in driver.calls if call.name in within] == [1000] * 4
    assert driver.contexts == [current]


def test_context_left_alone(driver: Driver) -> None:
    """Where the primary context is current nothing is pushed, and a launch asks but for it."""
    driver.contexts[:] = [1000]
    run = Launcher(0)
    run(LAUNCH._replace(shared=60000), STREAM, ARGUMENT)
    assert not driver.arguments("cuCtxPushCurrent")

    driver.calls.clear()
    run(LAUNCH, STREAM, ARGUMENT)
    assert [call.name for call in driver.calls] == ["cuCtxGetCurrent", "cuLaunchKernel"]


@pytest.mark.parametrize(
    "call",
    [
        "cuInit",
        "cuDeviceGet",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuFuncGetAttribute",
        "cuFuncSetAttribute",
        "cuLaunchKernel",
    ],
)
def test_failure(driver: Driver, call: str) -> None:
    """A call that fails is an error that names it and says in CUDA's words why; the thread's context is restored."""
    driver.fails = {call: 1}
    driver.contexts[:] = [77]

    def run() -> None:
        Launcher(0)(LAUNCH._replace(shared=60000), STREAM, ARGUMENT)

    with pytest.raises(RuntimeError, match=rf"^{call}\b.*: CUDA_ERROR_INVALID_VALUE: invalid argument\.$"):
        run()
    assert driver.contexts == [77]
    assert driver.mode == "GLOBAL"
    driver.fails = {}
    run()  # nothing of the failure is kept
    assert driver.given[-1] == ARGUMENT


def test_launch_failure_names_kernel(driver: Driver) -> None:
    """A launch that fails says which kernel on which device."""
    driver.fails = {"cuLaunchKernel": 1}
    with pytest.raises(RuntimeError, match="cuLaunchKernel of rows on device 3: CUDA_ERROR"):
        Launcher(3)(LAUNCH, STREAM, ARGUMENT)


def test_capture(driver: Driver) -> None:
    """Once a kernel is loaded, a launch is all that is asked of a stream under capture."""
    driver.contexts[:] = [1000]
    run = Launcher(0)
    run.load(KERNEL)
    driver.fails = dict.fromkeys(("cuModuleLoadData", "cuModuleGetFunction", "cuFuncGetAttribute"), 900)
    run(LAUNCH, STREAM, ARGUMENT)

    assert driver.given == [ARGUMENT]


def test_loading_while_capturing(driver: Driver) -> None:
    """Loading is tried in the mode that allows most during a capture; where it fails the error says what to do."""
    Launcher(0).load(KERNEL)
    assert [call.mode for call in driver.calls if call.name == "cuModuleLoadData"] == ["CU_STREAM_CAPTURE_MODE_RELAXED"]
    assert driver.mode == "GLOBAL"

    driver.fails = {"cuModuleLoadData": 900}
    with pytest.raises(RuntimeError, match=r"^cuModuleLoadData: CUDA_ERROR_STREAM_CAPTURE.* make the same call once"):
        Launcher(0).load(KERNEL)
    assert driver.mode == "GLOBAL"


def test_names(driver: Driver) -> None:
    """Every function and constant that is asked for is in cuda.bindings."""
    Launcher(0)(LAUNCH._replace(shared=60000), STREAM, ARGUMENT)
    driver.fails = {"cuLaunchKernel": 1}
    with pytest.raises(RuntimeError):
        Launcher(0)(LAUNCH, STREAM, ARGUMENT)
    sys.modules.pop("cuda.bindings")
    real = pytest.importorskip("cuda.bindings.driver")

    assert len(driver.names) >= 20
    for name in driver.names:
        found = real
        for part in name.split("."):
            found = getattr(found, part)


def test_argument_size() -> None:
    """What stands for a kernel's argument here is as long as a real one at least."""
    assert len(ARGUMENT) >= _geometry.SIZE


def test_imports_no_cuda() -> None:
    """Importing the package and its launcher imports no CUDA."""
    code = "import sys, anynorm_cuda._driver; print([name for name in sys.modules if name.partition('.')[0] == 'cuda'])"
    path = f"import sys; sys.path[:0] = {sys.path!r}; "
    assert subprocess.check_output([sys.executable, "-c", path + code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("barred", "reason"),
    [
        pytest.param("cuda", "cuda-bindings is not installed", id="cuda"),
        pytest.param("cuda.bindings", "cuda-bindings is not installed", id="bindings"),
        pytest.param("cuda.bindings.nvrtc", "NVRTC, the compiler of CUDA, is not installed", id="nvrtc"),
    ],
)
def test_missing(monkeypatch: pytest.MonkeyPatch, barred: str, reason: str) -> None:
    """What keeps kernels from being compiled is said in half a sentence."""
    if barred == "cuda.bindings.nvrtc":
        pytest.importorskip(barred)
        monkeypatch.setattr(import_module("cuda.bindings"), "nvrtc", None)
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{barred}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, barred, None)
    monkeypatch.setattr(_compile, "version", _compile.version.__wrapped__)

    assert anynorm_cuda.missing.__wrapped__() == reason
