"""Pictures of ratios to torch's own operators; that of the CPU benchmark, for the shapes of its first table.

Draws results; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from anynorm._core.files import write_png
from benchmarks.peers import TORCH
from benchmarks.problems import NAMED
from benchmarks.summary import ARRAYS, DIRECTIONS

_COLOURS = ("#c8502b", "#2f6690", "#3a7d44")
_GREY, _PALE = "#8a94a3", "#f0f2f5"

# Where ratios are read; fewer where they lie far apart, so that the numbers do not meet.
_TICKS, _FEW_TICKS, _FAR = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50), (0.01, 0.1, 1, 10, 100), 100
# And more where they lie close.
_CLOSE_TICKS, _CLOSE = (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6, 2), 3


def draw(target: Path, result: dict[str, Any]) -> None:
    """Write the picture of a result, as `cpu.measure` or `rows.read` returns it, as a PNG."""
    named = [str(problem) for problem in NAMED]
    rows = [row for row in result["pairs"] if row["peer"] == TORCH.name and row["dtype"] == "float32"]
    rows = [row for row in rows if row["problem"] in named]
    title = "Times as fast as torch's own operators, float32"
    dots(target, title, rows, named, result["machine"], ("arrays", ARRAYS))


def dots(
    target: Path,
    title: str,
    rows: list[dict[str, Any]],
    problems: Sequence[str],
    machine: dict[str, Any],
    series: tuple[str, dict[str, str]],
    panels: dict[str, str] = DIRECTIONS,
) -> None:
    """Draw ratios as dots: a panel for each direction, a line for each problem, a colour for each series.

    `series` is the key that tells them apart, and the words for its values; `panels` are the words for the directions.
    """
    shown = [problem for problem in problems if any(row["problem"] == problem for row in rows)]
    # 900 pixels wide where it is shown; twice as fine for screens that can.
    figure = Figure(figsize=(9.0, 1.7 + 0.32 * len(shown)), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    both = figure.subplots(1, 2, sharey=True, sharex=True)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    for axes, (direction, words) in zip(both, panels.items(), strict=True):
        _panel(axes, [row for row in rows if row["direction"] == direction], shown, *series)
        axes.set_title(words, fontsize=11)
    _scale(both[0], rows)
    both[0].set_yticks(range(len(shown)), shown, fontsize=9.5)
    both[0].set_ylim(max(len(shown), 1) - 0.5, -0.5)
    handles, labels = both[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower right", ncols=3, frameon=False, fontsize=10)
    figure.supxlabel(_machine(machine), fontsize=9, color="#3d4550", x=0.01, ha="left")
    write_png(target, figure)


def _panel(axes: Axes, rows: list[dict[str, Any]], shown: list[str], key: str, names: dict[str, str]) -> None:
    """Draw a dot for each ratio, and a line from its first to its third quartile."""
    for band in range(0, len(shown), 2):
        axes.axhspan(band - 0.5, band + 0.5, color=_PALE, zorder=0)
    axes.axvline(1, color="black", linewidth=1.2, zorder=1)
    step = 0.66 / len(names)
    for place, (colour, (name, words)) in enumerate(zip(_COLOURS, names.items(), strict=False)):
        offset = step * (place - (len(names) - 1) / 2)
        of_kind = [row for row in rows if row[key] == name]
        heights = [shown.index(row["problem"]) + offset for row in of_kind]
        axes.hlines(
            heights, [row["spread"][0] for row in of_kind], [row["spread"][1] for row in of_kind],
            color=colour, linewidth=2.2, alpha=0.45, zorder=2,
        )  # fmt: skip
        axes.scatter([row["ratio"] for row in of_kind], heights, s=30, color=colour, label=words, zorder=3)
    axes.tick_params(axis="x", labelsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_GREY, alpha=0.35, linewidth=0.6)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


def _scale(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Make the common axis of ratios logarithmic, wide enough for all of them and 1."""
    ends = [1.0, *[end for row in rows for end in (row["ratio"], *row["spread"])]]
    low, high = min(ends) / 1.2, max(ends) * 1.2
    axes.set_xscale("log")
    ticks = _CLOSE_TICKS if high / low < _CLOSE else _TICKS if high / low < _FAR else _FEW_TICKS
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _machine(machine: dict[str, Any]) -> str:
    versions = [f"{name} {machine['packages'][name]}" for name in ("torch", "numba") if machine["packages"].get(name)]
    return ", ".join([machine["processor"], f"{machine['cores']} cores", *versions])
