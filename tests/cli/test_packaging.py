"""What is installed and imported: the wheel's contents, what `import anynorm` costs, and that the result can be shared.

Nothing here looks at a norm's numbers beyond what shows that it works.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import check_wheel
import numpy as np
import pytest
from libraries import ONE_OF_EACH, ArrayLibrary, each_library

import anynorm as an
from anynorm._core import backends

ARRAY_LIBRARIES = ("numpy", "torch", "jax", "jaxlib", "dask", "cupy", "array_api_strict", "ml_dtypes", "numba")


def python(*arguments: str, cache: Path | None = None) -> str:
    """Run Python with this one's import path and return what it prints; with `cache`, keep compiled files there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if cache is not None:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(cache)
    result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_import_needs_no_array_library() -> None:
    """`import anynorm` imports no array library, even where all of them are installed."""
    loaded = python("-c", "import json, sys, anynorm; print(json.dumps(list(sys.modules)))")

    assert set(json.loads(loaded)).isdisjoint(ARRAY_LIBRARIES)


BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import anynorm as an
"""


def test_import_beside_array_api_compat_alone() -> None:
    """Without any array library, `import anynorm` works, and a call says that this is no array."""
    script = """
try:
    an.layer_norm([1.0, 2.0])
except TypeError as error:
    print(error)
"""
    said = python("-c", BLOCKED.format(absent=ARRAY_LIBRARIES) + script)

    assert said.startswith("layer_norm: x must be an array")


@pytest.mark.parametrize(
    ("present", "make"),
    [
        (("numpy",), "import numpy as xp; x = xp.asarray([1.0, 3.0])"),
        (("torch",), "import torch as xp; x = xp.asarray([1.0, 3.0])"),
        (("numpy", "array_api_strict"), "import array_api_strict as xp; x = xp.asarray([1.0, 3.0])"),
        (("numpy", "dask"), "import dask.array as xp; x = xp.asarray([1.0, 3.0])"),
        (("numpy", "jax", "jaxlib", "ml_dtypes"), "import jax.numpy as xp; x = xp.asarray([1.0, 3.0])"),
    ],
    ids=lambda tensor: "+".join(tensor) if isinstance(tensor, tuple) else "",
)
def test_each_library_alone(present: tuple[str, ...], make: str) -> None:
    """Each array library works where it and what it needs are the only ones installed."""
    for package in present:
        pytest.importorskip(package)
    absent = set(ARRAY_LIBRARIES) - set(present)
    script = f"""
import warnings
warnings.simplefilter("ignore")  # torch warns of the absent NumPy
{make}
y = an.layer_norm(x, eps=0)
print([float(its) for its in (y[0], y[1])])
"""
    said = python("-c", BLOCKED.format(absent=absent) + script)

    assert said.splitlines()[-1] == "[-1.0, 1.0]"


def test_import_is_quick(tmp_path: Path) -> None:
    """`import anynorm` costs less than 50 ms of processor time beyond the start of Python."""
    resource: Any = pytest.importorskip("resource")

    def seconds(statement: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python("-c", statement, cache=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return float(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    seconds("import anynorm")  # compiles
    differences = [seconds("import anynorm") - seconds("pass") for _ in range(11)]

    median = statistics.median(differences)
    if median >= 0.05:
        table = python("-X", "importtime", "-c", "import anynorm", cache=tmp_path).splitlines()[1:]
        slowest = sorted(table, key=lambda line: int(line.split("|")[1]))[-15:]
        pytest.fail(
            "\n".join([f"{median * 1000:.0f} ms; microseconds, of a module itself and with its imports:", *slowest])
        )


def test_every_backend_is_listed() -> None:
    """Every folder in backends/ is a typed import package that pyproject.toml lists, one by one."""
    folders = {
        path.name for path in (check_wheel.ROOT / "backends").iterdir() if path.is_dir() and path.name != "__pycache__"
    }

    assert folders == check_wheel.declared_packages() - {"anynorm"}
    for folder in folders:
        for needed in ("__init__.py", "py.typed"):
            assert (check_wheel.ROOT / "backends" / folder / needed).is_file()


def test_dependency() -> None:
    """Array-api-compat is the one thing that an installation needs."""
    table = tomllib.loads((check_wheel.ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    (dependency,) = table["project"]["dependencies"]
    assert dependency.startswith("array-api-compat")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=check_wheel.ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_wheel(wheel: Path) -> None:
    """The wheel holds anynorm, its backends and its metadata, each package typed, and nothing else."""
    assert check_wheel.complaints(wheel) == []
    python(str(Path(check_wheel.__file__)), str(wheel))


@pytest.mark.parametrize(
    ("added", "removed", "complaint"),
    [
        ("README.md", None, "README.md lies at the top level"),
        ("backends/anynorm_numpy/__init__.py", None, "backends lies at the top level"),
        ("tests/test_layer_norm.py", None, "tests lies at the top level"),
        ("anynorm/test_layer_norm.py", None, "anynorm/test_layer_norm.py belongs to the tests"),
        ("anynorm_torch/README.md", None, "anynorm_torch/README.md is of no use"),
        ("anynorm-9.dist-info/METADATA", None, "There must be one anynorm-*.dist-info, found 2"),
        (None, "anynorm_jax/py.typed", "anynorm_jax/py.typed is missing"),
        (None, "anynorm_cuda/kernels/rows.cu", "anynorm_cuda/kernels/rows.cu is missing"),
        (None, "anynorm/__init__.py", "anynorm/__init__.py is missing"),
        (None, "anynorm_dask/", "anynorm_dask is listed in pyproject.toml but is not in the wheel"),
    ],
)
def test_bad_wheel(added: str | None, removed: str | None, complaint: str, wheel: Path, tmp_path: Path) -> None:
    """A wheel with something too much or too little fails the check, as a program too, with a sentence about it."""
    bad = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as good, zipfile.ZipFile(bad, "w") as archive:
        for name in good.namelist():
            if removed is None or not name.startswith(removed):
                archive.writestr(name, good.read(name))
        if added is not None:
            archive.writestr(added, "")

    program = [sys.executable, check_wheel.__file__, str(bad)]
    result = subprocess.run(program, capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert f"{bad}: {complaint}" in result.stderr


def test_check_wheel_of_no_wheel(tmp_path: Path) -> None:
    """Something that is no wheel, and nothing at all, is a failure that says how to call the check."""
    for arguments in ([], [str(tmp_path / "absent.whl")], ["one", "two"]):
        assert check_wheel.main(arguments) == 1


@each_library(ONE_OF_EACH)
def test_threads(library: ArrayLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads may call at once, also when none has met the type or the shapes before."""
    # Each is compiled for by JAX, and each chunk is one more task of Dask's.
    threads = 3 if library.name in ("jax", "dask") else 8
    arrays = [np.random.default_rng(n).standard_normal((4, 6, 7 + n)).astype(np.float32) for n in range(threads)]
    calls: list[Any] = [an.layer_norm, an.rms_norm, lambda x: an.group_norm(x, 3), an.instance_norm, an.batch_norm]
    start = Barrier(len(arrays))
    monkeypatch.setattr(backends, "by_type", {})

    # Again and again, where that is cheap: what a first call leaves behind is met by the second.
    times = 1 if library.name == "dask" else 3

    def work(array: Any) -> list[Any]:
        start.wait(30)
        return [np.asarray(library.to_numpy(call(library.make(array)))) for call in calls for _ in range(times)]

    with ThreadPoolExecutor(len(arrays)) as pool:
        together = list(pool.map(work, arrays))

    for array, results in zip(arrays, together, strict=True):
        alone = [np.asarray(library.to_numpy(call(library.make(array)))) for call in calls]
        for i, result in enumerate(results):
            np.testing.assert_array_equal(result, alone[i // times])


def test_pickle() -> None:
    """Functions, moments, routes and errors travel between processes."""
    x = np.asarray([[1.0, 2.0], [3.0, 5.0]])
    for function in (an.layer_norm, an.rms_norm, an.group_norm, an.instance_norm, an.batch_norm, an.moments):
        assert pickle.loads(pickle.dumps(function)) is function

    moments = pickle.loads(pickle.dumps(an.moments(x, axis=0)))
    assert (moments + moments).n == 4
    assert pickle.loads(pickle.dumps(an.explain(an.rms_norm, x))) == an.explain(an.rms_norm, x)
    assert isinstance(pickle.loads(pickle.dumps(an.AxisError("axis=2"))), IndexError)


def test_dask_graph_travels() -> None:
    """A Dask graph of a norm can be sent to another process and computed there."""
    da = pytest.importorskip("dask.array")
    cloudpickle = pytest.importorskip("cloudpickle")
    x = np.random.default_rng(4).standard_normal((6, 8))
    y = an.group_norm(da.from_array(x, chunks=4), 2, da.ones(8))

    sent = cloudpickle.loads(cloudpickle.dumps(y))

    np.testing.assert_allclose(sent.compute(scheduler="synchronous"), an.group_norm(x, 2), rtol=1e-12, atol=1e-12)
