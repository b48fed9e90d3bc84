"""Sums, emitted as LLVM: along a line and for the columns of a table, in one order for both.

A lane adds up its elements in groups, and then the groups; the lanes are added up by halves. Knows no norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from anynorm_numba._vectors import (
    BYTES,
    DOUBLE,
    GROUP,
    I32,
    I64,
    LANES,
    STEP,
    Emitter,
    Expression,
    Operand,
    Sum,
    Term,
    Vector,
    loop,
    merge,
    names_of,
    operands_of,
    plus,
)


class _Running:
    """The sums of an expression's terms while a loop runs: for each the group begun, and the sum of whole groups."""

    def __init__(
        self, emitter: Emitter, operands: Sequence[Operand], expression: Expression, begun: Sequence[tuple[Any, Any]]
    ) -> None:
        """Begin with a group and a sum for each term."""
        builder = emitter.builder
        self.emitter, self.operands, self.expression = emitter, operands, expression
        self.nothing = ir.Constant(begun[0][0].value.type, [0.0] * LANES)
        self.groups = [cgutils.alloca_once_value(builder, group.value) for group, _ in begun]
        self.totals = [[cgutils.alloca_once_value(builder, plane.value) for plane in total] for _, total in begun]

    def _load(self, cell: ir.Value) -> Vector:
        return Vector(self.emitter.builder, self.emitter.builder.load(cell))

    def _terms(self, j: ir.Value, mask: ir.Value | None) -> Sequence[Term]:
        return self.expression(*[its.load(j, mask, LANES, 0) for its in self.operands])

    def take(self, j: ir.Value, mask: ir.Value | None) -> None:
        """Add the terms of one step to the group begun."""
        builder = self.emitter.builder
        for cell, term in zip(self.groups, self._terms(j, mask), strict=True):
            old = self._load(cell)
            new = plus(old, term)
            builder.store(new.value if mask is None else builder.select(mask, new.value, old.value), cell)

    def end_group(self) -> None:
        """Add the group begun to the sum, and begin another."""
        self._add([self._load(cell) for cell in self.groups])
        for cell in self.groups:
            self.emitter.builder.store(self.nothing, cell)

    def whole_groups(self, start: ir.Value, stop: ir.Value) -> ir.Value:
        """Add as many whole groups as there are; return where they end."""
        builder = self.emitter.builder
        end = builder.add(start, builder.and_(builder.sub(stop, start), I64(-LANES * GROUP)))
        with cgutils.for_range_slice(builder, start, end, I64(LANES * GROUP), I64) as (j, _):
            running = [Vector(builder, self.nothing)] * len(self.groups)
            for step in range(GROUP):
                each_term = self._terms(builder.add(j, I64(LANES * step)), None)
                running = [plus(total, term) for total, term in zip(running, each_term, strict=True)]
            self._add(running)
        return end

    def _add(self, groups: Sequence[Vector]) -> None:
        for cells, its in zip(self.totals, groups, strict=True):
            total = merge(tuple([self._load(cell) for cell in cells]), (its.to(DOUBLE),))
            for cell, plane in zip(cells, total, strict=True):
                self.emitter.builder.store(plane.value, cell)

    def result(self) -> list[tuple[Vector, Sum]]:
        """Return the group begun and the sum of each term."""
        totals = [tuple([self._load(cell) for cell in cells]) for cells in self.totals]
        return list(zip([self._load(cell) for cell in self.groups], totals, strict=True))


def sums_along(roles: str, terms: int, expression: Expression, *, wide: bool) -> Any:
    """Make a loop f(kind, n, first, sums, *operands) that adds the terms of an expression over n elements of a line.

    `first` is the number of the first of them in the line. `sums` is the address of lanes in memory: for each term the
    group begun, and then the sum, (1 + planes, LANES) float64.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> None:
        builder = emitter.builder
        n, first, sums, *rest = values
        operands = operands_of(emitter, roles, rest, wide=wide)
        memory = [_Lanes(emitter, sums, which) for which in range(terms)]
        element = DOUBLE if wide else emitter.computed
        running = _Running(emitter, operands, expression, [(its.group().to(element), its.total()) for its in memory])
        # A step that begins within the lanes; steps to the end of the group; whole groups; what is left.
        position = builder.and_(first, I64(LANES * GROUP - 1))
        lane = builder.and_(first, I64(LANES - 1))
        head = emitter.smaller(builder.and_(builder.neg(lane), I64(LANES - 1)), n)
        with builder.if_then(builder.icmp_signed(">", head, I64(0))):
            before = builder.not_(emitter.first_lanes(lane, LANES))
            mask = builder.and_(before, emitter.first_lanes(builder.add(lane, head), LANES))
            running.take(builder.neg(lane), mask)
        to_end = builder.and_(builder.neg(position), I64(LANES * GROUP - 1))
        with builder.if_then(builder.icmp_signed(">", to_end, I64(0))):
            emitter.over(head, emitter.smaller(to_end, n), LANES, running.take)
            with builder.if_then(builder.icmp_signed("<=", to_end, n)):
                running.end_group()
        emitter.over(running.whole_groups(emitter.smaller(to_end, n), n), n, LANES, running.take)
        for lanes, (group, total) in zip(memory, running.result(), strict=True):
            lanes.store(group.to(DOUBLE).value, [plane.value for plane in total])

    return loop(["n", "first", "sums", *names_of(roles)], emit)


def sums_of_line(roles: str, terms: int, expression: Expression, *, wide: bool) -> Any:
    """Make a loop f(kind, n, *operands) that returns the sums of an expression's terms over a chunk of a line.

    They are what `sums_along` comes to from the first element to the last, without a detour through memory; for each
    term the sum and what it lost.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
        builder = emitter.builder
        n, *rest = values
        operands = operands_of(emitter, roles, rest, wide=wide)
        nothing = emitter.zeros(wide=wide), (emitter.zeros(),) * emitter.planes
        running = _Running(emitter, operands, expression, [nothing] * terms)
        end = running.whole_groups(I64(0), n)
        with builder.if_then(builder.icmp_signed("<", end, n)):
            emitter.over(end, n, LANES, running.take)
            running.end_group()
        return cgutils.pack_array(builder, [its for _, total in running.result() for its in _folded(emitter, total)])

    return loop(["n", *names_of(roles)], emit, types.UniTuple(types.float64, 2 * terms))


def sums_across(
    roles: str,
    terms: int,
    expression: Expression,
    *,
    wide: bool,
    rows: int = GROUP,
    ahead: bool = False,
    narrow: bool = False,
) -> Any:
    """Make a loop f(kind, n, count, sums, plane, *operands) that adds the terms of an expression to n columns' sums.

    `count` rows, at most `rows`, are a group of the lane that the sums belong to. `sums` is the address of sums in
    memory: n float64 for each of (terms, planes), which lie `plane` bytes apart. The address of elements is followed by
    the bytes from row to row. With `ahead`, `plane` is followed by how many bytes ahead elements are asked for, or 0.
    If `narrow`, the sums are n numbers of C for each term instead.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> None:
        builder = emitter.builder
        n, count, sums, plane, *rest = values
        distance = rest.pop(0) if ahead else None
        operands = operands_of(emitter, roles, rest, wide=wide, rows=rows)
        memory = [(Numbers if narrow else Columns)(emitter, sums, which, plane, STEP) for which in range(terms)]

        def take(j: ir.Value, mask: ir.Value | None, *, upto: int) -> None:
            if mask is None and distance is not None and upto == rows:
                with builder.if_then(builder.icmp_signed("!=", distance, I64(0))):
                    for operand in operands:
                        for row in range(rows if operand.role == "x" else 0):
                            emitter.fetch(builder.add(operand.address(j, row), distance))
            running = [emitter.zeros(STEP, wide=wide)] * terms
            shared = {its: its.load(j, mask, STEP, 0) for its in operands if its.role not in "xr"}
            for row in range(upto):
                found = expression(*[shared.get(its) or its.load(j, mask, STEP, row) for its in operands])
                running = [plus(total, term) for total, term in zip(running, found, strict=True)]
            for its, total in zip(memory, running, strict=True):
                its.store(j, mask, merge(its.load(j, mask), (total if narrow else total.to(DOUBLE),)))

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

    return loop(["n", "count", "sums", "plane", *(["ahead"] if ahead else []), *names_of(roles, rows)], emit)


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


class Numbers:
    """Sums in memory as numbers of C, one beside the other."""

    def __init__(self, emitter: Emitter, sums: ir.Value, which: int, plane: ir.Value, width: int) -> None:
        self.emitter = emitter
        self.width = width
        self.begins = emitter.at(sums, plane, which)

    def _address(self, j: ir.Value) -> ir.Value:
        return self.emitter.at(self.begins, j, BYTES[self.emitter.computed])

    def load(self, j: ir.Value, mask: ir.Value | None) -> Sum:
        return (self.emitter.read(self._address(j), self.emitter.computed, self.width, mask),)

    def store(self, j: ir.Value, mask: ir.Value | None, total: Sum) -> None:
        self.emitter.write(total[0].value, self._address(j), mask)


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


def _emit_scratch(emitter: Emitter, _: Sequence[ir.Value]) -> ir.Value:
    room = cgutils.alloca_once(emitter.builder, ir.ArrayType(DOUBLE, 12 * LANES))
    return emitter.builder.ptrtoint(room, I64)


# scratch(kind): the address of room for a few vectors of sums, in the frame of the caller.
scratch = loop([], _emit_scratch, types.int64)


def _emit_clear(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    for which in range(2):
        nothing = emitter.zeros().value
        _Lanes(emitter, values[0], which).store(nothing, [nothing] * emitter.planes)


# clear(kind, sums) makes the lanes of two sums 0: in whole vectors, since a processor waits for single numbers to reach
# memory before it reads them as a vector (20 ns a set).
clear = loop(["sums"], _emit_clear)
