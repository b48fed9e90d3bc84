"""python -m benchmarks numpy [--dtype float32] [--rounds 15] [--json FILE]."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import numpy_alone


def main() -> None:
    """Run a benchmark, print its table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Timings as ratios measured in one run.")
    parser.add_argument("what", choices=["numpy"], help="numpy: NumPy alone against the five-line NumPy formula")
    parser.add_argument("--dtype", action="append", choices=["float16", "float32", "float64"], help="default: float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'norm':14}{'direction':10}{'shape':21}{'dtype':9}{'ns/element':>11}{'five lines / ours':>19}   quartiles")
    for dtype in options.dtype or ["float32"]:
        for case in numpy_alone.cases(dtype):
            pair = numpy_alone.run(case, options.rounds)
            shape = case.x.shape
            low, high = pair.spread
            what = f"{case.name:14}{case.direction:10}{shape!s:21}{dtype:9}"
            time = f"{pair.ours / case.x.size * 1e9:11.2f}{pair.ratio:19.2f}   {low:.2f} to {high:.2f}"
            print(what + time, flush=True)
            rows.append(
                {"norm": case.name, "direction": case.direction, "shape": shape, "dtype": dtype, **pair._asdict()}
            )
    for direction in ("forward", "both"):
        ratios = [row["ratio"] for row in rows if row["direction"] == direction]
        print(f"geometric mean, {direction}: {statistics.geometric_mean(ratios):.2f}")
    overhead = numpy_alone.overhead()
    for name, microseconds in overhead.items():
        print(f"{microseconds:8.2f} µs  {name}")
    if options.json:
        machine = {"python": platform.python_version(), "numpy": np.__version__, "processor": platform.machine()}
        result = {"machine": machine, "cases": rows, "overhead_us": overhead}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
