"""The kernel that casts elements in memory to the compute dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from anynorm_numba._vectors import BYTES, I64, STEP, Emitter, loop


def _emit_upcast(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    n, source, target = values

    def take(j: ir.Value, mask: ir.Value | None) -> None:
        found = emitter.read_stored(emitter.at(source, j, BYTES[emitter.stored]), STEP, mask)
        emitter.write(found.value, emitter.at(target, j, BYTES[emitter.computed]), mask)

    emitter.over(I64(0), n, STEP, take)


# upcast(dtype, n, source, target): target[j] = source[j].
upcast = loop(["n", "source", "target"], _emit_upcast)


def upcast_two(
    dtype: Any,
    phase: int,  # noqa: ARG001  every task is given one, and an index
    index: int,  # noqa: ARG001
    n: int,
    source: int,  # (n,), in the dtype
    target: int,  # (n,), in the compute dtype
    other_n: int,
    other_source: int,  # (other_n,)
    other_target: int,
    a6: int,  # noqa: ARG001
    a7: int,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> None:
    """Cast n elements to the compute dtype, and other_n others."""
    upcast(dtype, n, source, target)
    upcast(dtype, other_n, other_source, other_target)
