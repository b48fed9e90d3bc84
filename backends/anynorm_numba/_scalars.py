"""Single numbers in memory, as kernels read and write them between loops: emitted as LLVM. Knows no norm."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir
from numba import types
from numba.core import cgutils

from anynorm_numba._vectors import BYTES, DOUBLE, I32, I64, Emitter, Vector, loop

# Bytes of an element in memory, and of one in the compute dtype; how many float64 a sum takes.
itemsize = loop([], lambda emitter, _: I64(BYTES[emitter.stored]), types.int64)
compute_itemsize = loop([], lambda emitter, _: I64(BYTES[emitter.computed]), types.int64)
sum_parts = loop([], lambda emitter, _: I64(emitter.sum_parts), types.int64)


def _one(emitter: Emitter, x: Vector, element: ir.Type) -> ir.Value:
    return emitter.builder.extract_element(x.to(element).value, I32(0))


def _many(emitter: Emitter, value: ir.Value) -> Vector:
    return Vector(emitter.builder, emitter.splat(value, 1))


# load_element(dtype, address): an element of an array as float64.
load_element = loop(
    ["address"], lambda emitter, values: _one(emitter, emitter.read_stored(values[0], 1, None), DOUBLE), types.float64
)

# load(dtype, address), store(dtype, address, value): a number in the compute dtype, read and written as float64.
load = loop(
    ["address"],
    lambda emitter, values: _one(emitter, emitter.read(values[0], emitter.computed, 1), DOUBLE),
    types.float64,
)
store = loop(
    ["address", "value"],
    lambda emitter, values: emitter.write(_many(emitter, values[1]).to(emitter.computed).value, values[0]),
)

# rounded(dtype, value): a float64 rounded to the compute dtype.
rounded = loop(
    ["value"],
    lambda emitter, values: _one(emitter, _many(emitter, values[0]).to(emitter.computed), DOUBLE),
    types.float64,
)

# load_float64(dtype, address), store_float64(dtype, address, value): a float64, whatever the dtype.
load_float64 = loop(
    ["address"], lambda emitter, values: _one(emitter, emitter.read(values[0], DOUBLE, 1), DOUBLE), types.float64
)
store_float64 = loop(
    ["address", "value"], lambda emitter, values: emitter.write(_many(emitter, values[1]).value, values[0])
)


def _emit_sqrt(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
    function = cgutils.get_or_insert_function(
        emitter.builder.module, ir.FunctionType(DOUBLE, [DOUBLE]), "llvm.sqrt.f64"
    )
    return emitter.builder.call(function, values)


# square_root(dtype, value), in one instruction: math.sqrt is a call, which may raise (25 ns a set).
square_root = loop(["value"], _emit_sqrt, types.float64)
