"""When a kernel is compiled and when what is kept on disk is used: never after a change.

No GPU is needed. What kernels compute is not tested here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import cubins
import pytest
from cuda_device import HostDevice
from cuda_sources import SMALL, kernel_of

import anynorm_cuda
from anynorm_cuda import _compile
from anynorm_cuda._launcher import Launcher, Loaded
from anynorm_cuda._program import CompileError, Kernel, Launch

if anynorm_cuda.missing() is not None:
    pytest.skip(str(anynorm_cuda.missing()), allow_module_level=True)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start with nothing on disk, and return where it will be."""
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which the name of whatever is compiled is added."""
    names: list[str] = []
    compiled = _compile.compiled

    def counted(source: str, name: str, flags: list[str]) -> tuple[bytes, str]:
        names.append(name)
        return compiled(source, name, flags)

    monkeypatch.setattr(_compile, "compiled", counted)
    return names


@pytest.mark.parametrize("devices", [1, 4])
def test_compiled_once(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    """Threads that need a kernel at the same time, on one device or on several of one model, compile it once."""
    launch = Launch(kernel_of(tmp_path, SMALL, "small"), (1, 1), 128, 0)
    names, codes, together = count(monkeypatch), [], Barrier(4)

    class Compiling(HostDevice):
        def load(self, kernel: Kernel) -> Loaded:
            codes.append(_compile.cubin(kernel, 80))
            return super().load(kernel)

    launchers = [Launcher(Compiling(lambda *_: None, number)) for number in range(devices)]

    def ask(number: int) -> str | None:
        together.wait(30)
        return launchers[number % devices].why_not([launch])

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == {None}

    assert names == ["small"]
    assert codes == [_compile.cubin(launch.kernel, 80)] * devices
    assert len(list(kept.glob("*"))) == 1


@pytest.mark.usefixtures("kept")
def test_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process compiled another reads."""
    kernel, names = kernel_of(tmp_path, SMALL, "small"), count(monkeypatch)
    code = _compile.cubin(kernel, 80)

    assert _compile.cubin(kernel, 80) == code
    assert names == ["small"]


def test_told_apart(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code is kept for its source, its macros, the device, how it treats subnormals, and NVRTC's version."""
    kernel, names = kernel_of(tmp_path, SMALL, "small"), count(monkeypatch)
    _compile.cubin(kernel, 80)
    _compile.cubin(kernel, 90)
    _compile.cubin(kernel, 80, ftz=True)
    _compile.cubin(kernel_of(tmp_path, SMALL, "small", THREADS=64), 80)
    assert len(list(kept.iterdir())) == 4

    monkeypatch.setattr(Kernel, "source", lambda kernel: _sources(kernel) + "// changed")
    _compile.cubin(kernel, 80)
    assert len(list(kept.iterdir())) == 5

    monkeypatch.setattr(_compile, "version", lambda: (99, 1))
    _compile.cubin(kernel, 80)
    assert len(list(kept.iterdir())) == 6
    assert names == ["small"] * 6


_sources = Kernel.source


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="truncated"),
        pytest.param(lambda content: content[:7], id="cut-in-the-digest"),
        pytest.param(lambda content: b"", id="empty"),  # noqa: ARG005
        pytest.param(lambda content: content[:-1] + bytes([content[-1] ^ 1]), id="one-bit"),
        pytest.param(lambda content: b"\0" * len(content), id="zeros"),
    ],
)
def test_damaged(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]) -> None:
    """A file that is not what was written is compiled anew and replaced."""
    kernel, names = kernel_of(tmp_path, SMALL, "small"), count(monkeypatch)
    code = _compile.cubin(kernel, 80)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))

    assert _compile.cubin(kernel, 80) == code
    assert names == ["small"] * 2
    assert file.read_bytes() == whole


@pytest.mark.parametrize("place", [os.devnull, "a file", "~nobody-of-this-name/kept"])
def test_no_directory(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Where no directory can be made, kernels are compiled each time that they are asked for."""
    (kept.parent / "a file").write_text("in the way")
    if place.startswith("~"):  # so does a user without a home
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.delenv("ANYNORM_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        assert _compile._folder() is None
    else:
        monkeypatch.setenv("ANYNORM_CACHE_DIR", str(kept.parent / place))
    kernel, names = kernel_of(tmp_path, SMALL, "small"), count(monkeypatch)

    assert _compile.cubin(kernel, 80) == _compile.cubin(kernel, 80)
    assert names == ["small"] * 2


@pytest.mark.parametrize(
    ("where", "call"), [(Path, "mkdir"), (os, "fsync"), (os, "replace"), (Path, "read_bytes")], ids=lambda it: str(it)
)
def test_unusable_directory(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, where: object, call: str
) -> None:
    """Where a directory may not be read or written, or the disk is full, the code is right and no part of it stays."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(where, call, refuse)
    code = _compile.cubin(kernel_of(tmp_path, SMALL, "small"), 80)
    monkeypatch.undo()

    assert "small" in cubins.resources(code)
    assert [file for file in kept.glob("*") if file.suffix != ".cubin"] == []


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        pytest.param("linux", {}, "HOME/.cache/anynorm", id="linux"),
        pytest.param("linux", {"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/anynorm", id="linux-xdg"),
        pytest.param("darwin", {"XDG_CACHE_HOME": "/elsewhere"}, "HOME/Library/Caches/anynorm", id="mac"),
        pytest.param("win32", {"LOCALAPPDATA": "/local"}, "/local/anynorm", id="windows"),
        pytest.param("win32", {}, "HOME/AppData/Local/anynorm", id="windows-bare"),
        pytest.param("linux", {"ANYNORM_CACHE_DIR": "/chosen", "XDG_CACHE_HOME": "/no"}, "/chosen", id="chosen"),
    ],
)
def test_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], folder: str
) -> None:
    """Code is kept where ANYNORM_CACHE_DIR says, or in the cache directory that the system gives the user."""
    for name in ("ANYNORM_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)

    assert _compile._folder() == Path(folder.replace("HOME", str(tmp_path)))


def test_error(tmp_path: Path, kept: Path) -> None:
    """A source that does not compile is an error with its options and the compiler's words, and nothing is kept."""
    with pytest.raises(CompileError, match=r"(?s)does not compile wrong .*sm_80.*-DTHREADS=128.*absent.*undefined"):
        _compile.cubin(kernel_of(tmp_path, "KERNEL(wrong)(Call q) { absent(); }", "wrong"), 80)

    assert not kept.exists()
