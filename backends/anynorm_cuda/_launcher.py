"""The kernels of one device: loaded once, launched from any thread, and why one cannot run there.

Knows no norm and no array library. How a kernel is compiled, loaded and launched, it is told.
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
from anynorm_cuda._teams import Device

# The kernels copy from global to shared memory past the registers, and convert to bfloat16.
LEAST_ARCH = 80

# Bytes of memory that a block's threads may share, declared and dynamic together, without the function being told.
SHARED = 48 << 10

# The default stream by the name that means the same under every setting; 0 does not, under
# CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM.
LEGACY = 1

# Launches whose function is found by their address. There are more only if equal ones are made again and again.
MANY = 4096

# So many kernels are compiled at the same time, in all of a process: one lock for each would be kept for ever. Two
# devices of one model that need the same kernel take turns, so that the second finds on disk what the first compiled.
_LOCKS = tuple([threading.Lock() for _ in range(16)])

# What a driver says of a kernel. All else that it says, of memory that is full, of a graph that is being captured, or
# of a kernel that went astray before, is of the state that a device or a process is in, and is raised.
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

    function: Any  # as `Driver.launch` takes it
    declared: int  # bytes of shared memory in the source
    threads: int  # that a block may have at most, by the registers that they take
    owner: Any = None  # what must be kept while the function is used
    fits: int = -1  # the most dynamic shared memory with which a block, or a cluster of them, is known to fit


class Driver(Protocol):
    """One device, as a launcher needs it. What fails is a RuntimeError with the driver's name for it, CUDA_ERROR_..."""

    device: int

    @property
    def launch(self) -> Callable[..., None]:
        """Return what runs a function with the arguments of cuLaunchKernel."""

    def load(self, kernel: Kernel) -> Loaded:
        """Compile and load a kernel; raise a CompileError with what the compiler says."""

    def make_room(self, loaded: Loaded, shared: int) -> None:
        """Let a kernel be given so many bytes of dynamic shared memory."""

    def clusters(self, loaded: Loaded, launch: Launch) -> int | None:
        """Return how many of a launch's clusters the device holds at once, or None where nobody can tell."""


class RefusedError(RuntimeError):
    """A kernel that cannot run on a device. It says why in half a sentence."""

    def __init__(self, what: str, words: str, mendable: bool) -> None:
        super().__init__(f"{what}: {words}")
        self.what = what
        self.words = words  # of the compiler, or the driver
        self.mendable = mendable  # by whoever installs the compiler and the driver


class Launcher:
    """Runs kernels on one device, from any thread. A kernel is compiled and loaded before it is first run."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._launch: Callable[..., None] = driver.launch
        # These two have an entry for each kernel that a program ever runs, of which there are as many as it has dtypes,
        # alignments and lengths of sets. None is unloaded: a CUDA graph may run it at any later time.
        self._loaded: dict[Kernel, Loaded] = {}
        self._refused: dict[Kernel, tuple[str, str, bool]] = {}
        # By the launch's address, because its hash takes as long as to launch. That the launch is kept makes it safe.
        self._met: dict[int, tuple[Any, Launch]] = {}
        self._said: set[str] = set()  # a line for each way in which kernels fail

    def on(self, stream: int) -> Callable[[Launch, bytes], None]:
        """Return what runs launches on one stream, given by its handle, each with a copy of its argument."""
        return partial(self._run, stream or LEGACY)

    def why_not(self, launches: Iterable[Launch]) -> str | None:
        """Return half a sentence that says why some of these cannot run here, or None. All are loaded then.

        Where whoever installed the compiler or the driver could mend it, a warning says so, once.
        """
        for launch in launches:
            try:
                self.load(launch)
            except RefusedError as refused:
                self._warn(refused)
                return str(refused)
        return None

    def load(self, launch: Launch) -> Any:
        """Return the function of a launch: compiled, loaded, with its shared memory; else raise a RefusedError."""
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
        if len(self._met) >= MANY:
            self._met.clear()
        self._met[id(launch)] = loaded.function, launch
        return loaded.function

    def _run(self, stream: int, launch: Launch, argument: bytes) -> None:
        kernel, (x, y), threads, shared = launch
        met = self._met.get(id(launch))
        function = self.load(launch) if met is None else met[0]
        pointer = c_char_p(argument)  # the pointer's own address is that of an array of one pointer
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
        """Return what is loaded with room for what a launch lets its threads share; else raise a RefusedError."""
        kernel, _, threads, shared = launch
        small, words = "does not fit on the device", None
        blocks = dict(kernel.macros).get("CTAS", 1)
        try:
            if threads > loaded.threads:
                words = f"a block has room for the registers of {loaded.threads} threads, and {threads} are wanted"
            elif shared > SHARED - loaded.declared:
                self._driver.make_room(loaded, shared)
            if words is None and blocks != 1 and self._driver.clusters(loaded, launch) == 0:
                words = f"it holds no {blocks} blocks at once that share {shared} bytes of memory each"
        except RuntimeError as error:
            self._judge(kernel, small, error, mendable=False)
            raise
        if words is not None:
            raise self._refusal(kernel, small, words, mendable=False)
        return loaded._replace(fits=shared)

    def _judge(self, kernel: Kernel, fails: str, error: RuntimeError, *, mendable: bool) -> None:
        """Raise a RefusedError if an error of the driver speaks of the kernel; else note which kernel it was."""
        named = re.search(r"CUDA_ERROR_(\w+)", str(error))
        if named is not None and named[1] in OF_A_KERNEL:
            raise self._refusal(kernel, fails, _first_line(str(error)), mendable=mendable) from error
        error.add_note(f"The kernel {kernel.name} {fails} on device {self._driver.device}.")

    def _refusal(self, kernel: Kernel, fails: str, words: str, *, mendable: bool) -> RefusedError:
        """Remember that a kernel cannot run, and return the error that says so."""
        self._refused[kernel] = refused = f"the kernel {kernel.name} {fails}", words, mendable
        return RefusedError(*refused)

    def _warn(self, refused: RefusedError) -> None:
        if refused.mendable and refused.words not in self._said:
            self._said.add(refused.words)
            served = "so the formula serves, which is slower"
            msg = f"anynorm: on CUDA device {self._driver.device} {refused.what}, {served}: {refused.words}"
            warnings.warn(msg, RuntimeWarning, stacklevel=users_level())


def _first_line(text: str) -> str:
    """Return the first error that a compiler speaks of, or all that a driver says."""
    lines = text.strip().splitlines() or ["nothing is said of it"]
    return next((line for line in lines if "error:" in line), lines[0]).strip().removesuffix(".")
