"""The kernel that makes numbers of C of elements in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from anynorm_numba._vectors import BYTES, I64, STEP, Emitter, loop


def _emit_widen(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    n, source, target = values

    def take(j: ir.Value, mask: ir.Value | None) -> None:
        found = emitter.read_stored(emitter.at(source, j, BYTES[emitter.stored]), STEP, mask)
        emitter.write(found.value, emitter.at(target, j, BYTES[emitter.computed]), mask)

    emitter.over(I64(0), n, STEP, take)


# widen(kind, n, source, target): target[j] = source[j].
widen = loop(["n", "source", "target"], _emit_widen)


# What a task is called with: the first length stands where others have the address of a geometry.
def widen_two(
    kind: Any,
    phase: int,  # noqa: ARG001
    index: int,  # noqa: ARG001
    n: int,
    source: int,
    target: int,
    other_n: int,
    other_source: int,
    other_target: int,
    a5: int,  # noqa: ARG001
    a6: int,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> None:
    """Make numbers of C of n elements, and of so many others."""
    widen(kind, n, source, target)
    widen(kind, other_n, other_source, other_target)
