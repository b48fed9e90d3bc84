"""CUDA source to machine code by NVRTC, cached on disk. Needs no GPU.

The first compilation imports cuda.bindings.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from anynorm.backend import write_whole
from anynorm_cuda._program import CompileError, Kernel

# The second allows constexpr functions. The third forbids fused multiply-adds but where a kernel calls fmaf, so that a
# set has the same bits in every specialisation of a kernel, and on the CPU.
OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "--fmad=false")


def cubin(kernel: Kernel, arch: int, *, ftz: bool = False) -> bytes:
    """Return a kernel's machine code.

    Parameters
    ----------
    kernel : Kernel
        Compiled once per machine, if the cache directory can be written.
    arch : int
        The device's compute capability: 90 for 9.0. If NVRTC does not know it yet, the result is PTX for the newest one
        that it knows, which the driver compiles.
    ftz : bool, optional
        Whether subnormal float32 values are flushed to zero, as CuPy compiles.

    Raises
    ------
    CompileError
        With the compiler's message.

    """
    flags, source = options(kernel, arch, ftz=ftz), kernel.source()
    file = _file(kernel.name, [_dotted(version()), *flags, source])
    code = None if file is None else _read(file)
    if code is None:
        code, _ = compiled(source, kernel.name, flags)
        if file is not None:
            _write(file, code)
    return code


def options(kernel: Kernel, arch: int, *, ftz: bool = False) -> list[str]:
    """Return the options for NVRTC."""
    return [f"--gpu-architecture={_target(arch)}", *OPTIONS, f"--ftz={str(ftz).lower()}", *kernel.options()]


@cache
def version() -> tuple[int, int]:
    """Return NVRTC's version."""
    major, minor = _ask("nvrtcVersion")
    return major, minor


@cache
def archs() -> tuple[int, ...]:
    """Return the compute capabilities that NVRTC compiles for, in ascending order."""
    return tuple(sorted(_ask("nvrtcGetSupportedArchs")[0]))


def compiled(source: str, name: str, flags: list[str]) -> tuple[bytes, str]:
    """Return machine code, or PTX for a virtual architecture, and NVRTC's log."""
    (program,) = _ask("nvrtcCreateProgram", source.encode(), f"{name}.cu".encode(), 0, [], [])
    try:
        (error,) = _nvrtc().nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        log = _text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        if error:
            msg = f"NVRTC {_dotted(version())} does not compile {name} ({_words(error)}; {' '.join(flags)}).\n{log}"
            raise CompileError(msg)
        return _text(program, "PTX" if any("=compute_" in flag for flag in flags) else "CUBIN"), log
    finally:
        _nvrtc().nvrtcDestroyProgram(program)


def _target(arch: int) -> str:
    """Return NVRTC's name of a compute capability: sm_90, or compute_121 for one newer than NVRTC knows."""
    known = [older for older in archs() if older <= arch]
    if not known:
        msg = f"NVRTC {_dotted(version())} does not compile for compute capability {_dotted(divmod(arch, 10))}."
        raise CompileError(msg)
    return f"sm_{arch}" if known[-1] == arch else f"compute_{known[-1]}"


def _file(name: str, determines: list[str]) -> Path | None:
    """Return the cache file of code that these strings determine, or None if there is no cache directory."""
    folder = _folder()
    return folder and folder / f"{name}-{sha256(chr(0).join(determines).encode()).hexdigest()[:32]}.cubin"


def _folder() -> Path | None:
    """Return $ANYNORM_CACHE_DIR, or anynorm's folder in the user's cache directory."""
    chosen = os.environ.get("ANYNORM_CACHE_DIR")
    if chosen:
        return Path(chosen)
    variable, otherwise = {
        "win32": ("LOCALAPPDATA", "~/AppData/Local"),
        "darwin": ("", "~/Library/Caches"),
    }.get(sys.platform, ("XDG_CACHE_HOME", "~/.cache"))
    try:
        return Path(os.environ.get(variable) or otherwise).expanduser() / "anynorm"
    except RuntimeError:  # the user has no home
        return None


def _read(file: Path) -> bytes | None:
    """Return cached code, or None if the file is absent, cannot be read or is damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if sha256(code).digest() == digest else None


def _write(file: Path, code: bytes) -> None:
    """Cache code if the file can be written. Other processes see the whole file or none."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, sha256(code).digest() + code)


def _nvrtc() -> Any:
    from cuda.bindings import nvrtc

    return nvrtc


def _ask(call: str, *arguments: object) -> list[Any]:
    answer: list[Any]
    error, *answer = getattr(_nvrtc(), call)(*arguments)
    if error:
        msg = f"{call}: {_words(error)}"
        raise CompileError(msg)
    return answer


def _words(error: object) -> str:
    text: bytes = _nvrtc().nvrtcGetErrorString(error)[1]
    return text.decode()


def _text(program: object, what: str) -> bytes:
    (size,) = _ask(f"nvrtcGet{what}Size", program)
    # Not bytes, which NVRTC would write into: Python has one shared object per bytes of length 1.
    buffer = bytearray(size)
    _ask(f"nvrtcGet{what}", program, buffer)
    return bytes(buffer)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
