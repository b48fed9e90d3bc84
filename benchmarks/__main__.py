"""python -m benchmarks: the command line. What a command does is in the module of its name."""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from anynorm._cli import UsageError, piped
from benchmarks import bits, rows

_RESULTS = Path(__file__).parent / "results"
_DOCS = Path(__file__).parent.parent / "docs" / "models.md"


def main() -> int:
    """Run a benchmark, print its tables, and write rows and a picture if asked to; return the exit code."""
    options = _parser().parse_args()
    try:
        commands = {
            "numpy": _numpy,
            "cpu": _cpu,
            "gpu": _gpu,
            "models": _models,
            "prove": _prove,
            "fuzz": _fuzz,
            "bits": _bits,
            "before": _before,
            "autograd": _autograd,
            "reach": _reach,
            "jax": _jax,
            "relu": _relu,
        }
        return piped(lambda: commands[options.what](options))
    except UsageError as error:
        print(f"python -m benchmarks {options.what}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Timings as ratios measured in one run.")
    commands = parser.add_subparsers(dest="what", required=True)
    alone = commands.add_parser("numpy", help="NumPy alone, without the engine, against the five-line NumPy formula")
    alone.add_argument("--dtype", action="append", choices=["float16", "float32", "float64"], help="default: float32")
    alone.add_argument("--rounds", type=int, default=15)
    alone.add_argument("--json", type=_file, help="write the results to this file, as JSON Lines")
    cpu = commands.add_parser("cpu", help="NumPy arrays and torch tensors, against torch, others, and a copy")
    gpu = commands.add_parser("gpu", help="CuPy arrays and torch's CUDA tensors, against a copy, torch, and others")
    whole = commands.add_parser(
        "models", help="steps of whole models of timm, transformers, ..., before and after accelerate"
    )
    _choices(cpu, "cpu", "fewer rounds, and no large data: a minute or two")
    _choices(gpu, "gpu", "fewer shapes, dtypes and peers: a minute and a half, instead of eight")
    _choices(whole, "models", "two seconds for each step, instead of twelve")
    gpu.add_argument("--seconds", type=float, help="stop after about so many, the least important left out")
    whole.add_argument("--seconds", type=float, help="for each step")
    whole.add_argument("--threads", type=int, help="2; one is timed in CPU time, which others disturb less")
    whole.add_argument("--compiled", action="store_true", help="under torch.compile too, which takes half an hour")
    whole.add_argument(
        "--docs", type=_file, nargs="?", const=_DOCS, metavar="FILE", help=f"put the table into: {_DOCS}"
    )
    proof = commands.add_parser("prove", help="all that is to be proved on a machine with a GPU, in ten minutes")
    proof.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results are written")
    fuzzer = commands.add_parser("fuzz", help="calls drawn by chance, judged by the exact reference")
    fuzzer.add_argument("--seconds", type=float, default=60, help="stop after so many")
    fuzzer.add_argument("--seed", type=_seed, default=0, metavar="N", help="the first call's; the others' follow it")
    fuzzer.add_argument("--case", type=_seed, metavar="SEED", help="make this one call, and say what it is")
    fuzzer.add_argument(
        "--only", metavar="PATTERN", default="", type=_expression, help="only calls whose description matches"
    )
    fuzzer.add_argument("--libraries", metavar="NAMES", help="with commas between; default: all")
    grid = commands.add_parser("bits", help="hashes of the results of a grid of calls, compared with another version's")
    bits.add_arguments(grid)
    ways = commands.add_parser("autograd", help="what recording an operation for torch's autograd takes, in every way")
    ways.add_argument("--rounds", type=int, default=101, help="more are quieter (101)")
    eager = commands.add_parser("jax", help="eager JAX arrays on the CPU, by the engine and by XLA, timed in turn")
    eager.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float32")
    eager.add_argument("--seconds", type=float, default=3.0, help="for each call")
    fused = commands.add_parser("relu", help="norm and ReLU on tensors on the CPU, in one pass and as two calls")
    fused.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float32")
    fused.add_argument("--seconds", type=float, default=3.0, help="for each call")
    before = commands.add_parser("before", help="calls of a previous version and of this one, timed in turn")
    before.add_argument("previous", type=Path, metavar="PREVIOUS", help="a checkout, or a folder with the packages")
    before.add_argument("--rounds", type=int, default=150, help="more are quieter (150)")
    before.add_argument("--only", metavar="PATTERN", default="", type=_expression, help="only calls that match")
    before.add_argument("--cells", action="store_true", help="the cells of the command cpu instead of small calls")
    reached = commands.add_parser("reach", help="how many norm layers of other libraries accelerate takes")
    reached.add_argument("--only", metavar="PATTERN", default="", type=_expression, help="only names that match")
    return parser


def _choices(parser: argparse.ArgumentParser, what: str, quick: str) -> None:
    """Add what the CPU and the GPU benchmark have in common."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--only", metavar="PATTERN", default="", type=_expression, help="only what matches this regular expression"
    )
    parser.add_argument(
        "--list", action="store_true", help="print what would be timed, which is what the expression is matched with"
    )
    parser.add_argument("--read", metavar="FILE", type=Path, help="show the results that --json wrote; time nothing")
    for name in ("json", "picture"):
        default = _RESULTS / f"{what}.{'jsonl' if name == 'json' else 'png'}"
        parser.add_argument(
            f"--{name}", type=_file, nargs="?", const=default, metavar="FILE", help=f"write it: {default}"
        )


def _seed(text: str) -> int:
    if not text.isdecimal():
        msg = f"{text!r} is no seed, which is 0 or a positive integer."
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError) as error:  # the second for a number of repetitions
        msg = f"{text!r} is no regular expression: {error}. A parenthesis itself is written \\( there."
        raise argparse.ArgumentTypeError(msg) from None
    return text


def _file(text: str) -> Path:
    """Return where results are to be written, which is found out before minutes are spent on them."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        msg = f"{text} cannot be written: it is a folder, or its folder does not exist."
        raise argparse.ArgumentTypeError(msg)
    return path


def _chosen(items: list[Any], options: argparse.Namespace) -> list[Any]:
    if not items:
        msg = f"nothing matches {options.only!r}. Without --only, --list shows what there is."
        raise UsageError(msg)
    return items


def _check_installed(*packages: str) -> None:
    from benchmarks.machine import installed

    for package in packages:
        if not installed(package):
            msg = f"{package} is not installed. README's second command makes an environment that has all."
            raise UsageError(msg)


def _cpu(options: argparse.Namespace) -> int:
    if options.read:
        return _show(options, "picture", "report")
    from benchmarks import machine

    machine.use_cores()  # before anything starts threads

    import torch

    from benchmarks import cpu

    items = _chosen(cpu.plan(only=options.only, few=options.quick), options)
    if options.list:
        print(*items, sep="\n")
        return 0
    _check_installed("rich", "matplotlib")
    from anynorm._cli.show import progress

    torch.set_num_threads(machine.THREADS)
    with progress(lines=True) as steps:
        result = cpu.measure(items, cpu.QUICK_SECONDS if options.quick else cpu.SECONDS, steps.step)
    return _show(options, "picture", "report", result)


def _gpu(options: argparse.Namespace) -> int:
    if options.read:
        return _show(options, "gpu_picture", "gpu_report")
    from benchmarks import gpu
    from benchmarks.gpu_arrays import usable

    items = _chosen(gpu.plan(only=options.only, few=options.quick), options)
    if options.list:
        print(*items, sep="\n")
        return 0
    libraries = usable()
    if all(isinstance(library, str) for library in libraries.values()):
        reasons = "; ".join(dict.fromkeys(map(str, libraries.values())))
        msg = f"python -m benchmarks gpu: {reasons}. Nothing was timed."
        raise SystemExit(msg)
    _check_installed("rich", "matplotlib")
    from anynorm._cli.show import progress

    seconds, total = (gpu.QUICK_SECONDS, gpu.QUICK_TOTAL_SECONDS) if options.quick else (gpu.SECONDS, gpu.TOTAL_SECONDS)
    with progress(lines=True) as steps:
        result = gpu.measure(items, libraries, seconds=seconds, total=options.seconds or total, step=steps.step)
    return _show(options, "gpu_picture", "gpu_report", result)


def _models(options: argparse.Namespace) -> int:
    from benchmarks import machine

    if options.read:
        return _show(options, "models_picture", "models_report")
    machine.use_cores()  # before anything starts threads

    import torch

    from benchmarks import models

    items = _chosen(models.plan(only=options.only, compiled=options.compiled), options)
    if options.list:
        print(*items, sep="\n")
        return 0
    _check_installed("rich", "matplotlib")
    from anynorm._cli.show import progress

    torch.set_num_threads(options.threads or machine.THREADS)
    seconds = models.QUICK_SECONDS if options.quick else models.SECONDS
    with progress(lines=True) as steps:
        result = models.measure(items, options.seconds or seconds, steps.step)
    wrong = any(row["reason"].startswith(models.WRONG) for row in result["left_out"])
    return _show(options, "models_picture", "models_report", result) or int(wrong)


def _show(options: argparse.Namespace, picture: str, report: str, result: dict[str, Any] | None = None) -> int:
    """Write and print results as asked: those measured, or those of a file."""
    _check_installed("rich", "matplotlib")
    if result is None:
        try:
            result = rows.read(options.read)
        except (OSError, ValueError) as error:
            msg = f"--read {options.read} cannot be read: {error}"
            raise UsageError(msg) from None
    if options.json:
        rows.write(options.json, result)
    if options.picture:
        import_module(f"benchmarks.{picture}").draw(options.picture, result)
    shown = import_module(f"benchmarks.{report}")
    if getattr(options, "docs", None):
        shown.write(options.docs, result)
    shown.report(result)
    return 0


def _prove(options: argparse.Namespace) -> int:
    from benchmarks import prove

    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"--out {options.out} cannot be made a folder: {error.strerror}. Give a folder, or where one can be made."
        raise UsageError(msg) from None
    return prove.main(options.out)


def _fuzz(options: argparse.Namespace) -> int:
    _check_installed("rich", "ml_dtypes", "torch", "jax", "dask", "array_api_strict")
    from anynorm._cli.show import progress
    from benchmarks.fuzz import run, worker
    from benchmarks.fuzz.draw import LIBRARIES, draw
    from benchmarks.fuzz.trial import SkippedError

    libraries = options.libraries.split(",") if options.libraries else list(LIBRARIES)
    unknown = ", ".join([name for name in libraries if name not in LIBRARIES])
    if unknown:
        msg = f"there is no library {unknown}. Choose from {', '.join(LIBRARIES)}."
        raise UsageError(msg)
    if options.case is not None:
        print(draw(options.case), flush=True)
        try:
            found = worker.run_one(options.case)
        except SkippedError:
            print("nothing was judged: it cannot be made, or is wrong where refusals have no rule")
            return 0
        print(f"FINDING {found['details']}" if found else "as it should be")
        return 1 if found else 0
    began = time.monotonic()
    with progress(lines=True) as steps:
        outcome = run.fuzz(run.Options(options.seconds, options.seed, options.only, libraries), steps.step, print)
    if not outcome.calls:
        chosen = f" whose description matches {options.only!r}" if options.only else ""
        seeds = f"none of the {outcome.next_seed - options.seed} seeds from {options.seed} on is a call{chosen}"
        msg = f"nothing was tried: {seeds} on {', '.join(libraries)}."
        raise UsageError(msg)
    print(run.report(outcome, time.monotonic() - began))
    return 1 if outcome.findings else 0


def _bits(options: argparse.Namespace) -> int:
    _check_installed("ml_dtypes", "torch", "jax", "dask", "array_api_strict")
    return bits.run(options)


def _before(options: argparse.Namespace) -> int:
    from benchmarks import before

    try:
        rows = before.measure(options.previous, re.compile(options.only).search, options.rounds, cells=options.cells)
        print(before.HEAD)
        for row in rows:
            print(before.line(row), flush=True)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from None
    return 0


def _autograd(options: argparse.Namespace) -> int:
    from benchmarks import autograd

    autograd.report(autograd.measure(options.rounds))
    return 0


def _jax(options: argparse.Namespace) -> int:
    _check_installed("jax", "numba")
    from benchmarks import jax_eager

    jax_eager.report(jax_eager.rows(options.dtype, options.seconds))
    return 0


def _relu(options: argparse.Namespace) -> int:
    _check_installed("torch", "numba")
    from benchmarks import relu

    relu.report(relu.rows(options.dtype, options.seconds))
    return 0


def _reach(options: argparse.Namespace) -> int:
    from benchmarks import reach

    libraries = reach.libraries()
    if not libraries:
        msg = "none of timm, transformers, diffusers and torch_geometric is installed."
        raise UsageError(msg)
    for library in libraries:
        for line in reach.lines(library, list(reach.rows(library, options.only))):
            print(line, flush=True)
    return 0


def _numpy(options: argparse.Namespace) -> int:
    import numpy as np

    from benchmarks import numpy_alone
    from benchmarks.peers import FIVE_LINES

    numpy_alone.without_engine()
    pairs: list[dict[str, Any]] = []
    print(f"{'norm':14}{'direction':10}{'shape':21}{'dtype':9}{'ns/element':>11}{'five lines / ours':>19}   quartiles")
    for dtype in options.dtype or ["float32"]:
        for case in numpy_alone.cases(dtype):
            pair = numpy_alone.run(case, options.rounds)
            shape = case.x.shape
            low, high = pair.spread
            what = f"{case.name:14}{case.direction:10}{shape!s:21}{dtype:9}"
            time = f"{pair.ours / case.x.size * 1e9:11.2f}{pair.ratio:19.2f}   {low:.2f} to {high:.2f}"
            print(what + time, flush=True)
            names = (f"{case.name} {shape}", dtype, "numpy", case.direction, FIVE_LINES.name)
            pairs.append(dict(zip(rows.KEY, names, strict=True)) | pair._asdict())
    for direction in ("forward", "both"):
        ratios = [row["ratio"] for row in pairs if row["direction"] == direction]
        print(f"geometric mean, {direction}: {statistics.geometric_mean(ratios):.2f}")
    overhead = numpy_alone.overhead()
    for name, microseconds in overhead.items():
        print(f"{microseconds:8.2f} µs  {name}")
    if options.json:
        machine = {"python": platform.python_version(), "numpy": np.__version__, "processor": platform.machine()}
        rows.write(options.json, {"machine": machine, "overhead_us": overhead, "pairs": pairs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
