"""`python -m benchmarks models`: what is compared, what counts, and how it is reported; with models of torch alone."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import anynorm_torch.nn
from benchmarks import __main__ as command
from benchmarks import machine, models, models_report, rows, timing
from benchmarks.model_shares import share
from benchmarks.model_zoo import MODELS, Inputs, Model

ROOT = Path(__file__).parents[2]
Change = Callable[[torch.nn.Module], object]


def _build() -> tuple[torch.nn.Module, Inputs]:
    layers = (torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Dropout(0.2), torch.nn.GroupNorm(2, 8))
    return torch.nn.Sequential(*layers), {"input": torch.randn(4, 3, 9, 9)}


SMALL = Model("small (4, 3, 9, 9)", "torch", _build)
MISSING = Model("missing (1,)", "no-such-package", _build)


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave this process's allocator as it is."""
    monkeypatch.setattr(models, "keep_memory", lambda: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the command have the small model alone, time it for a moment, and leave this process as it is."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(machine, "use_cores", lambda: None)
    monkeypatch.setattr(models, "MODELS", (SMALL,))
    monkeypatch.setattr(models, "QUICK_SECONDS", 0.01)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _accelerate_and(change: Change) -> Change:
    def accelerate(model: torch.nn.Module) -> object:
        acceleration = anynorm_torch.nn.accelerate(model)
        change(model)
        return acceleration

    return accelerate


def _larger_eps(model: torch.nn.Module) -> None:
    layer: Any = model.get_submodule("3")
    layer.eps = 1e-3


def _other_gradient(model: torch.nn.Module) -> None:
    def hook(_: torch.nn.Module, gradients: Any, __: Any) -> Any:
        return (gradients[0] * 1.0001,)

    model.get_submodule("1").register_full_backward_hook(hook)


def _slow(model: torch.nn.Module) -> None:
    def hook(layer: torch.nn.Module, *_: object) -> None:
        ends = time.process_time() + 0.02 * isinstance(layer, anynorm_torch.nn.BatchNorm2d)
        while time.process_time() < ends:
            pass

    model.get_submodule("1").register_forward_hook(hook)


def test_plan() -> None:
    """Each model has a training and an inference step, compiled ones only if asked for; a pattern chooses."""
    items = models.plan()
    assert len(items) == 4 * len(MODELS) == len({str(item) for item in items})
    assert len(MODELS) >= 8
    assert {item.way for item in items} == {models.EAGER, models.MEASURED}
    assert len(models.plan(compiled=True)) == 6 * len(MODELS)
    assert {str(item) for item in models.plan([SMALL], only="inf", compiled=True)} == {
        "small (4, 3, 9, 9), inference, eager",
        "small (4, 3, 9, 9), inference, measured",
        "small (4, 3, 9, 9), inference, compiled",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda _: None, None, id="right"),
        pytest.param(_larger_eps, "WRONG, it computes something else: output in training", id="eps"),
        pytest.param(_other_gradient, "WRONG, it computes something else: gradients in training", id="gradient"),
    ],
)
def test_model_that_computes_something_else(change: Change, words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose outputs or gradients differ after accelerate by more than rounding is wrong."""
    monkeypatch.setattr(models, "accelerate", _accelerate_and(change))
    reason = models.disagreement(*SMALL.make())
    assert (reason is None) if words is None else str(reason).startswith(words)


@pytest.mark.usefixtures("small")
def test_ratio_is_of_torch_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio below 1 means that the accelerated model is the slower one; both are timed from the same weights."""
    monkeypatch.setattr(models, "accelerate", _accelerate_and(_slow))
    result = models.measure(models.plan([SMALL], only="eager"), seconds=0.01, step=lambda _: None)
    assert [row["direction"] for row in result["pairs"]] == ["training", "inference"]
    for row in result["pairs"]:
        assert row["ours"] > 0.02
        assert row["spread"][0] <= row["ratio"] < 0.9
        assert (row["taken"], row["norms"]) == (2, 2)
        assert 0 < row["share"] < 1


def test_model_stays_as_it_is() -> None:
    """Comparing and timing change neither the model's weights nor its statistics."""
    model, inputs = SMALL.make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert models.disagreement(model, inputs) is None
    item = models.plan([SMALL])[0]
    models._timed(item, model, inputs, 0.01)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_model_of_a_missing_library() -> None:
    """A model whose library is not installed is listed as not timed, with the reason."""
    result = models.measure(models.plan([MISSING]), seconds=0.01, step=lambda _: None)
    assert result["pairs"] == []
    assert [row["reason"] for row in result["left_out"]] == ["no-such-package is not installed"] * 4
    assert all(row["figure"] is None and row["reached"] is None for row in result["summary"])


@pytest.mark.parametrize("all_disturbed", [False, True])
def test_disturbed_rounds_are_left_out(all_disturbed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds in which threads waited for a core do not count, unless fewer than seven are left."""
    asked, waits = 0, 0.0

    def waited() -> float:
        nonlocal asked, waits
        asked += 1
        waits += 0.01 if asked % 2 == 0 and disturbed() else 0.0  # asked before each round and after it
        return waits

    def disturbed() -> bool:
        return all_disturbed or (asked + 1) // 2 % 2 == 0

    def other() -> None:
        time.sleep(0.01 if disturbed() else 0.001)

    monkeypatch.setattr(timing, "waited", waited)
    monkeypatch.setattr(timing, "_AT_LEAST", 0.0001)
    found = timing.undisturbed(lambda: time.sleep(0.001), other, seconds=0.4)
    assert found.left_out >= 5
    if all_disturbed:
        assert (found.pair.rounds, found.waiting > 0.02) == (7, True)
    else:
        assert abs(found.pair.rounds - found.left_out) <= 1
        assert (found.pair.ratio < 3, found.waiting) == (True, 0.0)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux alone tells")
def test_waiting_for_a_core() -> None:
    """What other processes take of a core on which this one would run is counted as waiting."""
    code = f"""
import os, sys, time
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.machine import waited
child = os.fork()
began = time.monotonic()
while time.monotonic() < began + 0.5:
    pass
if child:
    os.waitpid(child, 0)
    print(waited())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert 0.1 < float(done.stdout) < 60


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="options of glibc")
def test_memory_is_kept() -> None:
    """What is freed is not given back to the system, which would map it anew page by page."""
    code = """
import torch
from benchmarks import models
models.keep_memory()
def step():
    blocks = [torch.ones(2**24), torch.ones(2**20), torch.ones(2**24)]
for _ in range(5):
    step()
print(models._faults(step))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    assert int(done.stdout) < 1000


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return x.clone()

    @staticmethod
    def backward(_: Any, dy: torch.Tensor) -> torch.Tensor:
        time.sleep(0.06)
        return dy


class _SlowLayer(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Slow.apply(x)  # type: ignore[no-untyped-call]
        return y * 2


@pytest.mark.parametrize(("names", "least", "most"), [(["1"], 0.45, 0.51), (["1", "2"], 0.9, 1.0), (["0"], 0.0, 0.1)])
def test_share_of_a_step(names: list[str], least: float, most: float) -> None:
    """The share of layers is the time of their forward and backward passes, of none beside them."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), _SlowLayer(), _SlowLayer(), torch.nn.ReLU())
    x = torch.randn(2, 4)
    found = share(model, names, lambda: model(x).sum().backward(), time.perf_counter)
    assert least <= found <= most


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "models", *arguments])
    return command.main()


@pytest.mark.usefixtures("small")
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints its table, writes rows and a picture, puts the table into a page, and shows them again."""
    file, picture, page = tmp_path / "it.jsonl", tmp_path / "it.png", tmp_path / "it.md"
    page.write_text("before\n<!-- models -->\nold\n<!-- /models -->\nafter\n")
    arguments = ("--quick", "--threads", "1", "--json", str(file), "--picture", str(picture), "--docs", str(page))
    assert _run(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    found = rows.read(file)
    assert {row["direction"] for row in found["pairs"]} == set(models.STEPS)
    assert found["machine"]["cores"] == 1
    with Image.open(picture) as image:
        assert image.format == "PNG"
    text = page.read_text()
    assert (text.startswith("before\n<!-- models -->\n| model |"), text.endswith("-->\nafter\n")) == (True, True)
    assert "old" not in text
    for row in found["pairs"]:
        assert f"| small (4, 3, 9, 9) | {row['direction']} | eager | 2 of 2 |" in text
        assert f"{row['ratio']:#.3g}" in text
        assert f"{row['ratio']:#.3g}" in printed
    assert text.index("training") < text.index("inference")
    assert _run(monkeypatch, "--read", str(file), "--docs", str(page)) == 0
    assert page.read_text() == text


@pytest.mark.usefixtures("small")
def test_command_fails_where_a_model_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that computes something else is not timed, printed, and makes the command fail."""
    monkeypatch.setattr(models, "accelerate", _accelerate_and(_larger_eps))
    assert _run(monkeypatch, "--quick", "--threads", "1") == 1
    printed = capsys.readouterr().out
    assert models.WRONG in printed
    assert "torch / anynorm" not in printed


def test_summary_needs_every_model() -> None:
    """A mean over a part of the models decides nothing, a slow one does; the bound is a step without the layers."""
    row = {"ratio": 1.2, "spread": (1.1, 1.3), "others": 0.0, "share": 0.2, "taken": 2}
    items = models.plan(compiled=True)
    pairs = [item.row() | row | ({} if item.way == models.EAGER else {"share": None}) for item in items]
    numbers = models.summarize(pairs, {models.EAGER, models.MEASURED, models.COMPILED})
    assert [number["reached"] for number in numbers] == [True] * 6
    assert [number["figure"] for number in numbers] == pytest.approx([1.1, 1.2, 1.1, 1.2, 1.2, 1.2])
    assert [number["bound"] for number in numbers] == [pytest.approx(1.25), pytest.approx(1.25), *[None] * 4]
    part = models.summarize(pairs[1:], {models.EAGER})
    assert [number["reached"] for number in part] == [None, None]
    part = models.summarize([pairs[0] | {"spread": (0.9, 1.3)}], {models.EAGER})
    assert [number["reached"] for number in part] == [False, None]
    part = models.summarize([pairs[0] | {"spread": (0.9, 1.3), "taken": 0}], {models.EAGER})
    assert part[0]["figure"] == 1.0


def test_published_tables_follow_from_their_rows() -> None:
    """The tables of docs/models.md are those of the published results."""
    found = rows.read(ROOT / "benchmarks" / "results" / "models.jsonl")
    assert models_report.markdown(found) in (ROOT / "docs" / "models.md").read_text()
    computed = models.summarize(found["pairs"], {row["peer"] for row in found["pairs"]})
    for stored, expected in zip(found["summary"], computed, strict=True):
        assert stored["figure"] == pytest.approx(expected["figure"], rel=6e-3)
        assert stored["reached"] == expected["reached"]


@pytest.mark.parametrize("model", MODELS, ids=[model.name for model in MODELS])
def test_models_have_norm_layers_to_take(model: Model) -> None:
    """Each model is made, with the same weights each time, runs on its input, and accelerate takes its layers."""
    reason = model.missing()
    if reason:
        pytest.skip(reason)
    made, inputs = model.make()
    again, _ = model.make()
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    assert models._output(made, inputs).isfinite().all()
    assert anynorm_torch.nn.accelerate(made).swapped
