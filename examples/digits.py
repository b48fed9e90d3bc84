"""Handwritten digits, learned with any array library and any norm, without automatic differentiation.

    python examples/digits.py --array-library numpy|cupy|torch|jax --norm batch|group|layer|instance|rms|none
    python examples/digits.py --norm batch --save digits.safetensors
    python examples/digits.py --norm batch --load digits.safetensors --array-library jax
    python examples/digits.py --picture losses.png
    python examples/digits.py --picture-batch-sizes batch_sizes.png

The command line and what it prints. The network is in digits_network.py, its training in digits_training.py, the two
pictures in digits_pictures.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import digits_pictures
from digits_network import NORMS, Network, last_edge
from digits_training import (
    BATCH_SIZE,
    EPOCHS,
    NAMESPACES,
    Digits,
    Trained,
    accuracy,
    load_data,
    namespace,
    predict,
    train,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import anynorm as an

BATCH_SIZES = (2, 4, 8, 32, 128)
NORMS_AGAINST_BATCH_SIZE = ("batch", "group", "layer", "none")
BLOCKS = (3, 4)  # the last images have 2 x 2 places, or a single one


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        xp = namespace(options.array_library)
        digits = load_data(xp)
        if options.batch_size > digits.labels.shape[0]:
            msg = f"--batch-size {options.batch_size} is more than the {digits.labels.shape[0]} samples there are"
            raise ValueError(msg)
        if options.picture is not None:
            losses_of_norms(options, digits, xp)
        elif options.picture_batch_sizes is not None:
            against_batch_size(options, digits, xp)
        else:
            one_network(options, digits, xp)
    except (ImportError, OSError, ValueError) as error:  # a library or a file that is not there, or does not fit
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="digits.py", description="Train a small convolutional network on handwritten digits."
    )
    parser.add_argument("--array-library", choices=NAMESPACES, default="numpy")
    parser.add_argument("--norm", choices=NORMS, default="batch")
    parser.add_argument("--epochs", type=_positive, default=EPOCHS)
    parser.add_argument("--batch-size", type=_positive, default=BATCH_SIZE)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the order of the samples")
    parser.add_argument("--seeds", type=_positive, default=3, help="how many, for --picture-batch-sizes")
    parser.add_argument("--json", action="store_true", help="print numbers as JSON instead of a table")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--save", type=Path, metavar="FILE", help="write the trained weights, by safetensors")
    task.add_argument("--load", type=Path, metavar="FILE", help="evaluate saved weights instead of training")
    task.add_argument("--picture", type=Path, metavar="FILE", help="train with every norm and draw the losses")
    task.add_argument(
        "--picture-batch-sizes",
        type=Path,
        metavar="FILE",
        help=f"train with batches of {', '.join(map(str, BATCH_SIZES))} and draw the accuracy (ten minutes)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{number} is not positive"
        raise argparse.ArgumentTypeError(msg)
    return number


def one_network(options: argparse.Namespace, digits: Digits, xp: Any) -> None:
    """Train one network or load it, and say how well it reads what was held out."""
    start = time.perf_counter()
    if options.load is None:
        with _progress(options.epochs) as advance:
            network, losses = _train(options, digits, xp, advance)
    else:
        network, losses = Network(options.norm, xp), []
        network.load_state_dict(an.load_state(options.load))
    seconds = time.perf_counter() - start
    predictions = predict(network, digits.held_out_images)
    part = accuracy(predictions, digits.held_out_labels)
    if options.save is not None:
        an.save_state(network.state_dict(), options.save)
    if options.json:
        found = {"array_library": options.array_library, "norm": options.norm, "accuracy": part, "losses": losses}
        _print_json(found | {"seconds": round(seconds, 1), "predictions": predictions})
        return
    shown = [f"{losses[0]:.4f}", f"{losses[-1]:.4f}", f"{seconds:.1f}"] if losses else ["-"] * 3
    _table([[options.array_library, options.norm, *shown, f"{100 * part:.1f} %"]])


def losses_of_norms(options: argparse.Namespace, digits: Digits, xp: Any) -> None:
    """Train a network with each norm, and draw the losses."""
    rows = []
    losses: dict[str, list[float]] = {}
    found: dict[str, Any] = {}
    with _progress(options.epochs * len(NORMS)) as advance:
        for norm in NORMS:
            start = time.perf_counter()
            trained = _train(options, digits, xp, advance, norm=norm)
            seconds = time.perf_counter() - start
            part = accuracy(predict(trained.network, digits.held_out_images), digits.held_out_labels)
            losses[norm] = trained.losses
            found[norm] = {"accuracy": part, "losses": trained.losses}  # the same on each run, so without the seconds
            ends = [f"{trained.losses[0]:.4f}", f"{trained.losses[-1]:.4f}"]
            rows.append([options.array_library, norm, *ends, f"{seconds:.1f}", f"{100 * part:.1f} %"])
    digits_pictures.draw_losses(options.picture, losses)
    if options.json:
        asked = {"array_library": options.array_library, "batch_size": options.batch_size, "seed": options.seed}
        _print_json(asked | {"norms": found})
    else:
        _table(rows)


def against_batch_size(options: argparse.Namespace, digits: Digits, xp: Any) -> None:
    """Train networks with small and large batches, all for the same number of epochs, and draw the accuracies."""
    cases = [(blocks, norm, size) for blocks in BLOCKS for norm in NORMS_AGAINST_BATCH_SIZE for size in BATCH_SIZES]
    accuracies: dict[tuple[int, str, int], list[float]] = {}
    with _progress(len(cases) * options.seeds * options.epochs) as advance:
        for case in cases:
            blocks, norm, size = case
            accuracies[case] = []
            for seed in range(options.seed, options.seed + options.seeds):
                changes = {"norm": norm, "batch_size": size, "seed": seed}
                network, _ = _train(options, digits, xp, advance, blocks=blocks, **changes)
                part = accuracy(predict(network, digits.held_out_images), digits.held_out_labels)
                accuracies[case].append(part)
    digits_pictures.draw_batch_sizes(options.picture_batch_sizes, accuracies)
    if options.json:
        runs = [
            {"blocks": blocks, "norm": norm, "batch_size": size, "accuracies": each}
            for (blocks, norm, size), each in accuracies.items()
        ]
        seeds = list(range(options.seed, options.seed + options.seeds))
        _print_json({"array_library": options.array_library, "epochs": options.epochs, "seeds": seeds, "runs": runs})
        return
    for blocks in BLOCKS:
        edge = last_edge(blocks)
        title = f"{blocks} blocks, last images {edge} x {edge}: held out, mean over the seeds"
        table = Table("norm", *[f"batch of {size}" for size in BATCH_SIZES], title=title)
        for norm in NORMS_AGAINST_BATCH_SIZE:
            table.add_row(norm, *[f"{100 * fmean(accuracies[blocks, norm, size]):.1f} %" for size in BATCH_SIZES])
        Console().print(table)


def _train(
    options: argparse.Namespace,
    digits: Digits,
    xp: Any,
    advance: Callable[[str], None],
    *,
    blocks: int = 3,
    **changes: Any,
) -> Trained:
    """Train as the options say, but for the changes."""
    used = {name: getattr(options, name) for name in ("norm", "epochs", "batch_size", "seed")} | changes

    def report(epoch: int, loss: float) -> None:
        advance(f"{used['norm']}, batch of {used['batch_size']}, epoch {epoch + 1}, loss {loss:.4f}")

    return train(digits, xp=xp, blocks=blocks, report=report, **used)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show a line on stderr, if that is a terminal; yield the function that tells it what is done."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda words: bar.update(task, advance=1, description=words)


def _table(rows: list[list[str]]) -> None:
    table = Table("array library", "norm", "first loss", "last loss", "seconds", "held out")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
