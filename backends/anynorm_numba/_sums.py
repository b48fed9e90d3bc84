"""Sums, emitted as LLVM: along a line and down the columns of a table, in one order for both.

A lane adds up its elements in groups, and then the groups; the lanes are added up by halves. A loop says of which
elements it computes terms, and adds them up within a group, in float64; of others it does in the compute dtype. Knows
no norm.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


def _terms_of(emitter: Emitter, in_float64: Collection[ir.Type]) -> tuple[ir.Type, int]:
    """Return the type that terms are computed in, and in how many parts a group of them is added up."""
    return (DOUBLE, 1) if emitter.stored in in_float64 else (emitter.computed, emitter.parts)


def _sum_of(parts: Sequence[Vector]) -> Vector:
    """Return the sum of a group's parts in float64."""
    first, *others = [part.to(DOUBLE) for part in parts]
    return first + others[0] if others else first


def _closed(group: Vector) -> Vector:
    """Return the sum of a group along a line in float64."""
    return _sum_of([group] if group.value.type.count == LANES else [group.half(part) for part in range(2)])


class _Running:
    """The sums of an expression's terms while a loop runs: of each the open group, and the sum of closed groups."""

    def __init__(
        self, emitter: Emitter, operands: Sequence[Operand], expression: Expression, begun: Sequence[tuple[Any, Any]]
    ) -> None:
        """Continue from an open group and a sum for each term."""
        builder = emitter.builder
        self.emitter, self.operands, self.expression = emitter, operands, expression
        vector = begun[0][0].value.type
        self.width = vector.count
        self.nothing = ir.Constant(vector, [0.0] * self.width)
        self.groups = [cgutils.alloca_once_value(builder, group.value) for group, _ in begun]
        self.totals = [[cgutils.alloca_once_value(builder, part.value) for part in total] for _, total in begun]

    def _load(self, cell: ir.Value) -> Vector:
        return Vector(self.emitter.builder, self.emitter.builder.load(cell))

    def _terms(self, j: ir.Value, mask: ir.Value | None) -> Sequence[Term]:
        return self.expression(*[operand.load(j, mask, self.width, 0) for operand in self.operands])

    def take(self, j: ir.Value, mask: ir.Value | None) -> None:
        """Add the terms of one step to the open group."""
        builder = self.emitter.builder
        for cell, term in zip(self.groups, self._terms(j, mask), strict=True):
            old = self._load(cell)
            new = plus(old, term)
            builder.store(new.value if mask is None else builder.select(mask, new.value, old.value), cell)

    def end_group(self) -> None:
        """Close the open group, and open another."""
        self._add([self._load(cell) for cell in self.groups])
        for cell in self.groups:
            self.emitter.builder.store(self.nothing, cell)

    def whole_groups(self, start: ir.Value, stop: ir.Value) -> ir.Value:
        """Add as many whole groups as there are; return where they end."""
        builder = self.emitter.builder
        end = builder.add(start, builder.and_(builder.sub(stop, start), I64(-LANES * GROUP)))
        with cgutils.for_range_slice(builder, start, end, I64(LANES * GROUP), I64) as (j, _):
            running = [Vector(builder, self.nothing)] * len(self.groups)
            for step in range(0, LANES * GROUP, self.width):
                each_term = self._terms(builder.add(j, I64(step)), None)
                running = [plus(total, term) for total, term in zip(running, each_term, strict=True)]
            self._add(running)
        return end

    def _add(self, groups: Sequence[Vector]) -> None:
        for cells, group in zip(self.totals, groups, strict=True):
            total = merge(tuple([self._load(cell) for cell in cells]), (_closed(group),))
            for cell, part in zip(cells, total, strict=True):
                self.emitter.builder.store(part.value, cell)

    def result(self) -> list[tuple[Vector, Sum]]:
        """Return the open group and the sum of each term."""
        totals = [tuple([self._load(cell) for cell in cells]) for cells in self.totals]
        return list(zip([self._load(cell) for cell in self.groups], totals, strict=True))


def sums_of_runs(roles: str, terms: int, expression: Expression, *, in_float64: Collection[ir.Type]) -> Any:
    """Make a loop f(dtype, n, run, left, *operands) that returns the sums of an expression's terms over a chunk.

    For each term it returns the sum and what it lost, the same that the chunk's n elements have side by side. Here they
    lie in runs of `run` neighbours, the first of which has `left`. The address of elements, where they begin, is
    followed by the stride from run to run.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
        builder, size = emitter.builder, I64(BYTES[emitter.stored])
        n, run, left, *rest = values
        element, parts = _terms_of(emitter, in_float64)
        operands = operands_of(emitter, roles, rest, element, rows=2)
        nothing = emitter.zeros(element, LANES * parts), (emitter.zeros(DOUBLE),) * emitter.sum_parts
        running = _Running(emitter, operands, expression, [nothing] * terms)
        elements = [operand for operand in operands if operand.role == "x"]
        gaps = [builder.sub(operand.stride, builder.mul(run, size)) for operand in elements]
        places = [cgutils.alloca_once_value(builder, operand.value) for operand in elements]
        done, of_run = cgutils.alloca_once_value(builder, I64(0)), cgutils.alloca_once_value(builder, left)
        test, body, after = [builder.append_basic_block(name) for name in ("test", "run", "after")]
        builder.branch(test)
        builder.position_at_end(test)
        first = builder.load(done)
        builder.cbranch(builder.icmp_signed("<", first, n), body, after)
        builder.position_at_end(body)
        for operand, place in zip(elements, places, strict=True):
            operand.value = builder.load(place)
        count = emitter.smaller(builder.load(of_run), builder.sub(n, first))
        _continue_line(running, first, count)
        for operand, place, gap in zip(elements, places, gaps, strict=True):
            builder.store(builder.add(operand.value, builder.add(builder.mul(count, size), gap)), place)
        builder.store(builder.add(first, count), done)
        builder.store(run, of_run)
        builder.branch(test)
        builder.position_at_end(after)
        running.end_group()
        return _packed(running)

    return loop(["n", "run", "left", *names_of(roles, 2)], emit, types.UniTuple(types.float64, 2 * terms))


def _continue_line(running: _Running, first: ir.Value, n: ir.Value) -> None:
    """Add n elements of a line, of which the first has the index `first`."""
    emitter, builder, width = running.emitter, running.emitter.builder, running.width
    # A step that begins within the lanes; steps to the end of the group; whole groups; what is left.
    position = builder.and_(first, I64(LANES * GROUP - 1))
    lane = builder.and_(first, I64(width - 1))
    head = emitter.smaller(builder.and_(builder.neg(lane), I64(width - 1)), n)
    with builder.if_then(builder.icmp_signed(">", head, I64(0))):
        before = builder.not_(emitter.first_lanes(lane, width))
        mask = builder.and_(before, emitter.first_lanes(builder.add(lane, head), width))
        running.take(builder.neg(lane), mask)
    to_end = builder.and_(builder.neg(position), I64(LANES * GROUP - 1))
    with builder.if_then(builder.icmp_signed(">", to_end, I64(0))):
        emitter.over(head, emitter.smaller(to_end, n), width, running.take)
        with builder.if_then(builder.icmp_signed("<=", to_end, n)):
            running.end_group()
    emitter.over(running.whole_groups(emitter.smaller(to_end, n), n), n, width, running.take)


def _packed(running: _Running) -> ir.Value:
    """Return each term's sum of lanes, and what it lost."""
    totals = [total for _, total in running.result()]
    found = [part for total in totals for part in _folded(running.emitter, total)]
    return cgutils.pack_array(running.emitter.builder, found)


def sums_of_line(roles: str, terms: int, expression: Expression, *, in_float64: Collection[ir.Type]) -> Any:
    """Make a loop f(dtype, n, *operands) that returns the sums of an expression's terms over a chunk of a line.

    For each term it returns the sum and what it lost: those of `sums_of_runs` of a single run.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> ir.Value:
        builder = emitter.builder
        n, *rest = values
        element, parts = _terms_of(emitter, in_float64)
        operands = operands_of(emitter, roles, rest, element)
        nothing = emitter.zeros(element, LANES * parts), (emitter.zeros(DOUBLE),) * emitter.sum_parts
        running = _Running(emitter, operands, expression, [nothing] * terms)
        end = running.whole_groups(I64(0), n)
        with builder.if_then(builder.icmp_signed("<", end, n)):
            emitter.over(end, n, running.width, running.take)
            running.end_group()
        return _packed(running)

    return loop(["n", *names_of(roles)], emit, types.UniTuple(types.float64, 2 * terms))


def sums_across(
    roles: str,
    terms: int,
    expression: Expression,
    *,
    in_float64: Collection[ir.Type],
    rows: int = GROUP,
    ahead: bool = False,
    sums_in_compute: bool = False,
) -> Any:
    """Make a loop f(dtype, n, count, sums, stride, *operands) that adds the terms of an expression to n columns' sums.

    `count` rows, at most `rows`, are a group of the lane that the sums belong to. `sums` is the address of sums in
    memory: n float64 for each of (terms, sum_parts), `stride` bytes apart. The address of elements is followed by the
    stride from row to row. With `ahead`, `stride` is followed by how many bytes ahead elements are prefetched, or 0.
    With `sums_in_compute`, the sums are n numbers in the compute dtype for each term instead.
    """

    def emit(emitter: Emitter, values: Sequence[ir.Value]) -> None:
        builder = emitter.builder
        n, count, sums, stride, *rest = values
        distance = rest.pop(0) if ahead else None
        element, parts = _terms_of(emitter, in_float64)
        operands = operands_of(emitter, roles, rest, element, rows=rows)
        columns, parts = (ComputeColumns, 1) if sums_in_compute else (Columns, parts)
        memory = [columns(emitter, sums, term, stride, STEP) for term in range(terms)]

        def take(j: ir.Value, mask: ir.Value | None, *, upto: int) -> None:
            if mask is None and distance is not None and upto == rows:
                with builder.if_then(builder.icmp_signed("!=", distance, I64(0))):
                    for operand in operands:
                        for row in range(rows if operand.role == "x" else 0):
                            emitter.fetch(builder.add(operand.address(j, row), distance))
            running = [[emitter.zeros(element, STEP)] * terms for _ in range(min(parts, upto))]
            shared = {operand: operand.load(j, mask, STEP, 0) for operand in operands if operand.role not in "xr"}
            for row in range(upto):
                arguments = [shared.get(operand) or operand.load(j, mask, STEP, row) for operand in operands]
                part = running[row % len(running)]
                part[:] = [plus(total, term) for total, term in zip(part, expression(*arguments), strict=True)]
            for sums_of_term, *of_parts in zip(memory, *running, strict=True):
                more = of_parts[0] if sums_in_compute else _sum_of(of_parts)
                sums_of_term.store(j, mask, merge(sums_of_term.load(j, mask), (more,)))

        chosen = builder.switch(count, builder.append_basic_block("none"))
        after = builder.append_basic_block("after")
        with builder.goto_block(chosen.default):
            builder.branch(after)
        for upto in range(1, rows + 1):
            block = builder.append_basic_block(f"rows{upto}")
            chosen.add_case(I64(upto), block)
            builder.position_at_end(block)
            for operand in operands:
                operand.prepare(upto, STEP)
            emitter.over(I64(0), n, STEP, partial(take, upto=upto))
            builder.branch(after)
        builder.position_at_end(after)

    return loop(["n", "count", "sums", "stride", *(["ahead"] if ahead else []), *names_of(roles, rows)], emit)


class Columns:
    """Sums in memory: a row of float64 and, `stride` bytes behind it, a row of what they lost, if that is kept."""

    def __init__(self, emitter: Emitter, sums: ir.Value, term: int, stride: ir.Value, width: int = LANES) -> None:
        self.emitter = emitter
        self.width = width
        first = emitter.sum_parts * term
        self.rows = [emitter.at(sums, stride, first + part) for part in range(emitter.sum_parts)]

    def load(self, j: ir.Value, mask: ir.Value | None) -> Sum:
        return tuple([self.emitter.read(self.emitter.at(row, j, 8), DOUBLE, self.width, mask) for row in self.rows])

    def store(self, j: ir.Value, mask: ir.Value | None, total: Sum) -> None:
        for row, part in zip(self.rows, total, strict=True):
            self.emitter.write(part.value, self.emitter.at(row, j, 8), mask)


class ComputeColumns:
    """Sums in memory in the compute dtype: a row of numbers."""

    def __init__(self, emitter: Emitter, sums: ir.Value, term: int, stride: ir.Value, width: int) -> None:
        self.emitter = emitter
        self.width = width
        self.row = emitter.at(sums, stride, term)

    def _address(self, j: ir.Value) -> ir.Value:
        return self.emitter.at(self.row, j, BYTES[self.emitter.computed])

    def load(self, j: ir.Value, mask: ir.Value | None) -> Sum:
        return (self.emitter.read(self._address(j), self.emitter.computed, self.width, mask),)

    def store(self, j: ir.Value, mask: ir.Value | None, total: Sum) -> None:
        self.emitter.write(total[0].value, self._address(j), mask)


def _emit_merge(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    n, target, target_stride, source, source_stride = values
    totals, more = Columns(emitter, target, 0, target_stride), Columns(emitter, source, 0, source_stride)

    def take(j: ir.Value, mask: ir.Value | None) -> None:
        totals.store(j, mask, merge(totals.load(j, mask), more.load(j, mask)))

    emitter.over(I64(0), n, LANES, take)


# merge_sums(dtype, n, target, target_stride, source, source_stride) adds n sums in memory to n others.
merge_sums = loop(["n", "target", "target_stride", "source", "source_stride"], _emit_merge)


def _folded(emitter: Emitter, total: Sum) -> list[ir.Value]:
    """Return the sum of the lanes of a sum, and what it lost: 0 where that is not kept."""
    builder = emitter.builder
    for _ in range(LANES.bit_length() - 1):
        total = merge(*[tuple([part.half(number) for part in total]) for number in range(2)])
    return [*[builder.extract_element(part.value, I32(0)) for part in total], DOUBLE(0.0)][:2]


def _emit_scratch(emitter: Emitter, _: Sequence[ir.Value]) -> ir.Value:
    memory = cgutils.alloca_once(emitter.builder, ir.ArrayType(DOUBLE, 10 * LANES))
    return emitter.builder.ptrtoint(memory, I64)


# scratch(dtype) returns the address of memory for a few vectors of sums, in the caller's frame.
scratch = loop([], _emit_scratch, types.int64)
