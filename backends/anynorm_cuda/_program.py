"""What is compiled and launched: a kernel with its macros, and how many threads run it. Knows no norm and no device."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "kernels"


class Kernel(NamedTuple):
    """One function of the CUDA source, specialised by macros: what is compiled once, and kept."""

    name: str
    parts: tuple[str, ...]  # files of the source, in order, without the first, which is the device's own
    macros: tuple[tuple[str, str | int], ...]

    def options(self) -> list[str]:
        """Return the macros as a compiler takes them."""
        # Of the kernels of a part, the one that is wanted is compiled.
        return [f"-DWANTS_{self.name}", *[f"-D{name}={value}" for name, value in self.macros]]

    def source(self, device: str | None = None) -> str:
        """Return the whole source; `device` stands for the first file, to run it elsewhere."""
        return "\n".join([_text("device") if device is None else device, *[_text(part) for part in self.parts]])


class Launch(NamedTuple):
    """One run of a kernel."""

    kernel: Kernel
    grid: tuple[int, int]  # blocks
    threads: int  # of a block
    shared: int  # bytes of memory that a block's threads share, beyond what the source declares


class CompileError(RuntimeError):
    """A compiler refuses a kernel, or compiles for no such device; with what it says."""


@cache
def _text(part: str) -> str:
    return (FOLDER / f"{part}.cu").read_text(encoding="utf-8")
