"""Loops over vectors, emitted as LLVM: expressions on a few elements at a time, and in which order sums are taken.

Nothing here knows a norm. Plain numba loops leave it to the compiler in which order a sum is vectorized, or whether it
is; here the order is part of the source, so it is the same on every processor, for rows and for columns. No
floating-point operation carries a fast-math flag.

A loop is a numba intrinsic. The type of its first argument, a null pointer named `dtype`, says how elements are stored.
They are computed in the compute dtype, float64 for float64 and float32 for all others, or in float64 if the loop says
so. Sums are float64; those of float64 elements have a second float64 for what is lost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# A sum is taken in this many lanes: element i of a line goes to lane i modulo LANES. A lane adds up its elements in
# groups of this many, and then the groups. So errors do not pile up along the lane, and a processor need not wait for
# one addition before it begins the next: of float32 in the cache, layer norm takes 0.75 of the time without groups.
# Of two-byte elements, of which a step takes twice as many, a group is added up in two parts, every other element.
LANES, GROUP = 8, 8

# Elements per step of a loop without sums; of float32 a cache line.
STEP = 16

BOOL, I16, I32, I64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)
HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()

# LLVM's type of an element in memory, by numba's: see `STORAGE` in `_compile`.
STORED = {types.float64: DOUBLE, types.float32: FLOAT, types.int16: HALF, types.uint16: I16}
BYTES = {DOUBLE: 8, FLOAT: 4, HALF: 2, I16: 2}


class Vector:
    """A few elements of one floating-point type."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.value = value

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fadd(self.value, other.value))

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fsub(self.value, other.value))

    def __mul__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fmul(self.value, other.value))

    def __truediv__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fdiv(self.value, other.value))

    def __le__(self, other: Vector) -> ir.Value:
        return self.builder.fcmp_ordered("<=", self.value, other.value)

    def __gt__(self, other: Vector) -> ir.Value:
        return self.builder.fcmp_ordered(">", self.value, other.value)

    def __neg__(self) -> Vector:
        return Vector(self.builder, self.builder.fneg(self.value))

    def half(self, number: int) -> Vector:
        """Return the first or the second half of the elements."""
        count = self.value.type.count // 2
        pick = ir.Constant(ir.VectorType(I32, count), list(range(number * count, (number + 1) * count)))
        return Vector(self.builder, self.builder.shuffle_vector(self.value, self.value, pick))

    def to(self, element: ir.Type) -> Vector:
        """Return the elements in another floating type."""
        have = self.value.type.element
        if have == element:
            return self
        cast = self.builder.fpext if BYTES[have] < BYTES[element] else self.builder.fptrunc
        return Vector(self.builder, cast(self.value, ir.VectorType(element, self.value.type.count)))


def fma(a: Vector, b: Vector, c: Vector) -> Vector:
    """Return a·b + c, rounded once."""
    builder, vector = a.builder, a.value.type
    bits = 64 if vector.element == DOUBLE else 32
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{vector.count}f{bits}"
    )
    return Vector(builder, builder.call(function, [a.value, b.value, c.value]))


def square_root_of(a: Vector) -> Vector:
    """Return √a."""
    vector = a.value.type
    function = cgutils.get_or_insert_function(
        a.builder.module, ir.FunctionType(vector, [vector]), f"llvm.sqrt.v{vector.count}f64"
    )
    return Vector(a.builder, a.builder.call(function, [a.value]))


def select(mask: ir.Value, a: Vector, b: Vector) -> Vector:
    """Return a where the mask is on, b elsewhere."""
    return Vector(a.builder, a.builder.select(mask, a.value, b.value))


def at_once(a: Vector) -> Vector:
    """Return a, kept apart from what is done with it.

    LLVM makes one masked load of an element that is read and then selected, which waits for the mask: where the mask
    is computed from other elements of memory, that is for memory twice. dx of (32, 64, 56, 56) float32 with channels
    last, behind ReLU, takes half as long with this.
    """
    builder, vector = a.builder, a.value.type
    bits = 64 if vector.element == DOUBLE else 32
    name = f"llvm.arithmetic.fence.v{vector.count}f{bits}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector]), name)
    return Vector(builder, builder.call(function, [a.value]))


def zero_like(a: Vector) -> Vector:
    """Return as many zeros as a has elements."""
    return Vector(a.builder, ir.Constant(a.value.type, [0.0] * a.value.type.count))


def two_sum(a: Vector, b: Vector) -> tuple[Vector, Vector]:
    """Return a + b, and what its rounding lost (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


Term = Vector | tuple[Vector, Vector]  # what is summed: a, or the product a·b
Sum = tuple[Vector, ...]  # a running sum and, for elements of float64, what it lost


def plus(total: Vector, term: Term) -> Vector:
    """Return a plain sum with one term more."""
    return fma(*term, total) if isinstance(term, tuple) else total + term


def merge(one: Sum, other: Sum) -> Sum:
    """Return the sum of two running sums, the second of which may come without what it lost."""
    if len(one) == 1:
        return (one[0] + other[0],)
    high, lost = two_sum(one[0], other[0])
    return high, (one[1] + other[1] if len(other) > 1 else one[1]) + lost


# What a loop does at an index, under a mask or to whole vectors; and what it computes there.
Step = Callable[[ir.Value, ir.Value | None], None]
Expression = Callable[..., Sequence[Term]]


class Emitter:
    """What a loop needs while it is emitted: the builder, and how elements are stored and computed."""

    def __init__(self, builder: ir.IRBuilder, dtype: types.CPointer) -> None:
        self.builder = builder
        self.stored = STORED[dtype.dtype]
        self.computed = DOUBLE if self.stored == DOUBLE else FLOAT
        self.sum_parts = 2 if self.stored == DOUBLE else 1  # a sum, and what it lost
        self.parts = 2 if BYTES[self.stored] == 2 else 1  # of a group
        self.step = self.parts * STEP

    def splat(self, value: ir.Value, width: int) -> ir.Value:
        """Return a vector of equal elements."""
        undefined = ir.Constant(ir.VectorType(value.type, width), ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, width), [0] * width))

    def zeros(self, element: ir.Type, width: int = LANES) -> Vector:
        """Return sums of nothing."""
        return Vector(self.builder, ir.Constant(ir.VectorType(element, width), [0.0] * width))

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the smaller of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def integer(self, value: int, width: int) -> ir.Constant:
        """Return a vector of equal 32-bit integers."""
        return ir.Constant(ir.VectorType(I32, width), [value] * width)

    def first_lanes(self, count: ir.Value, width: int) -> ir.Value:
        """Return the mask of the first `count` elements of a vector."""
        numbers = ir.Constant(ir.VectorType(I64, width), list(range(width)))
        return self.builder.icmp_signed("<", numbers, self.splat(count, width))

    def read(self, address: ir.Value, element: ir.Type, width: int, mask: ir.Value | None = None) -> Vector:
        """Return elements from memory; 0 where the mask is off, and nothing is touched there."""
        builder, vector = self.builder, ir.VectorType(element, width)
        pointer = builder.inttoptr(address, vector.as_pointer())
        if mask is None:
            return Vector(builder, builder.load(pointer, align=BYTES[element]))
        arguments = [vector.as_pointer(), I32, ir.VectorType(BOOL, width), vector]
        function = self._intrinsic("load", vector, ir.FunctionType(vector, arguments))
        nothing = ir.Constant(vector, [0 if element == I16 else 0.0] * width)
        return Vector(builder, builder.call(function, [pointer, I32(BYTES[element]), mask, nothing]))

    def write(self, value: ir.Value, address: ir.Value, mask: ir.Value | None = None) -> None:
        """Put elements into memory, only where the mask is on if there is one."""
        builder, vector = self.builder, value.type
        pointer, align = builder.inttoptr(address, vector.as_pointer()), BYTES[vector.element]
        if mask is None:
            builder.store(value, pointer, align=align)
            return
        arguments = [vector, vector.as_pointer(), I32, ir.VectorType(BOOL, vector.count)]
        function = self._intrinsic("store", vector, ir.FunctionType(ir.VoidType(), arguments))
        builder.call(function, [value, pointer, I32(align), mask])

    def _intrinsic(self, name: str, vector: ir.VectorType, signature: ir.FunctionType) -> ir.Function:
        element = "i16" if vector.element == I16 else f"f{8 * BYTES[vector.element]}"
        full = f"llvm.masked.{name}.v{vector.count}{element}.p0"
        return cgutils.get_or_insert_function(self.builder.module, signature, full)

    def read_stored(self, address: ir.Value, width: int, mask: ir.Value | None) -> Vector:
        """Return elements of the array in the compute dtype."""
        found = self.read(address, self.stored, width, mask)
        if self.stored == HALF:
            return found.to(FLOAT)
        if self.stored != I16:
            return found
        none = ir.Constant(found.value.type, [0] * width)
        pick = [index for i in range(width) for index in (width, i)]
        bits = self.builder.shuffle_vector(found.value, none, ir.Constant(ir.VectorType(I32, 2 * width), pick))
        return Vector(self.builder, self.builder.bitcast(bits, ir.VectorType(FLOAT, width)))

    def fetch(self, address: ir.Value) -> None:
        """Prefetch a cache line into the second cache; the address need not be valid."""
        builder, pointer = self.builder, ir.IntType(8).as_pointer()
        signature = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        reading, second_cache, data = I32(0), I32(2), I32(1)
        builder.call(function, [builder.inttoptr(address, pointer), reading, second_cache, data])

    def write_past_caches(self, value: ir.Value, address: ir.Value) -> None:
        """Put a whole vector at a multiple of its size, without reading into a cache what was there."""
        builder, size = self.builder, BYTES[value.type.element] * value.type.count
        store = builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=size)
        store.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))

    def as_stored(self, x: Vector) -> ir.Value:
        """Return values in the compute dtype rounded to elements of the array."""
        if self.stored == HALF:
            x = x.to(HALF)
        return x.value if self.stored != I16 else self._bfloat16(x)

    def _bfloat16(self, x: Vector) -> ir.Value:
        """Return the bits of float32 rounded to bfloat16, to nearest, ties to even.

        All is done in words, half as many instructions as in the numbers' 32 bits: the high words plus the carry of
        low + 0x7fff + (the last bit of high). A NaN stays one: no sum leaves its sign's half or becomes 0.
        """
        builder, width = self.builder, x.value.type.count
        words = builder.bitcast(x.value, ir.VectorType(I16, 2 * width))
        low, high = [
            builder.shuffle_vector(words, words, ir.Constant(ir.VectorType(I32, width), list(range(i, 2 * width, 2))))
            for i in range(2)
        ]

        def word(value: int) -> ir.Constant:
            return ir.Constant(high.type, [value] * width)

        least = builder.or_(builder.and_(builder.not_(high), word(1)), word(0x8000))
        minus_carry = builder.sext(builder.icmp_unsigned(">=", low, least), high.type)
        for name, other in (("umin", word(0xFFFE)), ("ssub.sat", minus_carry)):
            signature = ir.FunctionType(high.type, [high.type] * 2)
            function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.v{width}i16")
            high = builder.call(function, [high, other])
        return high

    def over(self, start: ir.Value, stop: ir.Value, width: int, step: Step) -> None:
        """Emit step(j, mask) for j = start, start + width, ...; the mask is None but for the last step, if partial."""
        builder = self.builder
        whole = builder.add(start, builder.and_(builder.sub(stop, start), I64(-width)))
        with cgutils.for_range_slice(builder, start, whole, I64(width), I64) as (j, _):
            step(j, None)
        with builder.if_then(builder.icmp_signed("<", whole, stop)):
            step(whole, self.first_lanes(builder.sub(stop, whole), width))

    def at(self, address: ir.Value, index: ir.Value, size: int) -> ir.Value:
        """Return the address of an element."""
        return self.builder.add(address, self.builder.mul(index, I64(size)))


class Operand:
    """An argument of an expression: elements of an array, or a parameter, one number for all elements or one for each.

    Roles: "x" is the address of elements of an array. "c" and "d" are a parameter: one float64, or the address of as
    many numbers as there are elements, in the compute dtype ("c") or float64 ("d"). "r" is the address of one number
    for each row, in the compute dtype, followed by the stride from one to the next.
    """

    def __init__(self, emitter: Emitter, role: str, value: Sequence[ir.Value], element: ir.Type) -> None:
        self.emitter = emitter
        self.role = role
        self.value = value[0]
        self.stride = value[1] if len(value) > 1 else I64(0)
        self.element = element  # what the expression computes in
        self._of_rows: list[Vector] = []

    def prepare(self, rows: int, width: int) -> None:
        """Read the numbers of the rows, ahead of the loop."""
        if self.role == "r":
            emitter = self.emitter
            numbers = [emitter.read(self._of_row(self.value, row), emitter.computed, 1) for row in range(rows)]
            singles = [emitter.builder.extract_element(number.to(self.element).value, I32(0)) for number in numbers]
            self._of_rows = [Vector(emitter.builder, emitter.splat(single, width)) for single in singles]

    def load(self, j: ir.Value, mask: ir.Value | None, width: int, row: int) -> Vector:
        """Return the operand at the elements from j on, as the expression computes with it."""
        emitter, builder = self.emitter, self.emitter.builder
        if self.role == "r":
            return self._of_rows[row]
        if self.role == "x":
            return emitter.read_stored(self.address(j, row), width, mask).to(self.element)
        if self.value.type == DOUBLE:
            one = self.value if self.element == DOUBLE else builder.fptrunc(self.value, self.element)
            return Vector(builder, emitter.splat(one, width))
        memory = DOUBLE if self.role == "d" else emitter.computed
        return emitter.read(emitter.at(self.value, j, BYTES[memory]), memory, width, mask).to(self.element)

    def address(self, j: ir.Value, row: int) -> ir.Value:
        """Return the address of element j of a row."""
        return self._of_row(self.emitter.at(self.value, j, BYTES[self.emitter.stored]), row)

    def _of_row(self, address: ir.Value, row: int) -> ir.Value:
        return self.emitter.at(address, self.stride, row) if row else address


def loop(names: Sequence[str], emit: Callable[..., Any], result: Any = types.void) -> Any:
    """Make an intrinsic f(dtype, *names); emit(emitter, values) is called with the values of its arguments."""

    def define(context: Any, dtype: Any, *arguments: Any) -> Any:  # noqa: ARG001  numba's
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
            emitted = emit(Emitter(builder, dtype), values[1:])
            return context.get_dummy_value() if emitted is None else emitted

        # An integer is an address or a length, everything else a float64.
        taken = [types.int64 if isinstance(argument, types.Integer) else types.float64 for argument in arguments]
        return result(dtype, *taken), generate

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    signature = inspect.signature(define)
    first = list(signature.parameters.values())[:2]
    define.__signature__ = signature.replace(parameters=[*first, *parameters])  # type: ignore[attr-defined]
    return intrinsic(define)


def names_of(roles: str, rows: int = 1) -> list[str]:
    """Return names for the arguments that operands of these roles take."""
    names = []
    for number, role in enumerate(roles):
        names.append(f"operand{number}")
        if role == "r" or (role == "x" and rows > 1):
            names.append(f"stride{number}")
    return names


def operands_of(
    emitter: Emitter, roles: str, values: Sequence[ir.Value], element: ir.Type, rows: int = 1
) -> list[Operand]:
    """Return the operands that these values are the arguments of."""
    operands = []
    for role in roles:
        count = 2 if role == "r" or (role == "x" and rows > 1) else 1
        operands.append(Operand(emitter, role, values[:count], element))
        values = values[count:]
    return operands


def elementwise(roles: str, expression: Callable[..., Vector], *, rows: int = 1) -> Any:
    """Make a loop f(dtype, n, past_caches, target, *operands): target[j] = expression(*operands at j).

    All is computed in the compute dtype. With several rows, each address of elements, the target's too, is followed by
    the stride from row to row. Unless `past_caches` is 0, whole vectors that are aligned are written past the caches. A
    driver sees to it that they are in memory for all threads before it returns.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> None:
        builder, size, step = emitter.builder, BYTES[emitter.stored], emitter.step
        n, past, target, *rest = values
        stride = rest.pop(0) if rows > 1 else I64(0)
        operands = operands_of(emitter, roles, rest, emitter.computed, rows=rows)
        # If all rows are aligned alike, the elements before the first multiple of a vector's size are written alone.
        even = builder.icmp_signed("==", builder.and_(stride, I64(step * size - 1)), I64(0))
        past = builder.and_(builder.icmp_signed("!=", past, I64(0)), even)
        before = builder.sdiv(builder.and_(builder.neg(target), I64(step * size - 1)), I64(size))
        head = builder.select(past, emitter.smaller(before, n), I64(0))

        def take(j: ir.Value, mask: ir.Value | None) -> None:
            shared = {operand: operand.load(j, mask, step, 0) for operand in operands if operand.role not in "xr"}
            for row in range(rows):
                arguments = [shared.get(operand) or operand.load(j, mask, step, row) for operand in operands]
                found = emitter.as_stored(expression(*arguments))
                address = emitter.at(builder.add(target, builder.mul(stride, I64(row))), j, size)
                if mask is not None:
                    emitter.write(found, address, mask)
                    continue
                with builder.if_else(past) as (then, otherwise):
                    with then:
                        emitter.write_past_caches(found, address)
                    with otherwise:
                        emitter.write(found, address)

        with builder.if_then(builder.icmp_signed(">", head, I64(0))):
            take(I64(0), emitter.first_lanes(head, step))
        emitter.over(head, n, step, take)

    return loop(["n", "past_caches", "target", *(["target_stride"] if rows > 1 else []), *names_of(roles, rows)], emit)
