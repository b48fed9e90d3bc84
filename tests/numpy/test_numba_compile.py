"""How kernels are compiled, once and for each dtype, and when what is kept on disk is used: never after a change.

What compiled kernels compute is not tested here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

pytest.importorskip("numba")

import numba
import numba_tasks
from numba_tasks import scenario

import anynorm_numba
from anynorm_numba import _compile

WIDTHS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}
FUNCTIONS = len(WIDTHS) + 3  # the kernel of every dtype, one more kernel, two drivers
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start with nothing compiled and nothing on disk."""
    monkeypatch.setattr(_compile, "_built", {})
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))


def count(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return the list to which each attempt at compiling a kernel is added: whether it was with the disk."""
    attempts: list[bool] = []
    cfunc: Callable[..., Any] = numba.cfunc

    def counted(*arguments: Any, cache: bool = False, **options: Any) -> Any:
        attempts.append(cache)
        return cfunc(*arguments, cache=cache, **options)

    monkeypatch.setattr(numba, "cfunc", counted)
    return attempts


@pytest.mark.usefixtures("fresh")
def test_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that ask for a kernel at the same time wait for one compilation, and get its address ever after."""
    attempts, together = count(monkeypatch), Barrier(4)

    def ask(_: int) -> int:
        together.wait(30)
        return _compile.task(numba_tasks.widths, "float32")

    with ThreadPoolExecutor(4) as pool:
        addresses = set(pool.map(ask, range(4)))

    assert addresses == {_compile.task(numba_tasks.widths, "float32")}
    assert addresses != {0}
    assert attempts == [True]


@pytest.mark.usefixtures("fresh")
def test_function_left_alone(tmp_path: Path) -> None:
    """A function keeps its name when it is compiled; the file in the cache has the digest in its own."""
    _compile.task(numba_tasks.widths, "float32")

    assert numba_tasks.widths.__qualname__ == "widths"
    assert list(tmp_path.glob(f"*/numba_tasks.widths_{_compile._digest()}_*-*.nbi"))


@pytest.mark.usefixtures("fresh")
def test_own_faults_are_raised() -> None:
    """A function that numba cannot compile raises numba's own error."""

    def wrong(number: int) -> None:
        open(number).close()

    with pytest.raises(numba.core.errors.NumbaError):
        _compile.compiled(wrong, numba.types.void(numba.types.int64))


@pytest.mark.usefixtures("fresh")
def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a compiled kernel cannot be written to disk, it is used all the same."""
    attempts = count(monkeypatch)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)

    assert numba_tasks.width_of("float32") == 32
    assert attempts == [True, False]


def test_import_without_numba() -> None:
    """Importing the package and the files that compile and run imports no numba."""
    code = "import sys; from anynorm_numba import _compile, _threads; print('numba' in sys.modules)"
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=settings, capture_output=True, text=True, check=True, timeout=60)

    assert result.stdout.strip() == "False"


def test_kept_on_disk(tmp_path: Path) -> None:
    """A second process compiles nothing; the kernels of one source for several dtypes are kept apart."""
    settings = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_THREADING_LAYER": "", "OMP_NUM_THREADS": ""}
    first, second = scenario("cached", **settings), scenario("cached", **settings)

    assert first[0] == second[0] == list(WIDTHS.values())
    assert first[2] == 0
    assert second[2] == second[3]


def test_damaged_files(tmp_path: Path) -> None:
    """Files in the cache that were cut short are not trusted, and do no harm."""
    settings = {"NUMBA_CACHE_DIR": str(tmp_path), **ONE_THREAD}
    scenario("cached", **settings)
    cut = list(tmp_path.glob("*/*.nbc"))
    for file in cut:
        file.write_bytes(file.read_bytes()[:100])

    assert len(cut) >= len(WIDTHS)
    assert scenario("cached", **settings)[0] == list(WIDTHS.values())


@pytest.mark.usefixtures("fresh")
def test_two_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of one source for two dtypes, compiled by two processes at once, are not taken for one another."""
    cached, late = numba.core.caching.IndexDataCacheFile, []
    with monkeypatch.context() as both:
        # Neither sees what the other writes, and the first writes its code last.
        both.setattr(cached, "_load_index", lambda _: {})
        both.setattr(cached, "_save_data", lambda *given: late.append(given))
        for kind in ("float32", "float16"):
            _compile._built.clear()
            _compile.task(numba_tasks.widths, kind)
    for given in reversed(late):
        cached._save_data(*given)  # type: ignore[no-untyped-call]
    _compile._built.clear()

    assert len(late) == 2
    assert [numba_tasks.width_of(kind) for kind in ("float32", "float16")] == [32, 16]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with a copy of the package, and beside it the scenarios."""
    package = Path(anynorm_numba.__file__).parent
    shutil.copytree(package, tmp_path / "anynorm_numba", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(numba_tasks.__file__, tmp_path)
    return tmp_path


def in_copy(copy: Path, code: str, **environment: str) -> str:
    """Run code where the copy is what is imported, and return what it prints; "" removes an environment variable."""
    path = os.pathsep.join([str(copy), *filter(None, sys.path)])
    settings = {**os.environ, "PYTHONPATH": path, **ONE_THREAD, **environment}
    settings = {key: value for key, value in settings.items() if value}
    command = [sys.executable, "-B", "-c", code]
    result = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert str(copy) in result.stdout
    return result.stdout.splitlines()[-1]


def test_nothing_can_be_written(copy: Path) -> None:
    """An installation without any directory to write to compiles in memory, in every process."""
    for folder in (copy, copy / "anynorm_numba"):  # files where directories would be made: root may write anywhere else
        (folder / "__pycache__").write_text("")
    code = "import numba_tasks; print(numba_tasks.__file__); print(numba_tasks.cached())"
    nowhere = {"HOME": os.devnull, "XDG_CACHE_HOME": "", "NUMBA_CACHE_DIR": "", "TMPDIR": str(copy)}
    before = sorted(copy.rglob("*"))

    for _ in range(2):
        bits = list(WIDTHS.values())
        assert in_copy(copy, code, **nowhere) == str((bits, 1, 0, FUNCTIONS - 1))  # one thread: no parallel driver
    assert sorted(copy.rglob("*")) == before


LEAF = """
from numba.extending import register_jitable

@register_jitable
def bits():
    return 1
"""
KERNEL = """
import numba_tasks
from numba import carray
from anynorm_numba import _compile, _leaf, _threads
import numpy as np

bits, pointer = _leaf.bits, numba_tasks.pointer

def kernel(storage, phase, index, geometry, a0, a1, a2, a3, a4, a5, a6, eps):
    carray(pointer(a0), 1, np.int64)[0] = bits()
"""
CALL = """
import numpy as np
from anynorm_numba import _compile, _kernel, _threads

out = np.zeros(1, dtype=np.int64)
fn = _compile.task(_kernel.kernel, "float32")
_threads.run(fn, 0, 1, 1, 0, out.ctypes.data, 0, 0, 0, 0, 0, 0, 0.0)
hits = [built.cache_hits for built in _compile._built.values() if hasattr(built, "cache_hits")]
print(_compile.__file__)
print(out[0], *hits)
"""


def test_change_in_another_file(copy: Path) -> None:
    """A kernel is compiled anew after a change to a file whose code it contains, even of the same size and time."""
    leaf = copy / "anynorm_numba" / "_leaf.py"
    leaf.write_text(LEAF)
    (copy / "anynorm_numba" / "_kernel.py").write_text(KERNEL)
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    times = leaf.stat().st_atime_ns, leaf.stat().st_mtime_ns

    assert in_copy(copy, CALL, **cache) == "1 0"
    assert in_copy(copy, CALL, **cache) == "1 1"

    leaf.write_text(LEAF.replace("return 1", "return 2"))
    os.utime(leaf, ns=times)

    assert in_copy(copy, CALL, **cache) == "2 0"
    assert in_copy(copy, CALL, **cache) == "2 1"


@pytest.mark.parametrize("setting", ["NUMBA_BOUNDSCHECK", "NUMBA_OPT", "NUMBA_SLP_VECTORIZE"])
def test_settings_of_numba(setting: str) -> None:
    """Code compiled under a setting of numba that changes it is not loaded under another."""
    digests = {scenario("digest", **{setting: value}) for value in ("0", "1")}

    assert len(digests) == 2
