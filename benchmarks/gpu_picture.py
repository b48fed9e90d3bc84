"""The picture of the GPU benchmark: percent of a copy against the length of rows, and as bars for the other norms.

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
from benchmarks.gpu_peers import NATIVE, PLAIN
from benchmarks.gpu_problems import AWKWARD, BACKWARD, DTYPES, FORWARD, LENGTHS, NETWORKS, ROWS
from benchmarks.limit import COPY
from benchmarks.problems import ALONG_ROWS, NORMS

Row = dict[str, Any]

_COLOURS = dict(zip(DTYPES, ("#c8502b", "#2f6690", "#3a7d44"), strict=True))
_BARS = {FORWARD: "#c8502b", BACKWARD: "#2f6690"}
_GREY, _PALE = "#8a94a3", "#f0f2f5"
_PEERS = {"torch": NATIVE.name, "cupy": PLAIN.name}
_TARGETS = {FORWARD: 92, BACKWARD: 85}


def draw(target: Path, result: dict[str, Any]) -> None:
    """Write the picture of a result, as `gpu.measure` or `rows.read` returns it, as a PNG.

    It shows torch's tensors, or CuPy's arrays where torch was not timed.
    """
    pairs: list[Row] = result["pairs"]
    arrays = "torch" if any(row["arrays"] == "torch" and row["peer"] == COPY for row in pairs) else "cupy"
    pairs = [row for row in pairs if row["arrays"] == arrays]
    bars = _with_bars(pairs)
    # 900 pixels wide where it is shown; twice as fine for screens that can.
    heights = (2.3, 2.3, 1.2 + 0.24 * len(bars))
    figure = Figure(figsize=(9.0, 1.2 + sum(heights)), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Percent of the bandwidth of a copy on the device", fontsize=13, fontweight="bold")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(heights[0] + heights[1], heights[2]))
    upper, lower = parts[:, 0]
    panels = upper.subplots(2, 2, sharex=True, sharey=True, squeeze=False)
    for row, norm in zip(panels, ALONG_ROWS, strict=True):
        for axes, direction in zip(row, _TARGETS, strict=True):
            _lines(axes, pairs, norm, direction, _PEERS[arrays])
    for axes in panels[1]:
        axes.set_xlabel("row length", fontsize=9.5)
    handles, labels = panels[0][0].get_legend_handles_labels()
    if handles:
        upper.legend(handles, labels, loc="outside upper right", ncols=4, frameon=False, fontsize=9)
    if bars:
        lower.suptitle(DTYPES[0], fontsize=10.5, x=0.01, ha="left")
        _draw_bars(lower.subplots(), pairs, bars, _PEERS[arrays])
    figure.supxlabel(_machine(result["machine"], arrays), fontsize=9, color="#3d4550", x=0.01, ha="left")
    write_png(target, figure)


def _lines(axes: Axes, pairs: Sequence[Row], norm: str, direction: str, peer: str) -> None:
    """Draw a line for each dtype, and a pale one for the peer, whose percentage follows from both ratios."""
    lengths = {str(problem): problem.shape[1] for problem in ROWS if problem.norm == norm}
    rows = [row for row in pairs if row["problem"] in lengths and row["direction"] == direction]
    for dtype, colour in _COLOURS.items():
        ours = {lengths[row["problem"]]: row for row in rows if row["peer"] == COPY and row["dtype"] == dtype}
        theirs = {lengths[row["problem"]]: row for row in rows if row["peer"] == peer and row["dtype"] == dtype}
        at = sorted(ours)
        axes.plot(at, [ours[n]["percent"] for n in at], color=colour, marker="o", markersize=3.5, label=dtype, zorder=3)
        both = [n for n in at if n in theirs]
        axes.plot(
            both, [ours[n]["percent"] / theirs[n]["ratio"] for n in both], color=colour, alpha=0.35, linestyle="--"
        )
    axes.plot([], [], color=_GREY, linestyle="--", label=peer)
    axes.axhline(_TARGETS[direction], color="black", linewidth=0.8, zorder=1)
    axes.set_title(f"{NORMS[norm]}, {direction}", fontsize=10.5)
    axes.set_xscale("log", base=2)
    axes.set_xlim(LENGTHS[0] / 1.3, LENGTHS[-1] * 1.3)
    axes.set_xticks(LENGTHS[::2])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}" if n < 1024 else f"{n / 1024:g} K"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 110)
    _plain(axes)


def _with_bars(pairs: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the problem and dtype of each pair of bars: of bfloat16 alone, or the picture would be too long."""
    timed = {(row["problem"], row["dtype"]) for row in pairs if row["peer"] == COPY}
    names = [(str(problem), problem.dtype) for problem in (*NETWORKS, *AWKWARD)]
    return [name for name in names if name in timed and name[1] == DTYPES[0]]


def _draw_bars(axes: Axes, pairs: Sequence[Row], bars: Sequence[tuple[str, str]], peer: str) -> None:
    """Draw a bar for each direction, and a tick where the peer is."""
    for offset, (direction, colour) in zip((-0.2, 0.2), _BARS.items(), strict=True):
        found = {(row["problem"], row["dtype"], row["peer"]): row for row in pairs if row["direction"] == direction}
        at = [(i, found[*name, COPY]["percent"], found.get((*name, peer))) for i, name in enumerate(bars)
              if (*name, COPY) in found]  # fmt: skip
        heights, widths = [i + offset for i, _, _ in at], [percent for _, percent, _ in at]
        axes.barh(heights, widths, height=0.36, color=colour, label=direction, zorder=2)
        ticks = [(i + offset, percent / pair["ratio"]) for i, percent, pair in at if pair is not None]
        axes.scatter([x for _, x in ticks], [y for y, _ in ticks], marker="|", s=60, color="black", zorder=3)
    axes.scatter([], [], marker="|", s=60, color="black", label=peer)
    axes.set_yticks(range(len(bars)), [problem for problem, _ in bars], fontsize=8.5)
    axes.set_ylim(max(len(bars), 1) - 0.5, -0.5)
    axes.set_xlim(0, 110)
    axes.tick_params(axis="y", length=0)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8.5)
    axes.grid(color=_GREY, alpha=0.35, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)


def _machine(machine: dict[str, Any], arrays: str) -> str:
    versions = [f"{name} {machine['packages'][name]}" for name in ("torch", "cupy") if machine["packages"].get(name)]
    return ", ".join([machine["card"] or "unknown card", f"driver {machine['driver']}", *versions, f"{arrays} arrays"])
