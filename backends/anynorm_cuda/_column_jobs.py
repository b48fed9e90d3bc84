"""Jobs of sets side by side: the columns of a table, strip by strip and chunk by chunk of rows."""

from __future__ import annotations

import math

from anynorm._plan import Plan
from anynorm._view import Five, Ints, View
from anynorm_cuda._build import APART, DIFFER, KINDS, LINE, LONGEST, NONE, ROW, Builder, Job, Kinds, Sums, sums_over
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._teams import Device

# A block takes strips of so many vectors of columns: 128 bytes, the least that memory is read in at full speed.
LANES, COLUMN_THREADS, COLUMN_ITEMS = 8, 256, (1, 4, 8)


class Columns(Builder):
    """Sets side by side."""

    def __init__(self, plan: Plan, its: View, kinds: Kinds, device: Device) -> None:
        super().__init__(plan, its, kinds, device)
        self.columns, self.of_set = self.b * self.s * self.p, self.s * self.p
        rows = COLUMN_THREADS // LANES
        # Of a short table no thread is to run through many rows that are not there. (Two rows a thread spill.)
        self.items = next(items for items in COLUMN_ITEMS if rows * items >= self.r or items == COLUMN_ITEMS[-1])
        self.chunks = -(-self.r // (rows * self.items))
        strip = LANES * (16 // KINDS[kinds.x][1])
        self.grid = (self.a * -(-self.columns // strip), self.chunks)
        self.plane = self.a * self.chunks * self.columns

    def lies(self, steps: Five | None) -> int:
        return NONE if steps is None else ROW if steps[1] else LINE

    def launch(self, name: str) -> Launch:
        macros = self.macros(
            THREADS=COLUMN_THREADS,
            CTAS=1,
            LANES=LANES,
            ITEMS=self.items,
            OF_SET=self.of_set,
            PLACES=self.p,
            WEIGHT=self.lies(self.its.weight),
            BIAS=self.lies(self.its.bias),
        )
        return Launch(Kernel(name, ("call", "formula", "columns"), macros), self.grid, COLUMN_THREADS, 0)

    def merge(self, name: str, *, weighted: bool) -> Launch:
        return self.settle(name, self.chunks * self.of_set, self.of_set, self.p, weighted)

    def forward(self, *, only_measure: bool) -> Job | str:
        write = () if only_measure else (self.launch("columns_write"),)
        first = (
            (self.given(),)
            if self.plan.given
            else (self.launch("columns_measure"), self.merge("settle", weighted=False))
        )
        return self._job((*first, *write), 0 if self.plan.given else 5 * self.plane, None)

    def backward(self) -> Job | str:
        varies = self.varies()
        if varies is None:
            return DIFFER
        weighted = self.its.weight is not None and not varies[1]
        launches = [
            self.launch("column_shares"),
            self.merge("settle_means", weighted=weighted),
            self.launch("column_slopes"),
        ]
        if self.its.weight is None and self.its.bias is None:
            return self._job(tuple(launches), 2 * self.plane, None)
        lengths: Ints = (self.a, self.chunks, self.b, self.s, self.p)
        along: tuple[bool, ...] = (varies[0], False, varies[2], varies[3], False)
        if varies[1]:
            lengths, along = (self.a, self.grid[0] // self.a, self.r), (varies[0], False, True)
        sums = sums_over(lengths, along)
        if sums is None:
            return APART
        count = math.prod(lengths) if varies[1] else 0
        return self._job((*launches, self.parameter_sums(sums)), 2 * self.plane, sums, count)

    def _job(self, launches: tuple[Launch, ...], partial: int, sums: Sums | None, count: int = 0) -> Job | str:
        if any(launch.grid[0] > LONGEST for launch in launches):
            return "there are too many sets"
        steps = (self.chunks * self.columns, self.columns, self.of_set, 1)
        if self.plan.given:
            steps = (self.b, 0, 1, 0)
        counts = {"columns": self.columns, "chunks": self.chunks, "plane": self.plane}
        return Job(
            view=self.its,
            sets=self.sets,
            keeps=True,
            given=self.plan.given,
            launches=launches,
            partial=partial,
            sums=count,
            counts=self.counts(**(sums._asdict() if sums is not None else {}), **counts),
            steps=self.steps(steps),
        )
