"""The two pictures of the digits: loss against epoch, and accuracy against batch size. Draws what it is given."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from digits_network import last_edge
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from anynorm._core.files import write_png

# Told apart by marker and dash also where there is no colour; Okabe and Ito's palette for those who see fewer.
STYLES: dict[str, dict[str, Any]] = {
    "batch": {"color": "#000000", "marker": "o", "linestyle": "-"},
    "group": {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    "layer": {"color": "#D55E00", "marker": "^", "linestyle": "-."},
    "instance": {"color": "#009E73", "marker": "v", "linestyle": ":"},
    "rms": {"color": "#CC79A7", "marker": "D", "linestyle": (0, (6, 2))},
    "none": {"color": "#7f7f7f", "marker": "x", "linestyle": (0, (1, 2))},
}


def draw_losses(target: Path, losses: dict[str, list[float]]) -> None:
    """Write the picture of the mean loss in each epoch, by norm."""
    figure, (axes,) = _figure(1)
    for norm, of_epochs in losses.items():
        axes.plot(range(1, len(of_epochs) + 1), of_epochs, label=norm, **STYLES[norm])
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean cross entropy in training (nats)")
    axes.set_title("Loss by norm")
    axes.legend(title="norm")
    write_png(target, figure)


def draw_batch_sizes(target: Path, accuracies: dict[tuple[int, str, int], list[float]]) -> None:
    """Write the picture of accuracies, each by (blocks, norm, batch size) and one for each seed.

    The line goes through the means, the bars from the least to the greatest.
    """
    panels = sorted({blocks for blocks, _, _ in accuracies})
    figure, each_axes = _figure(len(panels))
    for blocks, axes in zip(panels, each_axes, strict=True):
        _draw_panel(
            axes, {(norm, size): runs for (accuracy, norm, size), runs in accuracies.items() if accuracy == blocks}
        )
        edge = last_edge(blocks)
        values = "1 value" if edge == 1 else f"{edge**2} values"
        axes.set_title(f"{blocks} blocks, last images {edge} × {edge}:\n{values} of a channel in each sample")
    each_axes[0].set_ylabel("held-out digits read right (%)")
    each_axes[-1].legend(title="norm", loc="lower right")
    write_png(target, figure)


def _draw_panel(axes: Axes, accuracies: dict[tuple[str, int], list[float]]) -> None:
    sizes = sorted({size for _, size in accuracies})
    for index, norm in enumerate(dict.fromkeys([norm for norm, _ in accuracies])):
        runs = [[100 * part for part in accuracies[norm, size]] for size in sizes]
        means = [fmean(each) for each in runs]
        below = [mean - min(each) for mean, each in zip(means, runs, strict=True)]
        above = [max(each) - mean for mean, each in zip(means, runs, strict=True)]
        beside = [size * 1.05 ** (index - 1.5) for size in sizes]  # so that no bar hides another
        axes.errorbar(beside, means, yerr=[below, above], label=norm, capsize=3, **STYLES[norm])
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("batch size (samples)")


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.2 * panels if panels > 1 else 6.4, 4.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    each_axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for axes in each_axes:
        axes.grid(alpha=0.3)
    return figure, each_axes
