"""Records in memory that kernels read and write by the names of their fields, as Python does. Knows no norm.

A record is described by a NumPy structured dtype of int64, float64 and records of these. Python makes it as an array,
`geometry["x"]["r"] = 4`; a kernel, given its address, holds it as a `Record`, `geometry.x.r`. A field costs a load or
a store at a constant offset, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    lower_setattr_generic,
    models,
    register_model,
)

from anynorm_numba._geometry import (
    AXES,
    BLOCK_STATE,
    COUNTER,
    GEOMETRY,
    GRADIENT_STATE,
    GRADIENT_SUMS,
    RUNNING,
    SET_STATE,
    SPLIT,
    SUM_PAIR,
)

I64, DOUBLE = ir.IntType(64), ir.DoubleType()

Layout = np.dtype[np.void]


class Record(types.Type):
    """The address of a record. The name, by which numba tells types apart, stands for the dtype."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        super().__init__(name=NAMES[layout])

    def field(self, name: str) -> tuple[Any, int] | None:
        """Return numba's type of a field, and its offset in bytes."""
        fields: Mapping[str, Any] = self.layout.fields or {}
        if name not in fields:
            return None
        dtype, offset = fields[name][:2]
        if dtype.fields:
            return Record(dtype), offset
        return (types.float64 if dtype.kind == "f" else types.int64), offset


NAMES = {
    GEOMETRY: "Geometry",
    AXES: "Axes",
    SPLIT: "Split",
    GRADIENT_SUMS: "GradientSums",
    SET_STATE: "SetState",
    GRADIENT_STATE: "GradientState",
    SUM_PAIR: "SumPair",
    BLOCK_STATE: "BlockState",
    RUNNING: "Running",
    COUNTER: "Counter",
}


@register_model(Record)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, record: Record) -> None:
        super().__init__(manager, record, I64)


@infer_getattr
class _Fields(AttributeTemplate):
    key = Record

    def generic_resolve(self, record: Record, name: str) -> Any:  # type: ignore[override]
        found = record.field(name)
        return None if found is None else found[0]


def _located(builder: ir.IRBuilder, record: Record, address: ir.Value, name: str) -> tuple[Any, ir.Value]:
    found = record.field(name)
    assert found is not None  # numba has typed it
    field, offset = found
    return field, builder.add(address, I64(offset))


def _pointer(builder: ir.IRBuilder, field: Any, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, (DOUBLE if field == types.float64 else I64).as_pointer())


@lower_getattr_generic(Record)
def _read(context: object, builder: ir.IRBuilder, record: Record, address: ir.Value, name: str) -> ir.Value:  # noqa: ARG001
    field, address = _located(builder, record, address, name)
    return address if isinstance(field, Record) else builder.load(_pointer(builder, field, address))


@lower_setattr_generic(Record)
def _write(context: object, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value], name: str) -> None:  # noqa: ARG001
    field, address = _located(builder, signature.args[0], values[0], name)
    builder.store(values[1], _pointer(builder, field, address))


def record_at(layout: Layout) -> Any:
    """Make an intrinsic f(address) that returns the record of this dtype at an address."""
    record = Record(layout)

    def at(typing: object, address: object) -> Any:  # noqa: ARG001
        def generate(context: object, builder: object, signature: object, values: Sequence[ir.Value]) -> Any:  # noqa: ARG001
            return values[0]

        return record(types.int64), generate

    return intrinsic(at)


def _behind(typing: object, record: Record) -> Any:  # noqa: ARG001
    """Return the address behind a record."""

    def generate(context: object, builder: ir.IRBuilder, signature: object, values: Sequence[ir.Value]) -> Any:  # noqa: ARG001
        return builder.add(values[0], I64(record.layout.itemsize))

    return types.int64(record), generate


behind: Any = intrinsic(_behind)
geometry_at = record_at(GEOMETRY)
gradient_sums_at = record_at(GRADIENT_SUMS)
set_state_at = record_at(SET_STATE)
gradient_state_at = record_at(GRADIENT_STATE)
sum_pair_at = record_at(SUM_PAIR)
block_state_at = record_at(BLOCK_STATE)
running_at = record_at(RUNNING)
counter_at = record_at(COUNTER)
