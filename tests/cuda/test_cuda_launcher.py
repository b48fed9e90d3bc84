"""How kernels are loaded once, launched, and refused, on a device that only notes what it is asked.

How that is said to CUDA's driver, and to CuPy, is tested elsewhere; what kernels compute too.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from cuda_device import HostDevice

from anynorm_cuda import _argument, _launcher
from anynorm_cuda._launcher import Launcher, RefusedError
from anynorm_cuda._program import CompileError, Kernel, Launch
from anynorm_cuda._thread_groups import Device

STREAM = 0x5EED
ARGUMENT = bytes(range(256)) * 2
KERNEL = Kernel("rows", ("call",), (("THREADS", 128), ("CTAS", 1)))
LAUNCH = Launch(KERNEL, (7, 3), 128, 0)
CLUSTER = LAUNCH._replace(kernel=KERNEL._replace(macros=(("THREADS", 128), ("CTAS", 4))))


def of(name: str, **own: Any) -> Launch:
    """Return a launch of another kernel."""
    return LAUNCH._replace(kernel=KERNEL._replace(name=name), **own)


@pytest.fixture
def device() -> HostDevice:
    """Return a device whose kernels do nothing."""
    return HostDevice(lambda *_: None, 3)


@pytest.fixture
def launcher(device: HostDevice) -> Launcher:
    """Return what runs kernels on it."""
    return Launcher(device)


def test_launch(device: HostDevice, launcher: Launcher) -> None:
    """A launch passes the grid, the threads, the shared memory, the stream, and the argument by value."""
    given: list[bytes] = []
    device.run = lambda _, argument: given.append(argument)
    launcher.on(STREAM)(LAUNCH._replace(shared=1000), ARGUMENT)

    assert device.launches == [LAUNCH._replace(shared=1000)]
    assert device.streams == {STREAM}
    assert given == [ARGUMENT[: _argument.SIZE]]


def test_argument_size() -> None:
    """What stands for a kernel's argument here is as long as a real one at least."""
    assert len(ARGUMENT) >= _argument.SIZE


def test_default_stream(device: HostDevice, launcher: Launcher) -> None:
    """The stream 0 is passed by the name that no setting turns into the default stream of the thread."""
    launcher.on(0)(LAUNCH, ARGUMENT)
    assert device.streams == {1}


def test_loaded_once(device: HostDevice, launcher: Launcher) -> None:
    """A kernel is loaded when it is first needed; an equal one that was made again is the same kernel."""
    for _ in range(3):
        launcher.on(STREAM)(LAUNCH._replace(kernel=Kernel(*KERNEL)), ARGUMENT)
        assert launcher.why_not([LAUNCH]) is None
        launcher.on(STREAM)(LAUNCH, ARGUMENT)

    assert device.kernels == [KERNEL]
    assert len(device.launches) == 6


def test_loaded_once_by_threads(device: HostDevice, launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that need a kernel at the same time, all for the first time, load it once."""
    load, together = device.load, Barrier(4)

    def slowly(kernel: Kernel) -> Any:
        time.sleep(0.02)
        return load(kernel)

    def ask(_: int) -> Any:
        together.wait(30)
        return launcher.load(LAUNCH._replace(shared=60_000))

    monkeypatch.setattr(device, "load", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == {1}
    assert device.kernels == [KERNEL]
    assert device.allowed == [60_000]


def test_kernels_told_apart(device: HostDevice, launcher: Launcher) -> None:
    """Kernels that differ in a macro are loaded each, and each launch runs its own."""
    wider = LAUNCH._replace(kernel=KERNEL._replace(macros=(("THREADS", 64), ("CTAS", 1))))
    launches = [LAUNCH, of("other"), LAUNCH, wider, LAUNCH]
    for launch in launches:
        launcher.on(STREAM)(launch, ARGUMENT)

    assert device.launches == launches
    assert len(device.kernels) == 3


def test_equal_launches_do_not_pile_up(device: HostDevice, launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many equal launches are made, a bounded number is kept, and the right kernel runs."""
    monkeypatch.setattr(_launcher, "MANY", 4)
    for index in range(20):
        launcher.on(STREAM)(of(f"kernel{index % 3}"), ARGUMENT)
        assert len(launcher._functions) <= 4

    assert [launch.kernel.name for launch in device.launches] == [f"kernel{index % 3}" for index in range(20)]


@pytest.mark.parametrize(
    ("declared", "shared", "asked"),
    [
        pytest.param(0, (0, 48 << 10), [], id="48-KiB"),
        pytest.param(0, (49153, 49153), [49153], id="more"),
        pytest.param(128, (49152 - 128,), [], id="declared-fits"),
        pytest.param(128, (49152 - 127,), [49152 - 127], id="declared-does-not"),
        pytest.param(0, (60000, 50000, 60000), [60000], id="less-after-more"),
        pytest.param(0, (50000, 60000), [50000, 60000], id="more-after-less"),
    ],
)
def test_shared_memory(
    device: HostDevice, launcher: Launcher, declared: int, shared: tuple[int, ...], asked: list[int]
) -> None:
    """A function is told of its dynamic memory where that and what it declares pass 48 KiB, and only when it grows."""
    device.declared = declared
    for size in shared:
        launcher.on(STREAM)(LAUNCH._replace(shared=size), ARGUMENT)

    assert device.allowed == asked
    assert [launch.shared for launch in device.launches] == list(shared)


def test_clusters(device: HostDevice, launcher: Launcher) -> None:
    """Of a kernel whose blocks form clusters it is asked once, before its first launch, if the device holds any."""
    launches = [LAUNCH, CLUSTER, CLUSTER, LAUNCH, CLUSTER._replace(shared=0)]
    assert launcher.why_not(launches) is None
    for launch in launches:
        launcher.on(STREAM)(launch, ARGUMENT)
    assert device.asked == [CLUSTER]


def test_clusters_that_nobody_can_ask_for(device: HostDevice, launcher: Launcher) -> None:
    """Where nobody can tell, the launch itself is left to decide."""
    device.held = None
    assert launcher.why_not([CLUSTER]) is None


PTX = RuntimeError("cuModuleLoadData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION: unsupported toolchain.")
IMAGE = RuntimeError("CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid")
NO_FUNCTION = RuntimeError("CUDA_ERROR_NOT_FOUND: named symbol not found")
INVALID = RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")
CLUSTER_SIZE = RuntimeError("CUDA_ERROR_INVALID_CLUSTER_SIZE: cluster misconfiguration")
RESOURCES = RuntimeError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch")
LOG = (
    "NVRTC 11.0 does not compile rows (6).\n\nrows.cu(3): warning: mind\nrows.cu(7): error: no f8\nrows.cu(9): error: x"
)

REFUSALS: dict[str, tuple[dict[str, Any], Launch, str]] = {
    "source": (
        {"fails": {"load": CompileError(LOG)}},
        LAUNCH,
        "rows does not compile: rows.cu(7): error: no f8",
    ),
    "compiler": ({"fails": {"load": CompileError("Too old.")}}, LAUNCH, "rows does not compile: Too old"),
    "silence": ({"fails": {"load": CompileError("")}}, LAUNCH, "rows does not compile: without a message"),
    "ptx": ({"fails": {"load": PTX}}, LAUNCH, f"rows does not load: {PTX}"[:-1]),
    "image": ({"fails": {"load": IMAGE}}, LAUNCH, f"rows does not load: {IMAGE}"),
    "function": ({"fails": {"load": NO_FUNCTION}}, LAUNCH, f"rows does not load: {NO_FUNCTION}"),
    "shared": (
        {"fails": {"allow_shared": INVALID}},
        LAUNCH._replace(shared=60_000),
        f"rows does not fit on the device: {INVALID}",
    ),
    "registers": ({"threads": 96}, LAUNCH, "rows does not fit on the device: a block has registers for 96"),
    "clusters": ({"held": 0}, CLUSTER, "rows does not fit on the device: it holds no 4 blocks at once"),
    "cluster-size": (
        {"fails": {"clusters": CLUSTER_SIZE}},
        CLUSTER,
        f"rows does not fit on the device: {CLUSTER_SIZE}",
    ),
}
MENDABLE = ("source", "compiler", "silence", "ptx", "image", "function")

each_refusal = pytest.mark.parametrize("which", REFUSALS)


@pytest.fixture
def broken(which: str, device: HostDevice) -> tuple[Launch, str]:
    """Let the device refuse one kernel; return its launch, and what is to be said of it."""
    changed, launch, words = REFUSALS[which]
    for name, value in changed.items():
        setattr(device, name, value)
    return launch, words


@pytest.fixture
def unheard() -> Iterator[None]:
    """Pass over warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@each_refusal
@pytest.mark.usefixtures("unheard")
def test_refusals(device: HostDevice, launcher: Launcher, broken: tuple[Launch, str]) -> None:
    """What cannot run on a device is said in half a sentence with the driver's words, and ever after without asking."""
    launch, words = broken
    before = launcher.why_not([launch, of("third")])
    assert before is not None
    assert f"the kernel {words}" in before
    assert before[-1] != "."

    device.fails, device.threads, device.held = {}, 1024, 1
    asked = len(device.kernels), len(device.allowed), len(device.asked)
    assert launcher.why_not([launch._replace(grid=(1, 1))]) == before
    with pytest.raises(RefusedError, match="the kernel rows does not"):
        launcher.on(STREAM)(launch, ARGUMENT)
    assert (len(device.kernels), len(device.allowed), len(device.asked)) == asked
    assert not device.launches
    assert launcher.why_not([of("third")]) is None


@each_refusal
def test_warnings(which: str, device: HostDevice, launcher: Launcher, broken: tuple[Launch, str]) -> None:
    """What who installed a compiler and a driver could mend is warned of, once for each way to fail and each device."""
    launch, words = broken
    what, _, why = words.partition(": ")
    others = [launch, launch._replace(kernel=launch.kernel._replace(name="other"))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            for runner in (launcher, Launcher(device)):
                for launch in others:
                    runner.why_not([launch])
    said = [str(warning.message) for warning in caught]
    if which in MENDABLE:
        assert (
            said == [f"anynorm: on CUDA device 3 the kernel {what}, so the formula serves, which is slower: {why}"] * 3
        )
        assert {warning.category for warning in caught} == {RuntimeWarning}
    else:
        assert said == []


@pytest.mark.parametrize("error", [INVALID, CLUSTER_SIZE, RESOURCES], ids=["value", "cluster", "resources"])
def test_refused_launch(error: RuntimeError, device: HostDevice, launcher: Launcher) -> None:
    """A launch that the device refuses is an error, and the kernel is not loaded or launched again."""
    device.fails = {"launch": error}
    assert launcher.why_not([LAUNCH]) is None
    with pytest.raises(RefusedError, match=f"^the kernel rows cannot be launched: {error}$"):
        launcher.on(STREAM)(LAUNCH, ARGUMENT)
    device.fails = {}
    assert launcher.why_not([LAUNCH._replace()]) == f"the kernel rows cannot be launched: {error}"
    assert launcher.why_not([of("other")]) is None


@pytest.mark.parametrize("where", ["load", "allow_shared", "clusters", "launch"])
@pytest.mark.parametrize("name", ["OUT_OF_MEMORY", "ILLEGAL_ADDRESS", "LAUNCH_FAILED", "UNKNOWN"])
def test_errors(name: str, where: str, device: HostDevice, launcher: Launcher) -> None:
    """What does not speak of the kernel stays the driver's error, with the kernel's name, and nothing is kept of it."""
    launch = CLUSTER._replace(shared=60_000)
    device.fails = {where: RuntimeError(f"CUDA_ERROR_{name}: so it is")}
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"CUDA_ERROR_{name}") as caught:
            launcher.on(STREAM)(launch, ARGUMENT)
        assert caught.value is device.fails[where]
        assert caught.value.__notes__[0].startswith("The kernel rows ")
        assert caught.value.__notes__[0].endswith(" on device 3.")
    device.fails = {}
    assert launcher.why_not([launch]) is None
    launcher.on(STREAM)(launch, ARGUMENT)
    assert device.launches == [launch]


def test_other_errors(device: HostDevice, launcher: Launcher) -> None:
    """Whatever else is wrong is no refusal."""
    for error in (RuntimeError("libnvrtc.so not found"), OSError("rows.cu is not there")):
        device.fails = {"load": error}
        with pytest.raises(type(error), match="not"):
            launcher.why_not([LAUNCH])
    device.fails = {}
    assert launcher.why_not([LAUNCH]) is None


def test_loading_amid_a_capture(device: HostDevice, launcher: Launcher) -> None:
    """A kernel that cannot be loaded while a graph is captured is an error that says so, and is loaded later."""
    for name in ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "cudaErrorStreamCaptureUnsupported"):
        device.fails = {"load": RuntimeError(f"{name}: operation not permitted when stream is capturing")}
        with pytest.raises(RuntimeError, match=rf"^{name}: .* make the same call once before"):
            launcher.why_not([LAUNCH])
    device.fails = {}
    assert launcher.why_not([LAUNCH]) is None
    device.fails = {"load": RuntimeError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")}
    launcher.on(STREAM)(LAUNCH, ARGUMENT)
    assert device.launches == [LAUNCH]


@pytest.mark.parametrize(("arch", "words"), [(75, "7.5"), (70, "7.0"), (80, None), (121, None)])
def test_too_old(arch: int, words: str | None) -> None:
    """Below compute capability 8.0 no kernel runs."""
    expected = words and f"the device has compute capability {words}, and the kernels need 8.0"
    assert _launcher.too_old(Device(arch, 40, 65536)) == expected
