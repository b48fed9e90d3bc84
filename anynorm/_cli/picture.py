"""The picture of `compare`: per norm, which values share a statistic, and what that does to the channels.

Draws what was measured; measures nothing but histograms.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from anynorm._cli import UsageError
from anynorm._cli.data import Data
from anynorm._cli.norms import Layout, Norm, counted
from anynorm._core.files import write_png
from anynorm._reference import NumPyArray

# More channels than this would not be told apart; more values would not change a histogram.
_MOST_CHANNELS, _MOST_VALUES, _MOST_BINS = 12, 200_000, 120

# The block's edges on paper: one step along the samples, the channels, the places.
_SAMPLES, _CHANNELS, _PLACES = np.asarray([-0.80, 0.42]), np.asarray([0.88, 0.30]), np.asarray([0.0, 1.0])

STRONG, _PALE, _LINE = {"left": "#c8502b", "right": "#e2663c", "top": "#f08a62"}, ("#f4f5f7", "#dfe3e9"), "#8a94a3"


def draw(target: Path, data: Data, norms: list[Norm], outputs: list[Any]) -> None:
    """Write the picture. An output is None where no library gave one."""
    columns = 1 + len(norms)
    figure = Figure(figsize=(3.0 * columns, 8.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, columns, height_ratios=(1.0, 1.45))
    source = data.source if len(data.source) <= 90 else f"...{data.source[-87:]}"
    title = f"{source}: {data.x.dtype.name} {data.layout.shape} = ({', '.join(data.layout.axis_names)})\n"
    figure.suptitle(title, fontsize=14, parse_math=False)  # a file's name may hold dollars
    count = data.layout.channels
    channels = sorted(set(np.linspace(0, count - 1, min(count, _MOST_CHANNELS)).round().astype(int).tolist()))
    before = _values(data.x, data.layout, channels)
    _draw_block(axes[0, 0], data.layout, None)
    _head(axes[0, 0], "Before", f"{counted(data.layout.shape[0], 'sample')} of {counted(count, 'channel')}")
    _draw_distributions(axes[1, 0], before, _limits([before]))
    axes[1, 0].set_xlabel("value")
    axes[1, 0].set_yticks(range(len(channels)), [data.channel_names[channel] for channel in channels], fontsize=9)
    after = [None if y is None else _values(y, data.layout, channels) for y in outputs]
    limits = _limits([values for values in after if values is not None])
    for column, (norm, values) in enumerate(zip(norms, after, strict=True), start=1):
        _draw_block(axes[0, column], data.layout, norm)
        _head(axes[0, column], norm.title, _words(norm, data.layout))
        if values is None:
            axes[1, column].axis("off")
        else:
            _draw_distributions(axes[1, column], values, limits)
            axes[1, column].set_xlabel("normalized value")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a letter of a file's name that the font lacks is drawn as a box
            write_png(target, figure)
    except OSError as error:
        msg = f"--picture {target} cannot be written: {error}"
        raise UsageError(msg) from error


def _head(axes: Axes, title: str, words: str) -> None:
    axes.set_title(f"{title}\n", fontsize=14, fontweight="bold", pad=34)
    axes.annotate(
        words, (0.5, 1), xytext=(0, 44), xycoords="axes fraction", textcoords="offset points", ha="center", va="top",
        fontsize=9.5, color="#3d4550", linespacing=1.4,
    )  # fmt: skip


def _words(norm: Norm, layout: Layout) -> str:
    several = norm.statistics != 1
    centred, uncentred = ("means and variances", "mean squares") if several else ("mean and variance", "mean square")
    measured = uncentred if norm.name == "rms_norm" else centred
    share = "each of" if several else "of"
    return f"{norm.words}\n{norm.statistics} {measured},\n{share} {counted(norm.set_size(layout), 'value')}"


def _draw_block(axes: Axes, layout: Layout, norm: Norm | None) -> None:
    """Draw a batch as a block of samples, channels and places, with the values of one statistic coloured."""
    samples, channels = min(layout.shape[0], 5), min(layout.channels, _MOST_CHANNELS)
    group = max(1, round(channels / layout.groups))
    # About as wide as it is high, however many channels there are.
    along_n, along_c = _SAMPLES * 2.2 / max(samples, 1), _CHANNELS * 3.0 / max(channels, 1)
    places = 1 if not layout.places else 4
    up = _PLACES * (2.4 / 4)

    def colour(face: str, n: int, c: int) -> str:
        if norm is None:
            return _PALE[0]
        index = set_of(norm.name, n, c, group)
        if not any(index):
            return STRONG[face]
        return _PALE[sum(index) % 2]

    def cell(face: str, corner: NumPyArray, first: NumPyArray, second: NumPyArray, n: int, c: int) -> None:
        points = [corner, corner + first, corner + first + second, corner + second]
        axes.add_patch(Polygon(points, facecolor=colour(face, n, c), edgecolor=_LINE, linewidth=0.6))

    for place in range(places):
        for n in range(samples):
            cell("left", n * along_n + place * up, along_n, up, n, 0)
        for c in range(channels):
            cell("right", c * along_c + place * up, along_c, up, 0, c)
    for n in range(samples):
        for c in range(channels):
            cell("top", n * along_n + c * along_c + places * up, along_n, along_c, n, c)
    _label(axes, samples * along_n / 2, f"N = {layout.shape[0]}", "right")
    _label(axes, channels * along_c / 2, f"C = {layout.channels}", "left")
    if layout.places:
        names = [f"{layout.axis_names[axis]} = {layout.shape[axis]}" for axis in layout.places]
        axes.annotate("\n".join(names), tuple(channels * along_c + places * up / 2 + [0.1, 0]), va="center", fontsize=8)
    axes.set_aspect("equal", anchor="S")
    axes.autoscale_view()
    axes.axis("off")


def set_of(name: str, n: int, c: int, group: int) -> tuple[int, ...]:
    """Return which set the values of channel c of sample n belong to; the one in front is all zeros."""
    match name:
        case "batch_norm":
            return (c,)
        case "instance_norm":
            return (n, c)
        case "group_norm":
            return (n, c // group)
        case _:
            return (n,)


def _label(axes: Axes, where: NumPyArray, text: str, side: str) -> None:
    axes.annotate(text, tuple(where - [0, 0.15]), ha=side, va="top", fontsize=9)


def _values(a: NumPyArray, layout: Layout, channels: list[int]) -> list[Any]:
    """Return the finite values of the shown channels, evenly thinned where there are very many."""
    values = []
    for channel in channels:
        flat = np.take(a, channel, axis=layout.channel_axis).reshape(-1)
        flat = flat[:: max(1, flat.size // _MOST_VALUES)].astype(np.float64)
        # Beyond, even the axis of a plot overflows.
        values.append(np.clip(flat[np.isfinite(flat)], -1e150, 1e150))
    return values


def _limits(distributions: list[list[Any]]) -> tuple[float, float]:
    """Return a range that holds most values of every channel, and 0."""
    ends = [np.quantile(v, (0.02, 0.98)) for values in distributions for v in values if v.size]
    low = min([float(end[0]) for end in ends], default=-1.0)
    high = max([float(end[1]) for end in ends], default=1.0)
    margin = 0.04 * (high - low) or 1.0
    return min(low - margin, 0), max(high + margin, 0)


def _draw_distributions(axes: Axes, channels: list[Any], limits: tuple[float, float]) -> None:
    """Draw one histogram above the other, each as high as the next."""
    palette = colormaps["viridis"](np.linspace(0.1, 0.85, len(channels)))
    values_each = max([values.size for values in channels], default=0)
    bins = int(np.clip(2 * np.sqrt(values_each), 16, _MOST_BINS))
    edges = np.linspace(*limits, bins + 1)
    for row, values in enumerate(channels):
        counts, _ = np.histogram(values, edges)
        heights = counts / max(counts.max(), 1) * 0.85
        axes.stairs(row - heights, edges, baseline=row, fill=True, color=palette[row], alpha=0.75, linewidth=0)
        axes.stairs(row - heights, edges, baseline=row, color=palette[row], linewidth=0.8)
    axes.axvline(0, color=_LINE, linewidth=0.8, zorder=0)
    axes.set_xlim(*limits)
    axes.set_ylim(len(channels) - 0.9, -1)
    axes.set_yticks([])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
