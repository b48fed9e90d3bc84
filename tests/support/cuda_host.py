"""The CUDA kernels, run on the CPU: `launcher` compiles and launches them, `guarded` fences their arrays in memory.

No norm is known here. What a thread, a barrier or shared memory is, cuda_on_host/ says.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anynorm_cuda._program import Kernel, Launch

FOLDER = Path(__file__).parent / "cuda_on_host"
RUNTIME = ("threads.cpp", "meetings.cpp", "copies.cpp", "faults.cpp", "races.cpp")

COMMON = ("-std=c++17", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", f"-I{FOLDER}")
# Kernels fuse by fmaf where they mean to, and read the same memory as numbers and as words. -fvisibility, so that two
# programs in one process do not share the arrays of functions of one name. Nothing but SHARED arrays may be in .bss,
# so nothing of the compiler's own is linked.
OPTIONS = (
    "-O1",
    "-w",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-fno-asynchronous-unwind-tables",
    "-fvisibility=hidden",
    "-nostartfiles",
    "-nodefaultlibs",
)
# What a check finds ends the launch. Told so, the compiler takes a sixth less, as nothing comes after that.
CHECKS = (
    "-fsanitize=alignment,null,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fno-sanitize-recover=all",
)
WATCHED = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0")

NO_ACCESS = 0  # PROT_NONE, which mmap does not name

Order = Literal["forward", "backward", "random"]
Launcher = Callable[[Launch, bytes], None]

_one_at_a_time = threading.Lock()  # the runtime has one place for shared memory
_loaded: dict[Path, ctypes.CDLL] = {}


def missing() -> str | None:
    """Return why kernels cannot run here, or None."""
    if sys.platform != "linux":
        return f"CUDA kernels run on a CPU under Linux, not {sys.platform}"
    return None if _compiler() else "g++, which compiles CUDA kernels for a CPU, is not installed"


def launcher(folder: Path, *, order: Order = "forward", seed: int = 0, races: bool = False) -> Launcher:
    """Return what runs a launch on the CPU. Compiled programs are kept in `folder`, which several processes may share.

    `order`: which thread goes first where several could, and which block. A program without races leaves the same bits
    in every order. Memory that nobody wrote is NaN forward, and large numbers in the other orders.
    `races`: also find accesses of two threads to one place of shared or global memory that nothing orders, whatever
    they leave there. That takes several times as long.
    """
    number = ("forward", "backward", "random").index(order)

    def launch(what: Launch, argument: bytes) -> None:
        with _one_at_a_time:
            program = ctypes.addressof(ctypes.c_char.in_dll(_program(folder, what.kernel, races), "program"))
            runtime = _runtime(folder)
            failed = runtime.host_launch(
                ctypes.c_void_p(program),
                *what.grid,
                what.threads,
                ctypes.c_long(what.shared),
                argument,
                ctypes.c_ulong(len(argument)),
                number,
                ctypes.c_ulonglong(seed),
                races,
            )
            if failed:
                msg = f"{what.kernel.name}, {order}: {_with_line(what.kernel, runtime.host_reason().decode())}"
                raise RuntimeError(msg)

    return launch


def guarded(array: np.ndarray[Any, Any], flush: Literal["left", "right"], *, writable: bool = True) -> Any:
    """Return a copy of the array, of the same positive strides, with no memory before (left) or after it (right).

    A kernel that leaves it there, or that writes to one that is not writable, fails.
    """
    if any(step < 0 for step in array.strides):
        msg = f"guarded: strides of {array.strides}, they must not be negative"
        raise ValueError(msg)
    spans = [(extent - 1) * step for extent, step in zip(array.shape, array.strides, strict=True)]
    span = sum(spans) + array.itemsize if array.size else 0
    page = mmap.PAGESIZE
    inner = max(1, -(-span // page)) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    offset = page if flush == "left" else page + inner - span
    copy: np.ndarray[Any, Any] = np.ndarray(array.shape, array.dtype, memory, offset, array.strides)
    copy[...] = array
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _protect(start, page, NO_ACCESS)
    _protect(start + page + inner, page, NO_ACCESS)
    if not writable:
        _protect(start + page, inner, mmap.PROT_READ)
        copy.flags.writeable = False
    return copy


def _protect(address: int, length: int, protection: int) -> None:
    if _libc().mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), protection):
        msg = f"mprotect: {os.strerror(ctypes.get_errno())}"
        raise OSError(msg)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _compiler() -> str | None:
    return shutil.which("g++")


@cache
def _compiler_version() -> str:
    return subprocess.run([str(_compiler()), "--version"], check=True, capture_output=True, text=True).stdout


@cache
def _header() -> str:
    """Return the text of every header, on which all that is compiled depends."""
    return "".join(path.read_text() for path in sorted(FOLDER.glob("*.h")))


def _named(folder: Path, prefix: str, *texts: str) -> Path:
    """Return where in the folder that lies which is compiled from these texts."""
    digest = hashlib.sha256("\0".join([_compiler_version(), _header(), *texts]).encode()).hexdigest()
    return folder / f"{prefix}-{digest[:20]}.so"


@cache
def _runtime_in(folder: Path) -> Path:
    sources = [FOLDER / name for name in RUNTIME]
    options = ["-O2", *COMMON, "-pthread"]
    library = _named(folder, "runtime", *options, *[path.read_text() for path in sources])
    if not library.exists():
        _compile(library, [*options, *map(str, sources)])
    return library


def _runtime(folder: Path) -> ctypes.CDLL:
    library = _load(_runtime_in(folder))
    library.host_reason.restype = ctypes.c_char_p
    return library


def _program(folder: Path, kernel: Kernel, races: bool) -> ctypes.CDLL:
    text = f"{kernel.source((FOLDER / 'device.h').read_text())}\nPROGRAM({kernel.name})\n"
    runtime = _runtime_in(folder)
    options = [*OPTIONS, *CHECKS, *(WATCHED if races else ()), *COMMON, *kernel.options()]
    library = _named(folder, kernel.name, *options, runtime.name, text)
    if library not in _loaded and not library.exists():
        source = library.with_suffix(".cpp")
        _replace(source, lambda path: Path(path).write_text(text))
        _compile(library, [*options, str(source), str(runtime), "-Wl,-rpath,$ORIGIN", "-lm", "-lc"])
    return _load(library)


def _text(kernel: Kernel) -> str:
    return f"{kernel.source((FOLDER / 'device.h').read_text())}\nPROGRAM({kernel.name})\n"


def _with_line(kernel: Kernel, reason: str) -> str:
    """Return the reason with the line of the program that it speaks of."""
    found = re.search(r"line (\d+) of the program", reason)
    return reason if found is None else f"{reason}: {_text(kernel).splitlines()[int(found[1]) - 1].strip()}"


def _load(library: Path) -> ctypes.CDLL:
    if library not in _loaded:
        _loaded[library] = ctypes.CDLL(str(library))
    return _loaded[library]


def _compile(library: Path, arguments: list[str]) -> None:
    def compile_to(path: str) -> None:
        done = subprocess.run([str(_compiler()), *arguments, "-o", path], capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"{library.name} does not compile:\n{done.stderr[:8000]}"
            raise RuntimeError(msg)

    _replace(library, compile_to)


def _replace(path: Path, write: Callable[[str], object]) -> None:
    """Write a file beside and move it into place, so that no other process sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        write(name)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
