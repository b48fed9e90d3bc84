"""Single numbers in memory, as kernels read and write them between loops: emitted as LLVM. Knows no norm."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir
from numba import types
from numba.core import cgutils

from anynorm_numba._vectors import BYTES, DOUBLE, I32, I64, Emitter, Vector, loop

# Facts of a kind: bytes of an element in memory, bytes of a number of C, float64 that a sum takes.
stored_bytes = loop([], lambda emitter, _: I64(BYTES[emitter.stored]), types.int64)
computed_bytes = loop([], lambda emitter, _: I64(BYTES[emitter.computed]), types.int64)
planes = loop([], lambda emitter, _: I64(emitter.planes), types.int64)


def _one(emitter: Emitter, x: Vector, element: ir.Type) -> ir.Value:
    return emitter.builder.extract_element(x.to(element).value, I32(0))


def _many(emitter: Emitter, value: ir.Value) -> Vector:
    return Vector(emitter.builder, emitter.splat(value, 1))


# element(kind, address): an element of the array as float64. number, put_number: a number of C, read and written as
# float64. rounded(kind, value): a float64 rounded to C.
element = loop(
    ["address"], lambda emitter, its: _one(emitter, emitter.read_stored(its[0], 1, None), DOUBLE), types.float64
)
number = loop(
    ["address"], lambda emitter, its: _one(emitter, emitter.read(its[0], emitter.computed, 1), DOUBLE), types.float64
)
put_number = loop(
    ["address", "value"],
    lambda emitter, its: emitter.write(_many(emitter, its[1]).to(emitter.computed).value, its[0]),
)
rounded = loop(
    ["value"],
    lambda emitter, its: _one(emitter, _many(emitter, its[0]).to(emitter.computed), DOUBLE),
    types.float64,
)


# integer(kind, address): an int64 in memory. real(kind, address), put_real(kind, address, value): a float64.
integer = loop(
    ["address"],
    lambda emitter, its: emitter.builder.load(emitter.builder.inttoptr(its[0], I64.as_pointer())),
    types.int64,
)
real = loop(["address"], lambda emitter, its: _one(emitter, emitter.read(its[0], DOUBLE, 1), DOUBLE), types.float64)
put_real = loop(["address", "value"], lambda emitter, its: emitter.write(_many(emitter, its[1]).value, its[0]))


def _emit_sqrt(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
    function = cgutils.get_or_insert_function(
        emitter.builder.module, ir.FunctionType(DOUBLE, [DOUBLE]), "llvm.sqrt.f64"
    )
    return emitter.builder.call(function, values)


# square_root(kind, value), in one instruction: math.sqrt is a call, which may raise (25 ns a set).
square_root = loop(["value"], _emit_sqrt, types.float64)
