"""One norm on one batch through several libraries: time, error, mean and spread, and whether the batch matters.

Measures and reports as plain values. Nothing is printed or drawn here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from anynorm import _reference
from anynorm._cli.data import Data
from anynorm._cli.libraries import ArrayLibrary
from anynorm._cli.norms import LARGEST_SET, Layout, Norm, judge, spread
from anynorm._reference import NumPyArray

# Time of one call: the median of calls that fill this many seconds.
_SECONDS, _MOST_CALLS = 0.15, 50

# So many samples are normalized alone, to see whether the others mattered.
_SAMPLES_ALONE = 8


@dataclass
class Spread:
    """Mean and standard deviation of all finite values, and the smallest and largest of the channels' means."""

    mean: float
    std: float
    channel_means: tuple[float, float]


@dataclass
class LibraryResult:
    """One norm on one library."""

    library: str
    path: str | None = None
    reason: str | None = None  # why no faster path
    seconds: float | None = None  # median time of one call
    calls: int = 0  # that the median is of
    ratio_to_numpy: float | None = None
    error: float | None = None  # the largest, in units of the contract's bound; None where it cannot be judged
    problem: str | None = None  # why there is no result


@dataclass
class NormResult:
    """One norm: what it reduces, what it does, and how the libraries did."""

    norm: str
    words: str
    reduces: str
    axes: tuple[int, ...]
    statistics: int
    values_per_statistic: int
    parameters: int
    after: Spread | None = None
    batch_matters: bool | None = None  # None where there is one sample
    batch_difference: float | None = None  # of samples alone and in the batch, in units; None where refused alone
    largest_difference: float | None = None  # between any two libraries, in units
    libraries: list[LibraryResult] = field(default_factory=list)


def measure(
    norm: Norm, data: Data, libraries: list[ArrayLibrary], step: Callable[[str], None]
) -> tuple[NormResult, Any]:
    """Return the result of one norm, and its output on the first library that gives one (else None)."""
    size = norm.set_size(data.layout)
    reduces = norm.reduced_names(data.layout)
    result = NormResult(norm.name, norm.words, reduces, norm.reduced, norm.statistics, size, norm.parameters)
    ran = []
    for library in libraries:
        step(f"{norm.title} on {library.name}")
        outcome = LibraryResult(library.name)
        result.libraries.append(outcome)
        try:
            with library.setting():
                ran.append((library, outcome, _run(norm, library, data.x, outcome)))
        except Exception as error:  # whatever a library raises is a result to show beside the others'
            outcome.problem = f"{type(error).__name__}: {error}"
    numpy = next((outcome.seconds for outcome in result.libraries if outcome.library == "numpy"), None)
    for outcome in result.libraries:
        if numpy and outcome.seconds is not None:
            outcome.ratio_to_numpy = outcome.seconds / numpy
    if not ran:
        return result, None
    step(f"{norm.title} against the exact result")
    first, _, y = ran[0]
    result.after = spread_of(y, data.layout)
    if size <= LARGEST_SET:
        _judge(norm, data, result, [(outcome, output) for _, outcome, output in ran])
        with first.setting():
            _normalize_alone(norm, first, data, y, result)
    return result, y


def spread_of(a: NumPyArray, layout: Layout) -> Spread:
    """Return mean and spread of the finite values, in double precision."""
    channels = np.moveaxis(a, layout.channel_axis, 0)
    # Relative to the largest magnitude, so that no sum of squares overflows.
    peak = max([float(np.abs(values).max(initial=0)) for values in _finite(channels)]) or 1.0
    sums, counts = zip(*[((values / peak).sum(), values.size) for values in _finite(channels)], strict=True)
    if not sum(counts):
        return Spread(np.nan, np.nan, (np.nan, np.nan))
    mean = sum(sums) / sum(counts)
    squares = sum([np.square(values / peak - mean).sum() for values in _finite(channels)])
    means = [float(total) / count * peak for total, count in zip(sums, counts, strict=True) if count]
    return Spread(float(mean * peak), float(np.sqrt(squares / sum(counts)) * peak), (min(means), max(means)))


def _finite(channels: NumPyArray) -> Iterator[NumPyArray]:
    """Yield the finite values of each channel in double precision, one channel after another to save memory."""
    for channel in channels:
        wide = channel.astype(np.float64)
        yield wide[np.isfinite(wide)]


def _run(norm: Norm, library: ArrayLibrary, x: NumPyArray, outcome: LibraryResult) -> NumPyArray:
    """Time the norm on one library, and return its output as a NumPy array."""
    array = library.of_numpy(x)
    outcome.path, outcome.reason = norm.explain(array)

    def call() -> Any:
        return library.finish(norm(array))

    y = library.to_numpy(call())
    outcome.seconds, outcome.calls = _time(call)
    return y


def _time(call: Callable[[], Any]) -> tuple[float, int]:
    """Return the median time of a call that has run before, and of how many calls it is."""
    times: list[float] = []
    while not times or (sum(times) < _SECONDS and len(times) < _MOST_CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times), len(times)


def _judge(norm: Norm, data: Data, result: NormResult, outputs: list[tuple[LibraryResult, NumPyArray]]) -> None:
    """Fill in the errors against the exact result, and the largest difference between libraries."""
    errors, difference = judge(norm, data.x, [y for _, y in outputs], data.layout)
    if _reference.CHECKS_FLOAT64 or data.x.dtype != np.float64:
        for (outcome, _), error in zip(outputs, errors, strict=True):
            outcome.error = error
    if len(outputs) > 1:
        result.largest_difference = difference


def _normalize_alone(norm: Norm, library: ArrayLibrary, data: Data, y: NumPyArray, result: NormResult) -> None:
    """Normalize some samples without the others, and see whether they come out as they did among them."""
    samples = data.layout.shape[0]
    if samples == 1:
        return
    largest = 0.0
    for index in np.unique(np.linspace(0, samples - 1, _SAMPLES_ALONE).astype(int)):
        here = slice(index, index + 1)
        try:
            alone = library.to_numpy(library.finish(norm(library.of_numpy(data.x[here]))))
        except ValueError:  # batch norm refuses one value per channel
            result.batch_matters = True
            return
        largest = max(largest, spread([alone, y[here]], norm.reference(data.x[here]).bound))
    # Each of the two may be one unit off the exact value.
    result.batch_matters, result.batch_difference = largest > 2, largest
