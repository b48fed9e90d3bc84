"""Steps of whole models before and after `accelerate`: which models and steps, whether both agree, and their times.

Measures and reports as plain values. Nothing is printed or drawn here.
"""

from __future__ import annotations

import copy
import ctypes
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from anynorm_torch.nn import Acceleration, accelerate
from benchmarks.machine import describe, disturbed
from benchmarks.model_shares import share
from benchmarks.model_zoo import MODELS, Inputs, Model
from benchmarks.rows import KEY
from benchmarks.timing import Call, undisturbed

Module = torch.nn.Module
Row = dict[str, Any]

# Seconds of measuring for each step.
SECONDS, QUICK_SECONDS = 12.0, 2.0

STEPS = ("training", "inference")
# Eager with every layer taken, eager with those that accelerate(model, measure=...) keeps, and compiled.
EAGER, MEASURED, COMPILED = "eager", "measured", "compiled"

# What a model that is wrong is reported with.
WRONG = "WRONG, it computes something else"

# Options of glibc's mallopt: what may stay free at the end of the heap, and how many blocks may lie beside the heap.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4

# Ours may be so many times as far from float64 as torch's: each is one draw of the same rounding errors.
_DRAWS = 4


@dataclass(frozen=True)
class Item:
    """Something to time: a model's step, in one of the ways."""

    model: Model
    step: str
    way: str

    def __str__(self) -> str:
        return f"{self.model.name}, {self.step}, {self.way}"

    def row(self) -> dict[str, str]:
        """Return the words that name it, which are the key of a row of results."""
        return dict(zip(KEY, (self.model.name, "float32", "torch", self.step, self.way), strict=True))


def plan(models: Sequence[Model] = (), *, only: str = "", compiled: bool = False) -> list[Item]:
    """Return what is timed: the steps of all models, or of these, that match a regular expression; compiled too."""
    ways = (EAGER, MEASURED, COMPILED) if compiled else (EAGER, MEASURED)
    items = [Item(model, step, way) for model in models or MODELS for way in ways for step in STEPS]
    return [item for item in items if re.search(only, str(item))]


def ordered(pairs: Sequence[Row]) -> list[Row]:
    """Return rows in the order in which they are planned, which a file does not keep."""
    places = {tuple(item.row().values()): place for place, item in enumerate(plan(compiled=True))}
    return sorted(pairs, key=lambda row: places.get(tuple([row[name] for name in KEY]), len(places)))


def measure(items: Sequence[Item], seconds: float = SECONDS, step: Callable[[str], None] = print) -> dict[str, Any]:
    """Time what is planned, and return all results as plain values; `step` is told what begins."""
    started = time.monotonic()
    pairs: list[Row] = []
    left_out: list[Row] = []
    keep_memory()
    for model in dict.fromkeys([item.model for item in items]):
        wanted = [item for item in items if item.model == model]
        reason = model.missing()
        if reason is None:
            step(f"{model.name}, both against float64")
            plain, inputs = model.make()
            reason = disagreement(plain, inputs)
        if reason is not None:
            left_out += [item.row() | {"reason": reason} for item in wanted]
            continue
        for item in wanted:
            step(str(item))
            pairs.append(item.row() | _timed(item, plain, inputs, seconds))
    packages = ["anynorm", "torch", "numba", *dict.fromkeys([item.model.package for item in items])]
    return {
        "machine": describe(packages) | {"cores": torch.get_num_threads()},
        "seconds": round(time.monotonic() - started),
        "summary": summarize(pairs, {item.way for item in items}),
        "pairs": pairs,
        "left_out": left_out,
    }


def keep_memory() -> None:
    """Have glibc keep the memory that is freed, for the whole process, instead of giving it back to the system.

    Else the system maps pages anew in each step, on either side, and how many depends on what was freed before: in
    monai's UNet of 64³ 110 000 to 130 000, a third of the step's time and more than its norm layers take.
    """
    if platform.libc_ver()[0] == "glibc":
        options = ctypes.CDLL(None)
        options.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        options.mallopt(_MMAP_MAX, 0)


def disagreement(plain: Module, inputs: Inputs) -> str | None:
    """Return how a model differs from itself accelerated: outputs and gradients, in training and evaluation.

    Both are compared to float64: the one may be a few times as far from it as the other.
    """
    ours = copy.deepcopy(plain)
    accelerate(ours)
    exact = copy.deepcopy(plain).double()
    for training in (True, False):
        results = [_results(copy.deepcopy(model), inputs, training) for model in (exact, plain, ours)]
        for name, reference, theirs, mine in zip(("output", "gradients"), *results, strict=False):
            length = float(reference.norm())
            far, allowed = [float((found.double() - reference).norm()) / length for found in (mine, theirs)]
            if not far <= _DRAWS * allowed + torch.finfo(torch.float32).eps:
                where = f"{name} in {'training' if training else 'evaluation'}"
                return f"{WRONG}: {where}, {far:.1e} of float64's away from it, torch's layers {allowed:.1e}"
    return None


def _results(model: Module, inputs: Inputs, training: bool) -> list[torch.Tensor]:
    """Return the output, and in training the gradients of all parameters, each as one long vector."""
    dtype = next(model.parameters()).dtype
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    torch.manual_seed(0)  # for dropout, which is the same in both dtypes
    output = _output(model.train(training), cast)
    if not training:
        return [output.detach().flatten()]
    _backward(output, _target(output))
    return [output.detach().flatten(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])]


def _output(model: Module, inputs: Inputs) -> torch.Tensor:
    output = model(**inputs)
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def _target(output: torch.Tensor) -> torch.Tensor:
    """Return what outputs are trained to, drawn by chance: the mean square of what was normalized is constant."""
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)


def _backward(output: torch.Tensor, target: torch.Tensor) -> None:
    torch.nn.functional.mse_loss(output, target).backward()  # type: ignore[no-untyped-call]


def _timed(item: Item, plain: Module, inputs: Inputs, seconds: float) -> Row:
    """Time a step of a model with anynorm's layers and with its own."""
    ours = copy.deepcopy(plain)
    ours.train(item.step == "training")
    with torch.set_grad_enabled(item.step == "training"):
        acceleration = accelerate(ours, measure=inputs) if item.way == MEASURED else accelerate(ours)
    # Where weights lie in memory decides about 1 %: so one model has either layers in turn. A compiled one cannot.
    other = copy.deepcopy(plain) if item.way == COMPILED else ours
    calls = [_step(item, model, inputs) for model in (ours, other)]
    if item.way != COMPILED:
        calls = _of_one_model(calls[0], acceleration)
    for call in calls * 2:
        call()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    found = undisturbed(*calls, seconds=seconds, clock=clock)
    faults = [_faults(call) for call in calls]
    taken = acceleration.swapped
    if item.way == COMPILED:
        torch._dynamo.reset()
    return {
        "taken": len(taken),
        "norms": len(taken) + len(acceleration.left),
        "share": share(other, taken, calls[1], clock) if item.way == EAGER and taken else None,
        **found.pair._asdict(),
        "left_out": found.left_out,
        "others": found.waiting,
        "faults": faults,
    }


def _of_one_model(step: Call, acceleration: Acceleration) -> list[Call]:
    """Return a step with anynorm's layers, and with the model's own."""
    swaps = acceleration._swaps
    applied = True

    def with_layers(ours: bool) -> None:
        nonlocal applied
        if ours != applied:
            for swap in swaps:
                swap.apply() if ours else swap.revert()
            applied = ours
        step()

    return [partial(with_layers, True), partial(with_layers, False)]


def _step(item: Item, model: Module, inputs: Inputs) -> Call:
    """Return a step: forward alone, or forward, backward and the update of the weights."""
    model.train(item.step == "training")
    run: Any = torch.compile(model) if item.way == COMPILED else model

    def inference() -> None:
        with torch.no_grad():
            _output(run, inputs)

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with torch.no_grad():
        target = _target(_output(model, inputs))

    def training() -> None:
        optimizer.zero_grad()
        _backward(_output(run, inputs), target)
        optimizer.step()

    return training if item.step == "training" else inference


def _faults(call: Call) -> int:
    """Return how many pages the system maps during a call; 0 where it does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def summarize(pairs: Sequence[Row], ways: set[str]) -> list[Row]:
    """Return the numbers to reach, as `summary.summarize` does; of the ways that were timed.

    `bound` is what a number would be if the layers taken took no time at all.
    """
    return list(_numbers(pairs, ways))


def _numbers(pairs: Sequence[Row], ways: set[str]) -> Iterator[Row]:
    if EAGER in ways:
        yield _number("each model, eager: lower quartile", 1.0, _lower, min, pairs, EAGER)
        yield _number("geometric mean, eager", 1.05, _median, statistics.geometric_mean, pairs, EAGER)
    if MEASURED in ways:
        yield _number("each model, measured: lower quartile", 1.0, _lower, min, pairs, MEASURED)
        yield _number("geometric mean, measured", 1.05, _median, statistics.geometric_mean, pairs, MEASURED)
    if COMPILED in ways:
        yield _number("each model, compiled", 0.99, _median, min, pairs, COMPILED)
        yield _number("geometric mean, compiled", 1.0, _median, statistics.geometric_mean, pairs, COMPILED)


def _lower(row: Row) -> float:
    """Return the lower quartile; of a model whose layers were all left both sides are one code, and no quartile is."""
    return float(row["spread"][0]) if row["taken"] else 1.0


def _median(row: Row) -> float:
    return float(row["ratio"])


def _number(
    what: str,
    target: float,
    figure: Callable[[Row], float],
    combine: Callable[[list[float]], float],
    pairs: Sequence[Row],
    way: str,
) -> Row:
    wanted = len(MODELS) * len(STEPS)
    rows = [row for row in pairs if row["peer"] == way]
    found = combine([figure(row) for row in rows]) if rows else None
    above = found is not None and found >= target
    decided = found is not None and (len(rows) >= wanted or (combine is min and not above))
    worst = min(rows, key=figure, default=None)
    shares = [row["share"] for row in rows if row["share"] is not None]
    return {
        "what": what,
        "target": target,
        "figure": found,
        "bound": combine([1 / (1 - share) for share in shares]) if shares else None,
        "reached": above if decided else None,
        "pairs": len(rows),
        "of": wanted,
        "disturbed": sum([disturbed(row["others"]) for row in rows]),
        "worst": worst and f"{worst['problem']}, {worst['direction']}",
    }
