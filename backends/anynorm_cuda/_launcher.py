"""The kernels of one device: loaded once, launched from any thread; and why a kernel cannot run there.

No norm and no array library is known here. A `Driver` compiles, loads and launches kernels.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterable
from ctypes import addressof, c_char_p
from functools import partial
from typing import Any, NamedTuple, Protocol

from anynorm.backend import users_level
from anynorm_cuda._program import CompileError, Kernel, Launch
from anynorm_cuda._thread_groups import Device

# The kernels use async copies from global to shared memory, and conversions to bfloat16.
LEAST_ARCH = 80

# Bytes of shared memory, declared and dynamic, that a function may use without permission.
SHARED = 48 << 10

# The handle of the default stream. The meaning of 0 depends on CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM.
LEGACY = 1

# Launches whose function is found by their id. There are more only if equal launches are made repeatedly.
MANY = 4096

# The locks of all launchers. They bound how many kernels a process compiles at once; a lock per kernel would never be
# freed. Two devices of one model that need the same kernel take turns, and the second finds the code on disk.
_LOCKS = tuple([threading.Lock() for _ in range(16)])

# The driver's errors that concern a kernel. All others concern the state of the device or the process (full memory, a
# graph being captured, an earlier illegal access) and are raised.
OF_A_KERNEL = (
    "INVALID_VALUE",
    "INVALID_IMAGE",
    "NO_BINARY_FOR_GPU",
    "INVALID_PTX",
    "UNSUPPORTED_PTX_VERSION",
    "UNSUPPORTED_DEVSIDE_SYNC",
    "JIT_COMPILER_NOT_FOUND",
    "JIT_COMPILATION_DISABLED",
    "INVALID_SOURCE",
    "SHARED_OBJECT_SYMBOL_NOT_FOUND",
    "NOT_FOUND",
    "NOT_SUPPORTED",
    "LAUNCH_OUT_OF_RESOURCES",
    "INVALID_CLUSTER_SIZE",
)


def too_old(device: Device) -> str | None:
    """Return why no kernel runs on a device, or None."""
    if device.arch >= LEAST_ARCH:
        return None
    return f"the device has compute capability {device.arch / 10}, and the kernels need {LEAST_ARCH / 10}"


class Loaded(NamedTuple):
    """A kernel on a device."""

    function: Any  # the first argument of `Driver.launch`
    declared: int  # bytes of shared memory in the source
    threads: int  # the most a block may have, by the registers of a thread
    owner: Any = None  # an object that must live while the function is used
    fits: int = -1  # the most bytes of dynamic shared memory with which a block, or a cluster, is known to fit


class Driver(Protocol):
    """One device, as a launcher needs it. A failure is a RuntimeError with the driver's name for it, CUDA_ERROR_..."""

    device: int

    @property
    def launch(self) -> Callable[..., None]:
        """The function that launches a kernel, with the arguments of cuLaunchKernel."""

    def load(self, kernel: Kernel) -> Loaded:
        """Compile and load a kernel, or raise a CompileError with the compiler's message."""

    def allow_shared(self, loaded: Loaded, shared: int) -> None:
        """Allow launches of a kernel with so many bytes of dynamic shared memory."""

    def clusters(self, loaded: Loaded, launch: Launch) -> int | None:
        """Return how many of a launch's clusters run on the device at once, or None if that cannot be asked."""


class RefusedError(RuntimeError):
    """A kernel cannot run on a device; the message is half a sentence."""

    def __init__(self, what: str, words: str, mendable: bool) -> None:
        super().__init__(f"{what}: {words}")
        self.what = what
        self.words = words  # the message of the compiler or the driver
        self.mendable = mendable  # by another version of the compiler or the driver


class Launcher:
    """Runs kernels on one device, from any thread. A kernel is compiled and loaded before it is first run."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._launch: Callable[..., None] = driver.launch
        # An entry per kernel that a program ever runs: as many as it has dtypes, alignments and lengths of sets. None
        # is unloaded, because a CUDA graph may run it at any later time.
        self._loaded: dict[Kernel, Loaded] = {}
        self._refused: dict[Kernel, tuple[str, str, bool]] = {}
        # By the launch's id, because its hash takes as long as launching. The entry keeps the launch and so its id.
        self._functions: dict[int, tuple[Any, Launch]] = {}
        self._warned: set[str] = set()  # messages of the compiler or the driver

    def on(self, stream: int) -> Callable[[Launch, bytes], None]:
        """Return a function that runs launches on the stream with this handle, each with a copy of its argument."""
        return partial(self._run, stream or LEGACY)

    def why_not(self, launches: Iterable[Launch]) -> str | None:
        """Return why one of these cannot run here, in half a sentence, or None; then all are loaded.

        Warn, once, if another version of the compiler or the driver could run it.
        """
        for launch in launches:
            try:
                self.load(launch)
            except RefusedError as refused:
                self._warn(refused)
                return str(refused)
        return None

    def load(self, launch: Launch) -> Any:
        """Return the function of a launch, compiled, loaded and allowed its shared memory, or raise a RefusedError."""
        kernel = launch.kernel
        with _LOCKS[hash(kernel) % len(_LOCKS)]:
            refused = self._refused.get(kernel)
            if refused is not None:
                raise RefusedError(*refused)
            loaded = self._loaded.get(kernel)
            if loaded is None:
                loaded = self._loaded[kernel] = self._load(kernel)
            if launch.shared > loaded.fits:
                loaded = self._loaded[kernel] = self._fitted(loaded, launch)
        if len(self._functions) >= MANY:
            self._functions.clear()
        self._functions[id(launch)] = loaded.function, launch
        return loaded.function

    def _run(self, stream: int, launch: Launch, argument: bytes) -> None:
        kernel, (x, y), threads, shared = launch
        found = self._functions.get(id(launch))
        function = self.load(launch) if found is None else found[0]
        pointer = c_char_p(argument)  # its own address is that of an array of one pointer, as the driver takes it
        try:
            self._launch(function, x, y, 1, threads, 1, 1, shared, stream, addressof(pointer), 0)
        except RuntimeError as error:
            self._judge(kernel, "cannot be launched", error, mendable=False)
            raise

    def _load(self, kernel: Kernel) -> Loaded:
        try:
            return self._driver.load(kernel)
        except CompileError as error:
            raise self._refusal(kernel, "does not compile", _first_line(str(error)), mendable=True) from error
        except RuntimeError as error:
            if "STREAM_CAPTURE" in str(error) or "StreamCapture" in str(error):  # the driver's name, and the runtime's
                advice = "while a CUDA graph is captured: make the same call once before"
                msg = f"{error} The kernel {kernel.name} cannot be loaded {advice}."
                raise RuntimeError(msg) from None
            self._judge(kernel, "does not load", error, mendable=True)
            raise

    def _fitted(self, loaded: Loaded, launch: Launch) -> Loaded:
        """Return the kernel allowed the shared memory of a launch, or raise a RefusedError."""
        kernel, _, threads, shared = launch
        small, words = "does not fit on the device", None
        blocks = dict(kernel.macros).get("CTAS", 1)
        try:
            if threads > loaded.threads:
                words = f"a block has registers for {loaded.threads} threads, and {threads} are wanted"
            elif shared > SHARED - loaded.declared:
                self._driver.allow_shared(loaded, shared)
            if words is None and blocks != 1 and self._driver.clusters(loaded, launch) == 0:
                words = f"it holds no {blocks} blocks at once that share {shared} bytes of memory each"
        except RuntimeError as error:
            self._judge(kernel, small, error, mendable=False)
            raise
        if words is not None:
            raise self._refusal(kernel, small, words, mendable=False)
        return loaded._replace(fits=shared)

    def _judge(self, kernel: Kernel, fails: str, error: RuntimeError, *, mendable: bool) -> None:
        """Raise a RefusedError if a driver's error concerns the kernel; else add the kernel's name to the error."""
        named = re.search(r"CUDA_ERROR_(\w+)", str(error))
        if named is not None and named[1] in OF_A_KERNEL:
            raise self._refusal(kernel, fails, _first_line(str(error)), mendable=mendable) from error
        error.add_note(f"The kernel {kernel.name} {fails} on device {self._driver.device}.")

    def _refusal(self, kernel: Kernel, fails: str, words: str, *, mendable: bool) -> RefusedError:
        """Record that a kernel cannot run, and return the error that says so."""
        self._refused[kernel] = refused = f"the kernel {kernel.name} {fails}", words, mendable
        return RefusedError(*refused)

    def _warn(self, refused: RefusedError) -> None:
        if refused.mendable and refused.words not in self._warned:
            self._warned.add(refused.words)
            served = "so the formula serves, which is slower"
            msg = f"anynorm: on CUDA device {self._driver.device} {refused.what}, {served}: {refused.words}"
            warnings.warn(msg, RuntimeWarning, stacklevel=users_level())


def _first_line(text: str) -> str:
    """Return the first line with an error of a compiler's message, or the first line of a driver's."""
    lines = text.strip().splitlines() or ["without a message"]
    return next((line for line in lines if "error:" in line), lines[0]).strip().removesuffix(".")
