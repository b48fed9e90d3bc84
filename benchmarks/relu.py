"""Norm and ReLU on tensors on the CPU: in one pass, and one after the other, ReLU in place, in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import anynorm
from benchmarks.timing import Undisturbed, undisturbed

an: Any = anynorm

# Name of the function, shape of x, whether channels come last, and what follows x.
CALLS: tuple[tuple[str, tuple[int, ...], bool, tuple[int, ...]], ...] = (
    ("batch_norm", (8, 64, 28, 28), False, ()),
    ("batch_norm", (32, 64, 56, 56), False, ()),
    ("batch_norm", (32, 64, 56, 56), True, ()),
    ("batch_norm", (4096, 1024), False, ()),
    ("group_norm", (8, 256, 32, 32), False, (32,)),
    ("instance_norm", (8, 64, 128, 128), False, ()),
)
WAYS = ("forward", "evaluation", "both")


def rows(dtype: str, seconds: float) -> Iterator[tuple[str, Undisturbed]]:
    """Time each call, in training forward and both ways and in evaluation, for so many seconds.

    In one thread (OMP_NUM_THREADS=1) its CPU time counts, which other processes disturb less.
    """
    torch = import_module("torch")
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    kept = torch.empty(31 << 18)  # 31 MiB, freed: from then on glibc keeps smaller memory that is freed
    del kept
    for name, shape, last, groups in CALLS:
        generator = torch.Generator().manual_seed(0)
        x, dy = [torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for _ in range(2)]
        if last:
            x, dy = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, dy)]
        parameters = {key: torch.randn(shape[1], generator=generator).to(x.dtype) for key in ("weight", "bias")}
        for way in WAYS if name == "batch_norm" else WAYS[::2]:
            more = {"mean": torch.zeros(shape[1]), "var": torch.ones(shape[1])} if way == "evaluation" else {}
            one, two = _calls(
                torch, getattr(an, name), x, groups, {**parameters, **more}, dy if way == "both" else None
            )
            one()
            two()
            yield (
                f"{name} {shape}{' channels last' if last else ''} {way}",
                undisturbed(one, two, seconds=seconds, clock=clock),
            )


def report(found: Iterator[tuple[str, Undisturbed]]) -> None:
    """Print the rows as they come."""
    print(f"{'':52} {'one, µs':>9} {'two, µs':>9} {'ratio':>6} {'quartiles':>12}")
    for call, (pair, _, waiting) in found:
        low, high = pair.spread
        doubt = "" if waiting <= 0.1 else f"   disturbed: threads waited {waiting:.0%}"
        times = f"{pair.ours * 1e6:9.0f} {pair.other * 1e6:9.0f}"
        print(f"{call:52} {times} {pair.ratio:6.2f} {low:6.2f} {high:5.2f}{doubt}", flush=True)


def _calls(
    torch: Any, function: Any, x: Any, groups: tuple[int, ...], options: dict[str, Any], dy: Any
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the call in one pass and the two calls, with their backward pass if there is a dy."""
    leaves = [x, options["weight"], options["bias"]]

    def one() -> Any:
        return function(x, *groups, **options, activation="relu")

    def two() -> Any:
        return torch.relu_(function(x, *groups, **options))

    if dy is None:
        return one, two
    for leaf in leaves:
        leaf.requires_grad_()
    return lambda: torch.autograd.grad(one(), leaves, dy), lambda: torch.autograd.grad(two(), leaves, dy)
