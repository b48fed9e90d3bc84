"""What is written: whole for every reader whoever writes at once, or left as it was."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anynorm as an
from anynorm._core.files import write_png, write_whole

ROOT = Path(__file__).parents[2]
FOLDERS = ("anynorm", "backends", "benchmarks", "examples")

posix = pytest.mark.skipif(os.name != "posix", reason="the permissions and signals of POSIX")

SAVES = """
import sys
import numpy as np
import anynorm as an

sys.stdin.read()  # until all are there
for _ in range(60):
    an.save_state({"a": np.full(20_000, float(sys.argv[2])), "b": np.full(30, float(sys.argv[2]))}, sys.argv[1])
"""

# A write that the system ends after 1000 bytes, as on a full disk.
CUT = """
import resource, signal, sys
from anynorm._core.files import write_whole

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole(sys.argv[1], b"new" * 100_000)
except OSError as error:
    print(type(error).__name__, error.filename)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python with the folders from which the tests import."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_several_processes_save_one_name(tmp_path: Path) -> None:
    """Of processes that save under one name at once none fails, and whoever reads meanwhile finds one state whole."""
    pytest.importorskip("safetensors")
    file = tmp_path / "model.safetensors"
    an.save_state({"a": np.zeros(20_000), "b": np.zeros(30)}, file)
    writers = [start(SAVES, file, value) for value in (1, 2, 3)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    found: list[float] = []
    while any(writer.poll() is None for writer in writers):
        state = an.load_state(file)
        assert np.ptp(np.concatenate([state["a"], state["b"]])) == 0
        found.append(float(state["b"][0]))
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()

    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert {1.0, 2.0, 3.0} & set(found)
    assert list(tmp_path.iterdir()) == [file]


@posix
@pytest.mark.parametrize("there", [True, False])
def test_write_that_is_cut_short(tmp_path: Path, there: bool) -> None:
    """A write that the system ends halfway names the file, leaves the old one bit for bit, and nothing beside it."""
    file = tmp_path / "kept"
    if there:
        file.write_bytes(b"old")
    said, _ = start(CUT, file).communicate(timeout=60)

    assert said.split() == ["OSError", str(file)]
    assert [(each, each.read_bytes()) for each in tmp_path.iterdir()] == ([(file, b"old")] if there else [])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException) -> None:
    """What fails when all is written leaves the old file too, and nothing beside it."""
    file = tmp_path / "kept"
    file.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        write_whole(file, b"new")

    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("refusals", [2, 10**9])
def test_file_that_is_open_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int) -> None:
    """A file that Windows lets nobody replace, because it is being read, is replaced when it can be; or stays."""
    file = tmp_path / "kept"
    file.write_bytes(b"old")
    replace, attempts = os.replace, []

    def busy(*names: Any) -> None:
        attempts.append(names)
        if len(attempts) <= refusals:
            raise PermissionError(13, "The process cannot access the file", *names)
        replace(*names)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    if refusals == 2:
        write_whole(file, b"new")
        assert file.read_bytes() == b"new"
    else:
        with pytest.raises(PermissionError) as caught:
            write_whole(file, b"new")
        assert caught.value.filename == str(file)
        assert caught.value.filename2 is None
        assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_no_such_folder(tmp_path: Path) -> None:
    """A folder that does not exist is an error that names the file."""
    file = tmp_path / "absent" / "file"
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(file, b"new")
    assert caught.value.filename == str(file)


def test_folder_in_the_way(tmp_path: Path) -> None:
    """A folder of that name is an error, and stays."""
    with pytest.raises(IsADirectoryError if os.name == "posix" else PermissionError) as caught:
        write_whole(tmp_path, b"new")
    assert caught.value.filename == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


@posix
def test_permissions(tmp_path: Path) -> None:
    """A new file has the permissions that open() gives, one that was there keeps its own."""
    plain, ours, private = (tmp_path / name for name in ("plain", "ours", "private"))
    before = os.umask(0o027)
    try:
        plain.write_bytes(b"")
        write_whole(ours, b"new")
        private.write_bytes(b"old")
        private.chmod(0o606)
        write_whole(private, b"new")
    finally:
        os.umask(before)

    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode) == 0o640
    assert stat.S_IMODE(private.stat().st_mode) == 0o606


def test_write_protected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be written is not replaced, though its folder may be written."""
    file = tmp_path / "kept"
    file.write_bytes(b"old")
    opened = os.open

    def protected(name: Any, flags: int, *mode: int) -> int:  # root may write anywhere
        if str(name) == str(file) and flags & os.O_WRONLY:
            raise PermissionError(13, "Permission denied", name)
        return opened(name, flags, *mode)

    monkeypatch.setattr(os, "open", protected)
    with pytest.raises(PermissionError) as caught:
        write_whole(file, b"new")
    assert caught.value.filename == str(file)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@posix
def test_link(tmp_path: Path) -> None:
    """A link stays one: its target is written, in the folder it lies in, be it there already or not."""
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there" / "target"
    link.symlink_to(target)
    for data in (b"first", b"second"):
        write_whole(link, data)
        assert link.is_symlink()
        assert target.read_bytes() == data
    assert list(target.parent.iterdir()) == [target]


@posix
def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe is written into, and stays a pipe: so do /dev/null and /dev/stdout."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"new")
    reader.join(30)

    assert read == [b"new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_longest_name(tmp_path: Path) -> None:
    """A name as long as names can be is written."""
    file = tmp_path / ("n" * 255)
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"


def test_picture(tmp_path: Path) -> None:
    """A picture that cannot be drawn to its end leaves the old one."""
    file = tmp_path / "picture.png"

    class Figure:
        fails = False

        def savefig(self, target: Any, **options: str) -> None:
            target.write(options["format"].encode())
            if self.fails:
                raise MemoryError

    figure = Figure()
    write_png(file, figure)
    figure.fails = True
    with pytest.raises(MemoryError):
        write_png(file, figure)
    assert file.read_bytes() == b"png"
    assert list(tmp_path.iterdir()) == [file]


def test_nothing_else_writes() -> None:
    """Files are written by anynorm/_core/files.py alone, but for a log that grows and the hashes of any version."""
    found = set()
    for file in [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and writes(node):
                found.add(file.relative_to(ROOT).as_posix())
    assert found == {"anynorm/_core/files.py", "benchmarks/bits.py", "benchmarks/prove.py"}


def writes(call: ast.Call) -> bool:
    """Say whether a call is one that writes a file: by its name, or `open` with a mode that says so."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "open":
        words = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        return any(isinstance(word, str) and set(word) <= set("rwaxbt+") and set(word) & set("wax") for word in words)
    return name in {"write_bytes", "write_text", "savefig", "savez", "savetxt", "tofile"}
