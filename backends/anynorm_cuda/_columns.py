"""Launch configs of sets side by side, columns of a table: at once where a cluster can hold them, else in chunks."""

from __future__ import annotations

import math
from typing import NamedTuple

from anynorm.backend import Five, Ints, Plan, View
from anynorm_cuda._build import (
    APART,
    DIFFER,
    LINE,
    LONGEST,
    NONE,
    ROW,
    WIDEST,
    Builder,
    Dtypes,
    LaunchConfig,
    Sums,
    sums_over,
)
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._teams import COLUMN_THREADS, LANES, MEMORY, Device, Strip, column_strip

# Vectors of a thread, of a chunk of rows: those of a short table are not to run through many rows that are not there.
COLUMN_ITEMS = (1, 4, 8)

# Rows of the longest chunk.
CHUNK = COLUMN_THREADS // LANES * COLUMN_ITEMS[-1]


class Cut(NamedTuple):
    """How a table is cut: in strips of columns, and in chunks of rows unless strips are of whole sets with all rows."""

    strip: Strip
    strips: int  # beside each other
    chunks: int
    whole: bool
    load: int  # bytes


class Columns(Builder):
    """Sets side by side."""

    def __init__(self, plan: Plan, view: View, dtypes: Dtypes, device: Device) -> None:
        super().__init__(plan, view, dtypes, device)
        self.columns, self.of_set = self.b * self.s * self.p, self.s * self.p

    def lies(self, steps: Five | None) -> int:
        return NONE if steps is None else ROW if steps[1] else LINE

    def cut(self, tensors: int) -> Cut:
        """Return how the table is cut where so many tensors of it are held."""
        whole = None if self.plan.given else column_strip(self.r, self.of_set, self.per_vector, tensors, self.device)
        rows = COLUMN_THREADS // LANES
        items = next(items for items in COLUMN_ITEMS if rows * items >= self.r or items == COLUMN_ITEMS[-1])
        strip = whole or Strip(LANES, LANES * self.per_vector, 1, items, MEMORY)
        strips = -(-self.columns // strip.columns)
        load = self.words(self.columns, begins=strip.columns if strips > 1 else 0)
        if load < WIDEST:
            strip = strip._replace(hold=MEMORY)
        return Cut(strip, strips, 1 if whole else -(-self.r // (rows * items)), whole is not None, load)

    def launch(self, name: str, cut: Cut, tensors: int) -> Launch:
        strip = cut.strip
        macros = self.macros(
            THREADS=COLUMN_THREADS,
            BLOCKS=2 if self.per_vector == 8 else 4,  # so that registers are enough
            CTAS=strip.ctas,
            LANES=strip.lanes,
            STRIP=strip.columns,
            ITEMS=0 if cut.whole and strip.hold == MEMORY else strip.items,
            HOLD=strip.hold,
            LOAD=cut.load,
            JOINT=int(cut.whole),
            OF_SET=self.of_set,
            PLACES=self.p,
            WEIGHT=self.lies(self.view.weight),
            BIAS=self.lies(self.view.bias),
        )
        parts = ("column_gradients",) if tensors == 2 else ()
        kernel = Kernel(name, ("call", "formula", "hold", "columns", *parts), macros)
        return Launch(kernel, (self.a * cut.strips * strip.ctas, cut.chunks), COLUMN_THREADS, strip.room(tensors))

    def merge(self, name: str, cut: Cut, *, weighted: bool) -> Launch:
        return self.settle(name, cut.chunks * self.of_set, self.of_set, self.p, weighted)

    def forward(self, *, only_measure: bool) -> LaunchConfig | str:
        cut = self.cut(1)
        write = () if only_measure else (self.launch("columns_write", cut, 1),)
        if self.plan.given:
            return self._config(cut, (self.given(), *write), 0, None)
        if cut.whole:
            return self._config(cut, (self.launch("columns", cut, 1),), 0, None)
        launches = (self.launch("columns_measure", cut, 1), self.merge("settle", cut, weighted=False), *write)
        return self._config(cut, launches, 5, None)

    def backward(self) -> LaunchConfig | str:
        varies = self.varies()
        if varies is None:
            return DIFFER
        cut = self.cut(2)
        weighted = self.view.weight is not None and not varies[1]
        launches = (
            (self.launch("column_gradients", cut, 2),)
            if cut.whole
            else (
                self.launch("column_shares", cut, 2),
                self.merge("settle_means", cut, weighted=weighted),
                self.launch("column_slopes", cut, 2),
            )
        )
        if self.view.weight is None and self.view.bias is None:
            return self._config(cut, launches, 2, None)
        lengths: Ints = (self.a, cut.chunks, self.b, self.s, self.p)
        along: tuple[bool, ...] = (varies[0], False, varies[2], varies[3], False)
        if varies[1]:
            lengths, along = (self.a, cut.strips, self.r), (varies[0], False, True)
        sums = sums_over(lengths, along)
        if sums is None:
            return APART
        count = math.prod(lengths) if varies[1] else 0
        return self._config(cut, (*launches, self.parameter_sums(sums)), 2, sums, count)

    def _config(
        self, cut: Cut, launches: tuple[Launch, ...], planes: int, sums: Sums | None, count: int = 0
    ) -> LaunchConfig | str:
        """Return a config; `planes` of what chunks leave for each column, `count` numbers to sum for each parameter."""
        if any(launch.grid[0] > LONGEST for launch in launches):
            return "there are too many sets"
        plane = self.a * cut.chunks * self.columns
        given = self.plan.given
        steps = (self.b, 0, 1, 0) if given else (cut.chunks * self.columns, self.columns, self.of_set, 1)
        own = {"columns": self.columns, "chunks": cut.chunks, "plane": plane, "items": cut.strip.items}
        return LaunchConfig(
            view=self.view,
            sets=self.sets,
            keeps_residuals=not cut.whole,
            given=given,
            launches=launches,
            partial=planes * plane,
            sums=count,
            counts=self.counts(**(sums._asdict() if sums is not None else {}), **own),
            steps=self.steps(steps),
        )
