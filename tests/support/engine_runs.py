"""What the CPU engine was asked to run, and in how many threads: for tests that must know. No test in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from gradients import cotangent, exact_gradients, verify_gradients, vjp
from inputs import Case, verify
from layouts import LAYOUTS
from libraries import NumPyArray, nothing_known

import anynorm as an

SERVED = "anynorm_numba"


@contextmanager
def watched() -> Iterator[list[Any]]:
    """Note the launch config of each step that the engine runs, in one pass or apart."""
    from anynorm_numba import _engine, engine

    configs: list[Any] = []
    running: list[str] = []  # a step apart calls a pass

    def seen(name: str) -> Callable[..., None]:
        run = getattr(_engine, name)

        def noted(config: Any, *args: Any, **options: Any) -> None:
            if not running:
                configs.append(config)
            running.append(name)
            try:
                run(config, *args, **options)
            finally:
                running.pop()

        return noted

    # Adapters of other packages call the passes by `engine`, what is within the engine calls `_engine`.
    steps = ("forward", "apply", "backward", "measure", "gradient_sums", "gradient")
    within: Any = {name: seen(name) for name in steps}
    passes: Any = {name: within[name] for name in steps[:3]}
    with mock.patch.multiple(engine, **passes), mock.patch.multiple(_engine, **within):
        yield configs


@contextmanager
def in_threads(number: int) -> Iterator[None]:
    """Let calls of any size run in so many threads, and be cut for as many."""
    from anynorm_numba import _threads

    with nothing_known(), mock.patch.multiple(_threads, threads=lambda: number, PARALLEL_ELEMENTS=1, POOL_ELEMENTS=1):
        yield


def path_of(case: Case) -> str:
    """Return which package serves a call on NumPy arrays."""
    others = {name: array for name, array in case.arrays.items() if name != "x"}
    function = getattr(an, case.norm.function)
    return an.explain(function, case.arrays["x"], *case.norm.groups, **others, **case.norm.options).path


def both_passes(case: Case, dy: NumPyArray | None = None) -> tuple[Any, an.Gradients, list[Any]]:
    """Return y, the gradients, and the engine's jobs: two of them where it served both passes."""
    with watched() as jobs:
        y, pullback = vjp(case, case.arrays)
        found = pullback(cotangent(case) if dy is None else dy)
    return y, found, jobs


def judge(case: Case, dy: NumPyArray | None = None) -> list[Any]:
    """Raise unless the engine served both passes within the contract's bounds; return its jobs."""
    dy = cotangent(case) if dy is None else dy
    y, found, jobs = both_passes(case, dy)
    assert [len(job.view.strides) for job in jobs] == [2, 3]
    verify(y, case.arrays["x"], case.reference())
    verify_gradients(found, case, exact_gradients(case, dy))
    return jobs


def runs_of(job: Any) -> tuple[int, ...]:
    """Return how a set lies in memory: the lengths along which it is summed, outermost first."""
    _, r, _, s, p = job.view.lengths
    return tuple([length for length in (r, s, p) if length > 1])


def in_short_runs(job: Any) -> bool:
    """Say whether a set lies in several runs so short that it is summed place by place."""
    from anynorm_numba._configs import sets_are_runs

    _, r, _, s, p = job.view.lengths
    return p > 1 and not sets_are_runs(r, s, p)


def laid_alike(case: Case) -> dict[tuple[Any, ...], list[str]]:
    """Return the layouts of x by the path that serves them, and by the runs and the order in which a set then lies.

    The order is that of the axes along which a set's elements are summed, outermost first. The channels of a group are
    not among them: sums are taken channel by channel, wherever these lie.
    """
    summed = _summed_axes(case)
    found: dict[tuple[Any, ...], list[str]] = {}
    for name, layout in LAYOUTS.items():
        laid = case.with_x(layout(case.arrays["x"]))
        strides = laid.arrays["x"].strides
        order = tuple(sorted(summed, key=lambda axis: -abs(strides[axis])))
        with watched() as jobs:
            vjp(laid, laid.arrays)
        found.setdefault((path_of(laid), order, *[runs_of(job) for job in jobs]), []).append(name)
    return found


def _summed_axes(case: Case) -> list[int]:
    ndim, options = case.arrays["x"].ndim, case.norm.options
    if case.norm.function in ("layer_norm", "rms_norm"):
        axis = options.get("axis", -1)
        axes = range(ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        return [value % ndim for value in axes]
    batch = options.get("batch_axis", 0) if case.norm.function != "batch_norm" else None
    kept = {
        options.get("channel_axis", 1) % ndim,
        *(() if batch is None else (batch,) if isinstance(batch, int) else batch),
    }
    return [axis for axis in range(ndim) if axis not in kept]
