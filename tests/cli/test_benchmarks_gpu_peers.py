"""`python -m benchmarks gpu` around its times: that all run the same function, the refusal, the card, the picture.

Where a GPU is needed, CPU tensors and NumPy arrays stand for its arrays.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu_stand_in import NumpyAsCupy, TorchOnCpu
from PIL import Image

from benchmarks import __main__ as command_line
from benchmarks import gpu, gpu_arrays, gpu_card, gpu_peers, gpu_picture
from benchmarks.gpu_exact import disagreement, exact
from benchmarks.gpu_peers import COMPILED, JAX, NATIVE, PLAIN, Peer, Task, ours
from benchmarks.gpu_problems import BACKWARD, FORWARD, HOST_BOTH
from benchmarks.limit import COPY
from benchmarks.peers import Unsupported
from benchmarks.problems import Data, Problem
from benchmarks.ways import ours as ours_on_cpu

PROBLEMS = (
    Problem("layer_norm", (6, 40)),
    Problem("rms_norm", (6, 40)),
    *[
        Problem(norm, (3, 8, 5, 4), groups, channels_last)
        for norm, groups in (("batch_norm", 1), ("group_norm", 2), ("instance_norm", 1))
        for channels_last in (False, True)
    ],
)
SMALL = PROBLEMS[0]
DIRECTIONS = (FORWARD, BACKWARD)
LIBRARIES: dict[str, Callable[[], Any]] = {"torch": TorchOnCpu, "cupy": NumpyAsCupy}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let peers run where there is no GPU: what they use of CuPy is NumPy's, and torch generates no code."""
    import torch

    real = torch.compile

    def without_code(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **options, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_code)
    cupy: Any = ModuleType("cupy")
    versions = {"runtimeGetVersion": lambda: 13000, "driverGetVersion": lambda: 13010}
    cupy.sqrt, cupy.__version__, cupy.cuda = np.sqrt, "14.0", SimpleNamespace(runtime=SimpleNamespace(**versions))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with importlib.import_module("torch._functorch.config").patch(donated_buffer=True):
        yield


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_exact_is_the_norm(problem: Problem, direction: str) -> None:
    """What results are compared with is the norm and its gradients in float64, to the last digits."""
    data = Data(replace(problem, dtype="float64"))
    run = ours_on_cpu(problem, data, "both", "numpy")
    y, *gradients = run.read(run.call())
    found = exact(problem, data.numpy, direction, np.asarray)
    for mine, its in zip(found, [y] if direction == FORWARD else gradients, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("peer", "problem", "direction", "dtype"),
    [
        pytest.param(peer, problem, direction, dtype, id=f"{peer}-{problem}-{direction}-{dtype}")
        for peer in ("anynorm-torch", "anynorm-cupy", "torch", "plain CuPy", "jax.jit")
        for problem in PROBLEMS
        for direction in DIRECTIONS
        for dtype in ("float32", "bfloat16")
        if peer != "jax.jit" or dtype == "float32" or problem == SMALL  # it compiles each
    ],
)
def test_peer_computes_the_norm(peer: str, problem: Problem, direction: str, dtype: str) -> None:
    """What is timed is the norm or its gradients, on every input that takes its turn, call after call."""
    prepare = {"torch": NATIVE.prepare, "plain CuPy": PLAIN.prepare, "jax.jit": JAX.prepare}.get(peer, ours)
    _check(
        prepare, replace(problem, dtype=dtype), direction, "cupy" if peer in ("anynorm-cupy", PLAIN.name) else "torch"
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_compiled_formula_computes_the_norm(problem: Problem, direction: str) -> None:
    """The formula that torch compiles is the norm, and its gradients can be taken again and again."""
    _check(COMPILED.prepare, problem, direction, "torch")


def _check(prepare: Callable[[Task], Any], problem: Problem, direction: str, arrays: str) -> None:
    library = LIBRARIES[arrays]()
    task = Task(problem, direction, library, library.data(problem, 2))
    entrant = prepare(task)
    for number in (0, 1, 0, 1):
        found = entrant.read(entrant.call(number))
        right = exact(problem, task.inputs[number], direction, library.wide)
        assert disagreement(problem, direction, right, found, library.wide) is None
    assert float(abs(library.wide(task.inputs[0].x) - library.wide(task.inputs[1].x)).max()) > 1


@pytest.mark.parametrize("arrays", list(LIBRARIES))
def test_both_directions_on_the_host(arrays: str) -> None:
    """Where the time of forward and backward together is told, a call does both anew."""
    library = LIBRARIES[arrays]()
    for prepare in (ours, {"torch": NATIVE, "cupy": PLAIN}[arrays].prepare):
        task = Task(SMALL, HOST_BOTH, library, library.data(SMALL, 1))
        entrant = prepare(task)
        gradients = entrant.call(0)[-3:]
        right = exact(SMALL, task.inputs[0], BACKWARD, library.wide)
        assert disagreement(SMALL, BACKWARD, right, gradients, library.wide) is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda dx, dw, db: (dx, dw, db * 1.01), "dbias differs", id="scaled"),
        pytest.param(lambda dx, dw, db: (dx * np.nan, dw, db), "dx differs", id="nan"),
        pytest.param(lambda dx, dw, db: (dx.T, dw, db), "dx has shape", id="shape"),
        pytest.param(lambda dx, dw, _db: (dx, dw), "2 results", id="missing"),
    ],
)
def test_disagreement_is_seen(spoil: Callable[..., tuple[Any, ...]], words: str) -> None:
    """Results that are off by more than rounding, NaN, of another shape or missing are told."""
    library = NumpyAsCupy()
    right = exact(SMALL, library.data(SMALL, 1)[0], BACKWARD, library.wide)
    assert disagreement(SMALL, BACKWARD, right, right, library.wide) is None
    assert words in str(disagreement(SMALL, BACKWARD, right, spoil(*right), library.wide))


@pytest.mark.parametrize(
    ("peer", "problem", "direction"),
    [
        pytest.param(gpu_peers.LIGER, PROBLEMS[2], FORWARD, id="Liger batch norm"),
        pytest.param(gpu_peers.LIGER, PROBLEMS[5], FORWARD, id="Liger channels last"),
        pytest.param(gpu_peers.QUACK, PROBLEMS[4], FORWARD, id="quack group norm"),
    ],
)
def test_what_peers_do_not_have(peer: Peer, problem: Problem, direction: str) -> None:
    """A peer says what it has not, without being imported."""
    library = TorchOnCpu()
    with pytest.raises(Unsupported, match="alone"):
        peer.prepare(Task(problem, direction, library, library.data(problem, 1)))


def test_peers_that_need_a_gpu_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX on a CPU is no peer of a GPU, and what is not installed is named."""
    monkeypatch.setattr(gpu_peers, "installed", lambda package: None if package == "liger-kernel" else "1.0")
    assert "finds no CUDA device" in str(JAX.missing())
    assert gpu_peers.LIGER.missing() == "liger-kernel is not installed"
    assert gpu_peers.QUACK.missing() is None


class Driver:
    """What stands for the NVIDIA driver's library."""

    def __init__(self, error: int, count: int) -> None:
        self.error, self.count = error, count

    def cuInit(self, _: int) -> int:  # noqa: N802
        return self.error

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        pytest.param(None, "there is no NVIDIA driver here", id="no driver"),
        pytest.param(Driver(100, 0), "does not start: cuInit returns 100, no device", id="no device"),
        pytest.param(Driver(0, 0), "finds no GPU", id="hidden"),
    ],
)
def test_refusal(driver: Driver | None, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a GPU the command says why in a sentence, with an exit status, and writes nothing."""

    def load(_: str) -> Any:
        if driver is None:
            raise OSError
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    target = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", f"--json={target}"])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert words in str(stopped.value.code)
    assert str(stopped.value.code).endswith("Nothing was timed.")
    assert not target.exists()


def test_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the driver finds a GPU, libraries are asked, each of which may say why it is of no use."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(0, 1))
    assert gpu_card.no_gpu() is None

    class Missing:
        missing = staticmethod(lambda: "not today")

    class There:
        missing = staticmethod(lambda: None)

    monkeypatch.setattr(gpu_arrays, "LIBRARIES", {"torch": Missing, "cupy": There})
    found = gpu_arrays.usable()
    assert found["torch"] == "not today"
    assert isinstance(found["cupy"], There)


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command measures what it is asked for, prints it, and writes JSON and picture where it is told to."""
    monkeypatch.setattr(gpu_arrays, "usable", lambda: {"cupy": NumpyAsCupy(), "torch": "no"})
    monkeypatch.setattr(gpu, "COPIED", SMALL)
    monkeypatch.setattr(gpu_card, "_told", lambda _: None)
    files = [f"--{name}={tmp_path / name}" for name in ("json", "picture")]
    only = r"^layer norm \(8, 64\) float32, cupy arrays, host time, forward, against"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--quick", "--only", only, *files])
    command_line.main()
    assert "Numbers to reach" in capsys.readouterr().out
    result = json.loads((tmp_path / "json").read_text())
    assert [row["peer"] for row in result["pairs"]] == ["nobody", "plain CuPy"]
    assert result["machine"]["cuda"]["driver"] == 13010
    with Image.open(tmp_path / "picture") as image:
        assert image.format == "PNG"


def test_list_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What would be timed can be read anywhere."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--list", "--only", "quack"])
    command_line.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.endswith("against quack") for line in lines)


def test_card_is_asked_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nvidia-smi knows not all fields, those that it knows are told; what it has no number for is None."""
    known = {"clocks.sm": "1980", "temperature.gpu": "[N/A]", "clocks_throttle_reasons.active": "0x0", "name": "A card"}
    asked: list[str] = []

    def told(fields: str) -> str | None:
        asked.append(fields)
        names = fields.split(",")
        return ", ".join([known[name] for name in names]) if set(names) <= set(known) else None

    monkeypatch.setattr(gpu_card, "_told", told)
    state = gpu_card.state()
    assert state["sm_clock"] == 1980
    assert state["temperature"] is None
    assert state["throttle_reasons"] == "0x0"
    assert gpu_card.describe()["card"] == "A card"
    known |= dict.fromkeys(gpu_card._STATE.values(), "7")
    asked.clear()
    assert gpu_card.state()["power"] == 7
    assert len(asked) == 3


def test_real_libraries_have_what_is_called() -> None:
    """What is asked of CuPy and torch by name is there, as far as can be seen without a GPU."""
    import torch

    assert hasattr(torch.cuda, "_sleep")
    assert hasattr(importlib.import_module("torch._functorch.config"), "donated_buffer")
    assert callable(torch.cuda.set_per_process_memory_fraction)


def test_picture_is_drawn(tmp_path: Path) -> None:
    """The picture is a PNG of twice 900 pixels, from the results as the JSON holds them, however few they are."""
    rows = [
        item.row() | {"ratio": 0.9, "ours": 1e-3, "percent": 90.0, "spread": [0.9, 0.9]}
        for item in gpu.plan()
        if item.peer in (COPY, NATIVE.name, PLAIN.name)
    ]
    about = {"machine": {"card": "A card", "driver": "1", "packages": {"torch": "2.13", "cupy": None}}}
    heights = []
    for pairs in (rows, rows[:40], []):
        gpu_picture.draw(tmp_path / "it.png", about | {"pairs": pairs})
        with Image.open(tmp_path / "it.png") as image:
            assert image.width == 1800
            heights.append(image.height)
    assert heights[0] > heights[1] >= heights[2]
    cupy = [row for row in rows if row["arrays"] == "cupy"]
    gpu_picture.draw(tmp_path / "cupy.png", about | {"pairs": cupy})
    gpu_picture.draw(tmp_path / "empty.png", about | {"pairs": []})
    assert (tmp_path / "cupy.png").stat().st_size > 1.5 * (tmp_path / "empty.png").stat().st_size
