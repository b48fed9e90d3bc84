"""Kernels with their macros, and launches of them. No norm and no device is known here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "kernels"


class Kernel(NamedTuple):
    """One function of the CUDA source, specialised by macros: the unit that is compiled."""

    name: str
    parts: tuple[str, ...]  # files of the source, in order, after device.cu
    macros: tuple[tuple[str, str | int], ...]

    def options(self) -> list[str]:
        """Return the macros as options of a compiler; WANTS_ names the one kernel of its file that is compiled."""
        return [f"-DWANTS_{self.name}", *[f"-D{name}={value}" for name, value in self.macros]]

    def source(self, device: str | None = None) -> str:
        """Return the whole source; `device` replaces device.cu, to run it elsewhere."""
        return "\n".join([_text("device") if device is None else device, *[_text(part) for part in self.parts]])


class Launch(NamedTuple):
    """One run of a kernel."""

    kernel: Kernel
    grid: tuple[int, int]  # blocks
    threads: int  # of a block
    shared: int  # bytes of dynamic shared memory of a block


class CompileError(RuntimeError):
    """A compiler refuses a kernel or a device; the message is the compiler's."""


@cache
def _text(part: str) -> str:
    return (FOLDER / f"{part}.cu").read_text(encoding="utf-8")
