"""The picture of the benchmark of whole models. Draws results; measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.models import COMPILED, EAGER, MEASURED, STEPS, ordered
from benchmarks.picture import dots


def draw(target: Path, result: dict[str, Any]) -> None:
    """Write the picture of a result, as `models.measure` or `rows.read` returns it, as a PNG."""
    pairs = ordered(result["pairs"])
    names = list(dict.fromkeys([row["problem"] for row in pairs]))
    words = {EAGER: "eager", MEASURED: "with measure=batch", COMPILED: "under torch.compile"}
    panels = {step: f"{step} step" for step in STEPS}
    dots(target, "Times as fast after accelerate", pairs, names, result["machine"], ("peer", words), panels)
