"""What CUDA's driver is asked for a launcher, on one that only writes it down.

When it is asked is tested with the launcher, and what kernels compute elsewhere.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest
from cuda_driver import ARGUMENT, Driver, in_place

import anynorm_cuda
from anynorm_cuda import _compile, _driver
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._thread_groups import Device

STREAM = 0x5EED
KERNEL = Kernel("rows", ("call",), (("THREADS", 128), ("CTAS", 1)))
LAUNCH = Launch(KERNEL, (7, 3), 128, 0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Return the driver, which stands for the real one until the test ends."""
    monkeypatch.setattr(_compile, "cubin", lambda kernel, arch: f"{kernel.name} for {arch}".encode())
    with in_place(monkeypatch) as fake:
        yield fake


def test_facts(driver: Driver) -> None:
    """What a device is, is asked once, after the driver is initialized."""
    assert _driver.facts(2) == Device(arch=90, processors=132, shared=232448)
    assert _driver.facts(2) is _driver.facts(2)
    assert [call.name for call in driver.calls] == ["cuInit", "cuDeviceGet", *["cuDeviceGetAttribute"] * 4]
    assert driver.arguments("cuDeviceGet") == [(2,)]


def run(launch: Launch = LAUNCH, device: int = 0) -> None:
    """Run a launch on a device."""
    _driver.launcher(device).on(STREAM)(launch, ARGUMENT)


def test_launch(driver: Driver) -> None:
    """A launch passes the grid, the threads, the shared memory, the stream, and the argument by value."""
    run(LAUNCH._replace(shared=1000))

    ((function, *shape, _, extra),) = driver.arguments("cuLaunchKernel")
    assert function == "rows in module of rows for 90"
    assert shape == [7, 3, 1, 128, 1, 1, 1000, STREAM]
    assert extra == 0
    assert driver.given == [ARGUMENT]


def test_launcher_for_each_device(driver: Driver) -> None:
    """A device has one launcher, whose context and module are its own."""
    for device in (0, 1, 0):
        run(device=device)

    assert driver.arguments("cuDevicePrimaryCtxRetain") == [(0,), (1,)]
    assert [call.context for call in driver.calls if call.name == "cuModuleLoadData"] == [1000, 1001]
    assert [call.context for call in driver.calls if call.name == "cuLaunchKernel"] == [1000, 1001, 1000]


def test_what_is_said_of_a_function(driver: Driver) -> None:
    """Of a function that was loaded it is asked what the source declares, and how many threads have registers."""
    driver.functions = {"CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES": 128, "CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK": 96}
    loaded = _driver._Device(0).load(KERNEL)
    assert (loaded.function, loaded.declared, loaded.threads) == ("rows in module of rows for 90", 128, 96)


def test_shared_memory(driver: Driver) -> None:
    """A function is told of its dynamic memory where that and what it declares pass 48 KiB."""
    driver.functions["CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES"] = 128
    for size in (49152 - 128, 60_000):
        run(LAUNCH._replace(shared=size))

    function, attribute = "rows in module of rows for 90", "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
    assert driver.arguments("cuFuncSetAttribute") == [(function, attribute, 60_000)]


def test_clusters(driver: Driver) -> None:
    """How many clusters a device holds it is asked with the function, the grid, the threads and the shared memory."""
    kernel = KERNEL._replace(macros=(("THREADS", 128), ("CTAS", 4)))
    run(Launch(kernel, (8, 3), 128, 60_000))
    run()

    ((function, config),) = driver.arguments("cuOccupancyMaxActiveClusters")
    assert function == "rows in module of rows for 90"
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (8, 3, 1)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (128, 1, 1)
    assert config.sharedMemBytes == 60_000
    assert [call.name for call in driver.calls].index("cuFuncSetAttribute") < [
        call.name for call in driver.calls
    ].index("cuOccupancyMaxActiveClusters")


def test_refusal(driver: Driver) -> None:
    """What the driver refuses of a kernel is said in its words; no cluster at once is enough to refuse."""
    driver.fails = {"cuModuleLoadData": 222}
    with pytest.warns(RuntimeWarning, match="rows does not load, so the formula serves"):
        assert "cuModuleLoadData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION" in str(_driver.launcher(0).why_not([LAUNCH]))
    driver.fails, driver.clusters = {}, 0
    kernel = KERNEL._replace(macros=(("THREADS", 128), ("CTAS", 4)))
    assert "holds no 4 blocks at once" in str(_driver.launcher(0).why_not([LAUNCH._replace(kernel=kernel)]))


@pytest.mark.parametrize("current", [pytest.param(0, id="none"), pytest.param(77, id="other")])
def test_context_pushed(driver: Driver, current: int) -> None:
    """Everything happens in the device's primary context, and afterwards the thread has its own again."""
    driver.contexts[:] = [current]
    run(LAUNCH._replace(kernel=KERNEL._replace(macros=(("CTAS", 2),)), shared=60000))

    within = {"cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuOccupancyMaxActiveClusters"}
    assert [call.context for call in driver.calls if call.name in within | {"cuLaunchKernel"}] == [1000] * 5
    assert driver.contexts == [current]


def test_context_left_alone(driver: Driver) -> None:
    """Where the primary context is current nothing is pushed, and a launch asks but for it."""
    driver.contexts[:] = [1000]
    run(LAUNCH._replace(shared=60000))
    assert not driver.arguments("cuCtxPushCurrent")

    run()
    driver.calls.clear()
    run()
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
        "cuOccupancyMaxActiveClusters",
        "cuLaunchKernel",
    ],
)
def test_failure(driver: Driver, call: str) -> None:
    """A call that fails is an error that names it and says in CUDA's words why; the thread's context is restored."""
    driver.fails = {call: 2}
    driver.contexts[:] = [77]
    launch = LAUNCH._replace(kernel=KERNEL._replace(macros=(("THREADS", 128), ("CTAS", 2))), shared=60000)
    with pytest.raises(RuntimeError, match=rf"^{call}\b.*: CUDA_ERROR_OUT_OF_MEMORY: out of memory\."):
        run(launch)
    assert driver.contexts == [77]
    assert driver.mode == "GLOBAL"
    driver.fails = {}
    run(launch)  # nothing of the failure is kept
    assert driver.given[-1] == ARGUMENT


def test_launch_failure_names_kernel(driver: Driver) -> None:
    """A launch that fails says which kernel on which device."""
    driver.fails = {"cuLaunchKernel": 2}
    with pytest.raises(RuntimeError, match="cuLaunchKernel: CUDA_ERROR") as caught:
        run(device=3)
    assert caught.value.__notes__ == ["The kernel rows cannot be launched on device 3."]


def test_capture(driver: Driver) -> None:
    """Once a kernel is loaded, a launch is all that is asked of a stream under capture."""
    driver.contexts[:] = [1000]
    assert _driver.launcher(0).why_not([LAUNCH]) is None
    driver.fails = dict.fromkeys(("cuModuleLoadData", "cuModuleGetFunction", "cuFuncGetAttribute"), 900)
    run()

    assert driver.given == [ARGUMENT]


def test_loading_while_capturing(driver: Driver) -> None:
    """Loading is tried in the mode that allows most during a capture; where it fails the error says what to do."""
    _driver.launcher(0).why_not([LAUNCH])
    assert [call.mode for call in driver.calls if call.name == "cuModuleLoadData"] == ["CU_STREAM_CAPTURE_MODE_RELAXED"]
    assert driver.mode == "GLOBAL"

    driver.fails = {"cuModuleLoadData": 900}
    with pytest.raises(RuntimeError, match=r"^cuModuleLoadData: CUDA_ERROR_STREAM_CAPTURE.* make the same call once"):
        _driver.launcher(1).why_not([LAUNCH])
    assert driver.mode == "GLOBAL"


def test_names(driver: Driver) -> None:
    """Every function and constant that is asked for is in cuda.bindings."""
    run(LAUNCH._replace(kernel=KERNEL._replace(macros=(("CTAS", 2),)), shared=60000))
    driver.fails = {"cuLaunchKernel": 2}
    with pytest.raises(RuntimeError):
        run()
    sys.modules.pop("cuda.bindings")
    real = pytest.importorskip("cuda.bindings.driver")

    assert len(driver.names) >= 30
    for name in driver.names:
        found = real
        for part in name.split("."):
            found = getattr(found, part)


def test_imports_no_cuda() -> None:
    """Importing the package and its launcher imports no CUDA."""
    code = "import sys, anynorm_cuda._driver; print([name for name in sys.modules if name.partition('.')[0] == 'cuda'])"
    path = f"import sys; sys.path[:0] = {sys.path!r}; "
    assert subprocess.check_output([sys.executable, "-c", path + code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("barred", "reason"),
    [
        pytest.param("cuda", "cuda-bindings is not installed (pip install cuda-bindings)", id="cuda"),
        pytest.param("cuda.bindings", "cuda-bindings is not installed (pip install cuda-bindings)", id="bindings"),
        pytest.param(
            "cuda.bindings.nvrtc",
            "NVRTC, the compiler of CUDA, is not installed (pip install nvidia-cuda-nvrtc)",
            id="nvrtc",
        ),
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
