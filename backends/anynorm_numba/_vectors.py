"""Loops over vectors, emitted as LLVM: expressions on a few elements at a time, and in which order sums are taken.

Nothing here knows a norm. Plain numba loops leave it to the compiler in which order a sum is vectorized, or whether it
is; here the order is part of the source, so it is the same on every processor, for rows and for columns. No
floating-point operation carries a fast-math flag.

A loop is a numba intrinsic whose first argument, a null pointer, tells by its type how elements are stored. They are
computed in the compute type C (float64 for float64, else float32), or all in float64 if the loop is wide. Sums are
float64, those of float64 elements with a second float64 for what is lost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# A sum is taken in this many lanes: element i of a line goes to lane i modulo LANES. A lane adds up its elements in
# groups of this many, and then the groups. So errors do not pile up along the lane, and a processor need not wait for
# one addition before it begins the next: of float32 in the cache, layer norm takes 0.75 of the time without groups.
LANES, GROUP = 8, 8

# Elements per step of a loop without sums; of float32 a cache line.
STEP = 16

BOOL, I16, I32, I64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)
HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()

# By the storage type of a kind: how it lies in memory, and what it is computed in.
STORED = {types.float64: DOUBLE, types.float32: FLOAT, types.int16: HALF, types.uint16: I16}
BYTES = {DOUBLE: 8, FLOAT: 4, HALF: 2, I16: 2}


class Vector:
    """A few elements of one floating type."""

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

    def to(self, element: ir.Type) -> Vector:
        """Return the elements in another floating type."""
        have = self.value.type.element
        if have == element:
            return self
        cast = self.builder.fpext if BYTES[have] < BYTES[element] else self.builder.fptrunc
        return Vector(self.builder, cast(self.value, ir.VectorType(element, self.value.type.count)))


def fma(a: Vector, b: Vector, c: Vector) -> Vector:
    """Return a·b + c, rounded once."""
    builder, kind = a.builder, a.value.type
    bits = 64 if kind.element == DOUBLE else 32
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.v{kind.count}f{bits}"
    )
    return Vector(builder, builder.call(function, [a.value, b.value, c.value]))


def square_root_of(a: Vector) -> Vector:
    """Return √a."""
    kind = a.value.type
    function = cgutils.get_or_insert_function(
        a.builder.module, ir.FunctionType(kind, [kind]), f"llvm.sqrt.v{kind.count}f64"
    )
    return Vector(a.builder, a.builder.call(function, [a.value]))


def select(mask: ir.Value, a: Vector, b: Vector) -> Vector:
    """Return a where the mask is on, b elsewhere."""
    return Vector(a.builder, a.builder.select(mask, a.value, b.value))


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
    """Return the sum of two running sums; the other may be plain."""
    if len(one) == 1:
        return (one[0] + other[0],)
    high, lost = two_sum(one[0], other[0])
    return high, (one[1] + other[1] if len(other) > 1 else one[1]) + lost


Step = Callable[[ir.Value, ir.Value | None], None]


Expression = Callable[..., Sequence[Term]]


class Emitter:
    """What a loop needs while it is emitted: the builder, and how elements of its kind are stored and computed."""

    def __init__(self, builder: ir.IRBuilder, kind: types.CPointer) -> None:
        self.builder = builder
        self.stored = STORED[kind.dtype]
        self.computed = DOUBLE if self.stored == DOUBLE else FLOAT
        self.planes = 2 if self.stored == DOUBLE else 1  # of a sum: itself, and what it lost

    def splat(self, value: ir.Value, width: int) -> ir.Value:
        """Return a vector of equal elements."""
        undefined = ir.Constant(ir.VectorType(value.type, width), ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, width), [0] * width))

    def zeros(self, width: int = LANES, *, wide: bool = True) -> Vector:
        """Return sums of nothing, in float64 or in C."""
        element = DOUBLE if wide else self.computed
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
        """Return elements of the array as numbers of C."""
        found = self.read(address, self.stored, width, mask)
        if self.stored == HALF:
            return found.to(FLOAT)
        if self.stored != I16:
            return found
        wide = self.builder.zext(found.value, ir.VectorType(I32, width))
        bits = self.builder.shl(wide, self.integer(16, width))
        return Vector(self.builder, self.builder.bitcast(bits, ir.VectorType(FLOAT, width)))

    def write_stored(self, x: Vector, address: ir.Value, mask: ir.Value | None) -> None:
        """Round numbers of C to elements of the array."""
        builder, width = self.builder, x.value.type.count
        if self.stored == HALF:
            x = x.to(HALF)
        if self.stored != I16:
            self.write(x.value, address, mask)
            return
        bits = builder.bitcast(x.value, ir.VectorType(I32, width))
        last = builder.and_(builder.lshr(bits, self.integer(16, width)), self.integer(1, width))
        rounded = builder.add(bits, builder.add(last, self.integer(0x7FFF, width)))  # to nearest, ties to even
        quiet = builder.or_(bits, self.integer(0x400000, width))  # rounding could make a NaN an infinity
        chosen = builder.select(builder.fcmp_unordered("uno", x.value, x.value), quiet, rounded)
        high = builder.lshr(chosen, self.integer(16, width))
        self.write(builder.trunc(high, ir.VectorType(I16, width)), address, mask)

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
    """An argument of an expression: elements of the array, or a parameter, one number for all or a vector of them.

    Roles: "x" the address of elements; "c" and "d" a parameter, a float64 or the address of numbers of C or of float64;
    "r" the address of a number of C for each row, which is followed by the bytes from one to the next.
    """

    def __init__(self, emitter: Emitter, role: str, value: Sequence[ir.Value], wide: bool) -> None:
        self.emitter = emitter
        self.role = role
        self.value = value[0]
        self.step = value[1] if len(value) > 1 else I64(0)
        self.element = DOUBLE if wide else emitter.computed
        self._of_rows: list[Vector] = []

    def prepare(self, rows: int, width: int) -> None:
        """Read the numbers of some rows, ahead of the loop."""
        if self.role == "r":
            emitter = self.emitter
            numbers = [emitter.read(self._of_row(self.value, row), emitter.computed, 1) for row in range(rows)]
            singles = [emitter.builder.extract_element(its.to(self.element).value, I32(0)) for its in numbers]
            self._of_rows = [Vector(emitter.builder, emitter.splat(single, width)) for single in singles]

    def load(self, j: ir.Value, mask: ir.Value | None, width: int, row: int) -> Vector:
        """Return the elements at j, as the expression computes with them."""
        emitter, builder = self.emitter, self.emitter.builder
        if self.role == "r":
            return self._of_rows[row]
        if self.role == "x":
            address = self._of_row(emitter.at(self.value, j, BYTES[emitter.stored]), row)
            return emitter.read_stored(address, width, mask).to(self.element)
        if self.value.type == DOUBLE:
            narrow = self.value if self.element == DOUBLE else builder.fptrunc(self.value, self.element)
            return Vector(builder, emitter.splat(narrow, width))
        memory = DOUBLE if self.role == "d" else emitter.computed
        return emitter.read(emitter.at(self.value, j, BYTES[memory]), memory, width, mask).to(self.element)

    def _of_row(self, address: ir.Value, row: int) -> ir.Value:
        return self.emitter.at(address, self.step, row) if row else address


def loop(names: Sequence[str], emit: Callable[..., Any], result: Any = types.void) -> Any:
    """Make an intrinsic f(kind, *names); emit(emitter, values) is called with the values of its arguments."""

    def define(context: Any, kind: Any, *given: Any) -> Any:  # noqa: ARG001  numba's
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
            emitted = emit(Emitter(builder, kind), values[1:])
            return context.get_dummy_value() if emitted is None else emitted

        # Whole numbers are addresses and lengths; all others are float64, integers that stand for one too.
        taken = [types.int64 if isinstance(its, types.Integer) else types.float64 for its in given]
        return result(kind, *taken), generate

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    signature = inspect.signature(define)
    first = list(signature.parameters.values())[:2]
    define.__signature__ = signature.replace(parameters=[*first, *parameters])  # type: ignore[attr-defined]
    return intrinsic(define)


def _names(roles: str, rows: int = 1) -> list[str]:
    """Return names for the arguments that the operands take."""
    names = []
    for number, role in enumerate(roles):
        names.append(f"operand{number}")
        if role == "r" or (role == "x" and rows > 1):
            names.append(f"step{number}")
    return names


def _operands(emitter: Emitter, roles: str, values: Sequence[ir.Value], wide: bool, rows: int = 1) -> list[Operand]:
    """Share the values of the arguments out to the operands."""
    operands = []
    for role in roles:
        count = 2 if role == "r" or (role == "x" and rows > 1) else 1
        operands.append(Operand(emitter, role, values[:count], wide))
        values = values[count:]
    return operands


def each(roles: str, expression: Callable[..., Vector], *, rows: int = 1) -> Any:
    """Make a loop f(kind, n, target, *operands): target[j] = expression(*operands at j), all in C.

    With several rows at once each address of elements, the target's too, is followed by the bytes from row to row.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> None:
        n, target, *rest = values
        step = rest.pop(0) if rows > 1 else I64(0)
        operands = _operands(emitter, roles, rest, wide=False, rows=rows)

        def take(j: ir.Value, mask: ir.Value | None) -> None:
            shared = {its: its.load(j, mask, STEP, 0) for its in operands if its.role not in "xr"}
            for row in range(rows):
                result = expression(*[shared.get(its) or its.load(j, mask, STEP, row) for its in operands])
                begin = emitter.builder.add(target, emitter.builder.mul(step, I64(row)))
                emitter.write_stored(result, emitter.at(begin, j, BYTES[emitter.stored]), mask)

        emitter.over(I64(0), n, STEP, take)

    return loop(["n", "target", *(["target_step"] if rows > 1 else []), *_names(roles, rows)], emit)


def sums_along(roles: str, terms: int, expression: Expression, *, wide: bool) -> Any:
    """Make a loop f(kind, n, first, sums, *operands) that adds the terms of an expression over n elements of a line.

    `first` is the number of the first of them in the line. `sums` is the address of lanes in memory: for each term the
    group begun, and then the sum, (1 + planes, LANES) float64.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> None:
        builder = emitter.builder
        n, first, sums, *rest = values
        operands = _operands(emitter, roles, rest, wide=wide)
        memory = [_Lanes(emitter, sums, which) for which in range(terms)]
        element = DOUBLE if wide else emitter.computed
        groups = [cgutils.alloca_once_value(builder, its.group().to(element).value) for its in memory]
        totals = [[cgutils.alloca_once_value(builder, plane.value) for plane in its.total()] for its in memory]

        def found(j: ir.Value, mask: ir.Value | None) -> Sequence[Term]:
            return expression(*[its.load(j, mask, LANES, 0) for its in operands])

        def take(j: ir.Value, mask: ir.Value | None) -> None:
            for cell, term in zip(groups, found(j, mask), strict=True):
                old = builder.load(cell)
                new = plus(Vector(builder, old), term).value
                builder.store(new if mask is None else builder.select(mask, new, old), cell)

        def end_group(sums_of_group: Sequence[Vector]) -> None:
            for cells, its in zip(totals, sums_of_group, strict=True):
                total = merge(tuple([Vector(builder, builder.load(cell)) for cell in cells]), (its.to(DOUBLE),))
                for cell, plane in zip(cells, total, strict=True):
                    builder.store(plane.value, cell)

        def whole_group(j: ir.Value, _: ir.Value | None) -> None:
            running = [emitter.zeros(wide=wide)] * terms
            for step in range(GROUP):
                each_term = found(builder.add(j, I64(LANES * step)), None)
                running = [plus(total, term) for total, term in zip(running, each_term, strict=True)]
            end_group(running)

        # A step that begins within the lanes; steps to the end of the group; whole groups; what is left.
        position = builder.and_(first, I64(LANES * GROUP - 1))
        lane = builder.and_(first, I64(LANES - 1))
        head = emitter.smaller(builder.and_(builder.neg(lane), I64(LANES - 1)), n)
        with builder.if_then(builder.icmp_signed(">", head, I64(0))):
            before = builder.not_(emitter.first_lanes(lane, LANES))
            take(builder.neg(lane), builder.and_(before, emitter.first_lanes(builder.add(lane, head), LANES)))
        to_end = builder.and_(builder.neg(position), I64(LANES * GROUP - 1))
        with builder.if_then(builder.icmp_signed(">", to_end, I64(0))):
            emitter.over(head, emitter.smaller(to_end, n), LANES, take)
            with builder.if_then(builder.icmp_signed("<=", to_end, n)):
                end_group([Vector(builder, builder.load(cell)) for cell in groups])
                for cell in groups:
                    builder.store(emitter.zeros(wide=wide).value, cell)
        start = emitter.smaller(to_end, n)
        whole = builder.add(start, builder.and_(builder.sub(n, start), I64(-LANES * GROUP)))
        with cgutils.for_range_slice(builder, start, whole, I64(LANES * GROUP), I64) as (j, _):
            whole_group(j, None)
        emitter.over(whole, n, LANES, take)
        for lanes, cell, cells in zip(memory, groups, totals, strict=True):
            group = Vector(builder, builder.load(cell)).to(DOUBLE)
            lanes.store(group.value, [builder.load(its) for its in cells])

    return loop(["n", "first", "sums", *_names(roles)], emit)


def sums_of_line(roles: str, terms: int, expression: Expression, *, wide: bool) -> Any:
    """Make a loop f(kind, n, *operands) that returns the sums of an expression's terms over a chunk of a line.

    They are what `sums_along` comes to from the first element to the last, without a detour through memory; for each
    term the sum and what it lost.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
        builder = emitter.builder
        n, *rest = values
        operands = _operands(emitter, roles, rest, wide=wide)
        zero = emitter.zeros().value
        totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(emitter.planes)] for _ in range(terms)]
        nothing = emitter.zeros(wide=wide).value
        groups = [cgutils.alloca_once(builder, nothing.type) for _ in range(terms)]

        def found(j: ir.Value, mask: ir.Value | None) -> Sequence[Term]:
            return expression(*[its.load(j, mask, LANES, 0) for its in operands])

        def end_group(sums_of_group: Sequence[Vector]) -> None:
            for cells, its in zip(totals, sums_of_group, strict=True):
                total = merge(tuple([Vector(builder, builder.load(cell)) for cell in cells]), (its.to(DOUBLE),))
                for cell, plane in zip(cells, total, strict=True):
                    builder.store(plane.value, cell)

        def whole_group(j: ir.Value, _: ir.Value | None) -> None:
            running = [emitter.zeros(wide=wide)] * terms
            for step in range(GROUP):
                each_term = found(builder.add(j, I64(LANES * step)), None)
                running = [plus(total, term) for total, term in zip(running, each_term, strict=True)]
            end_group(running)

        def take(j: ir.Value, mask: ir.Value | None) -> None:
            for cell, term in zip(groups, found(j, mask), strict=True):
                old = builder.load(cell)
                new = plus(Vector(builder, old), term).value
                builder.store(new if mask is None else builder.select(mask, new, old), cell)

        for cells in totals:
            for cell in cells:
                builder.store(zero, cell)
        for cell in groups:
            builder.store(nothing, cell)
        whole = builder.and_(n, I64(-LANES * GROUP))
        with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES * GROUP), I64) as (j, _):
            whole_group(j, None)
        with builder.if_then(builder.icmp_signed("<", whole, n)):
            emitter.over(whole, n, LANES, take)
            end_group([Vector(builder, builder.load(cell)) for cell in groups])
        found_sums = []
        for cells in totals:
            found_sums += _folded(emitter, tuple([Vector(builder, builder.load(cell)) for cell in cells]))
        return cgutils.pack_array(builder, found_sums)

    return loop(["n", *_names(roles)], emit, types.UniTuple(types.float64, 2 * terms))


def sums_across(roles: str, terms: int, expression: Expression, *, wide: bool, rows: int = GROUP) -> Any:
    """Make a loop f(kind, n, count, sums, plane, *operands) that adds the terms of an expression to n columns' sums.

    `count` rows, at most `rows`, are a group of the lane that the sums belong to. `sums` is the address of sums in
    memory: n float64 for each of (terms, planes), which lie `plane` bytes apart. The address of elements is followed by
    the bytes from row to row.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> None:
        builder = emitter.builder
        n, count, sums, plane, *rest = values
        operands = _operands(emitter, roles, rest, wide=wide, rows=rows)
        memory = [Columns(emitter, sums, which, plane, STEP) for which in range(terms)]

        def take(j: ir.Value, mask: ir.Value | None, *, upto: int) -> None:
            running = [emitter.zeros(STEP, wide=wide)] * terms
            shared = {its: its.load(j, mask, STEP, 0) for its in operands if its.role not in "xr"}
            for row in range(upto):
                found = expression(*[shared.get(its) or its.load(j, mask, STEP, row) for its in operands])
                running = [plus(total, term) for total, term in zip(running, found, strict=True)]
            for its, total in zip(memory, running, strict=True):
                its.store(j, mask, merge(its.load(j, mask), (total.to(DOUBLE),)))

        chosen = builder.switch(count, builder.append_basic_block("none"))
        after = builder.append_basic_block("after")
        with builder.goto_block(chosen.default):
            builder.branch(after)
        for upto in range(1, rows + 1):
            block = builder.append_basic_block(f"rows{upto}")
            chosen.add_case(I64(upto), block)
            builder.position_at_end(block)
            for its in operands:
                its.prepare(upto, STEP)
            emitter.over(I64(0), n, STEP, partial(take, upto=upto))
            builder.branch(after)
        builder.position_at_end(after)

    return loop(["n", "count", "sums", "plane", *_names(roles, rows)], emit)


class _Lanes:
    """The lanes of a sum along a line, in memory: the group begun, the sum, and what it lost if that is kept."""

    def __init__(self, emitter: Emitter, sums: ir.Value, which: int) -> None:
        self.emitter = emitter
        planes = 1 + emitter.planes
        offsets = [8 * LANES * (planes * which + plane) for plane in range(planes)]
        self.addresses = [emitter.builder.add(sums, I64(offset)) for offset in offsets]

    def group(self) -> Vector:
        return self.emitter.read(self.addresses[0], DOUBLE, LANES)

    def total(self) -> Sum:
        return tuple([self.emitter.read(address, DOUBLE, LANES) for address in self.addresses[1:]])

    def store(self, group: ir.Value, total: Sequence[ir.Value]) -> None:
        for address, value in zip(self.addresses, [group, *total], strict=True):
            self.emitter.write(value, address)


class Columns:
    """Sums in memory, one float64 beside the other, and `plane` bytes behind them what they lost, if that is kept."""

    def __init__(self, emitter: Emitter, sums: ir.Value, which: int, plane: ir.Value, width: int = LANES) -> None:
        self.emitter = emitter
        self.width = width
        first = emitter.planes * which
        self.planes = [emitter.at(sums, plane, first + of_sum) for of_sum in range(emitter.planes)]

    def load(self, j: ir.Value, mask: ir.Value | None) -> Sum:
        return tuple([self.emitter.read(self.emitter.at(its, j, 8), DOUBLE, self.width, mask) for its in self.planes])

    def store(self, j: ir.Value, mask: ir.Value | None, total: Sum) -> None:
        for address, its in zip(self.planes, total, strict=True):
            self.emitter.write(its.value, self.emitter.at(address, j, 8), mask)


def _emit_merge(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    n, target, plane, source, source_plane = values
    into, its = Columns(emitter, target, 0, plane), Columns(emitter, source, 0, source_plane)

    def take(j: ir.Value, mask: ir.Value | None) -> None:
        into.store(j, mask, merge(into.load(j, mask), its.load(j, mask)))

    emitter.over(I64(0), n, LANES, take)


# merge_sums(kind, n, target, plane, source, source_plane) adds n sums in memory to n others.
merge_sums = loop(["n", "target", "plane", "source", "source_plane"], _emit_merge)


def _folded(emitter: Emitter, total: Sum) -> list[ir.Value]:
    """Return the sum of the lanes of a sum, and what it lost: 0 where that is not kept."""
    builder = emitter.builder
    width = LANES
    while width > 1:
        width //= 2
        halves: list[Any] = []
        for start in (0, width):
            pick = ir.Constant(ir.VectorType(I32, width), list(range(start, start + width)))
            halves.append(tuple([Vector(builder, builder.shuffle_vector(its.value, its.value, pick)) for its in total]))
        total = merge(*halves)
    return [*[builder.extract_element(its.value, I32(0)) for its in total], DOUBLE(0.0)][:2]


def _emit_fold(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
    lanes = _Lanes(emitter, values[0], 0)
    return cgutils.pack_array(emitter.builder, _folded(emitter, merge(lanes.total(), (lanes.group(),))))


# fold(kind, sums) adds up the lanes of one sum: itself and what it lost, 0 where that is not kept.
fold = loop(["sums"], _emit_fold, types.UniTuple(types.float64, 2))


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


def _emit_scratch(emitter: Emitter, _: Sequence[ir.Value]) -> ir.Value:
    room = cgutils.alloca_once(emitter.builder, ir.ArrayType(DOUBLE, 12 * LANES))
    return emitter.builder.ptrtoint(room, I64)


# scratch(kind): the address of room for a few vectors of sums, in the frame of the caller.
scratch = loop([], _emit_scratch, types.int64)


def _emit_field(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
    address = emitter.at(values[0], values[1], 8)
    return emitter.builder.load(emitter.builder.inttoptr(address, I64.as_pointer()))


# field(kind, geometry, position): an int64 in memory. real(kind, address), put_real(kind, address, value): a float64.
field = loop(["geometry", "position"], _emit_field, types.int64)
real = loop(["address"], lambda emitter, its: _one(emitter, emitter.read(its[0], DOUBLE, 1), DOUBLE), types.float64)
put_real = loop(["address", "value"], lambda emitter, its: emitter.write(_many(emitter, its[1]).value, its[0]))


def _emit_clear(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    for which in range(2):
        nothing = emitter.zeros().value
        _Lanes(emitter, values[0], which).store(nothing, [nothing] * emitter.planes)


# clear(kind, sums) makes the lanes of two sums 0: in whole vectors, since a processor waits for single numbers to reach
# memory before it reads them as a vector (20 ns a set).
clear = loop(["sums"], _emit_clear)


def _emit_sqrt(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
    function = cgutils.get_or_insert_function(
        emitter.builder.module, ir.FunctionType(DOUBLE, [DOUBLE]), "llvm.sqrt.f64"
    )
    return emitter.builder.call(function, values)


# square_root(kind, value), in one instruction: math.sqrt is a call, which may raise (25 ns a set).
square_root = loop(["value"], _emit_sqrt, types.float64)
