"""Launch configs of sets side by side, columns of a table: held by a block or cluster where it can, else in chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from anynorm.backend import Five, Ints, Plan, View
from anynorm_cuda._build import (
    ABSENT,
    APART,
    DIFFER,
    LONGEST,
    PER_LINE,
    PER_ROW,
    TOGETHER,
    WIDEST,
    Builder,
    Dtypes,
    LaunchConfig,
    Step,
    Sums,
    sums_over,
)
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._thread_groups import COLUMN_THREADS, LANES, MEMORY, ColumnTile, Device, column_tile

# Vectors of a thread in a chunk of rows, so that short tables do not loop over many rows that they do not have.
COLUMN_ITEMS = (1, 4, 8)

# Rows of the longest chunk.
CHUNK = COLUMN_THREADS // LANES * COLUMN_ITEMS[-1]


class Tiling(NamedTuple):
    """How a table is split: into tiles of columns, and into chunks of rows unless tiles are of whole sets."""

    tile: ColumnTile
    tiles: int  # side by side
    chunks: int
    whole_sets: bool
    load: int  # bytes


class Columns(Builder):
    """Sets side by side."""

    def __init__(self, plan: Plan, view: View, dtypes: Dtypes, device: Device) -> None:
        super().__init__(plan, view, dtypes, device)
        self.columns, self.set_columns = self.b * self.s * self.p, self.s * self.p

    def parameter_layout(self, strides: Five | None) -> int:
        return ABSENT if strides is None else PER_ROW if strides[1] else PER_LINE

    def tiling(self, tensors: int, *, always_chunks: bool = False) -> Tiling:
        """Return how the table is split where so many tensors of it are held."""
        whole = None
        if not always_chunks:
            whole = column_tile(self.r, self.set_columns, self.per_vector, tensors, self.device)
        rows = COLUMN_THREADS // LANES
        items = next(items for items in COLUMN_ITEMS if rows * items >= self.r or items == COLUMN_ITEMS[-1])
        tile = whole or ColumnTile(LANES, LANES * self.per_vector, 1, items, MEMORY)
        tiles = -(-self.columns // tile.columns)
        load = self.line_load(self.columns, begins=tile.columns if tiles > 1 else 0)
        if load < WIDEST:
            tile = tile._replace(hold=MEMORY)
        return Tiling(tile, tiles, 1 if whole else -(-self.r // (rows * items)), whole is not None, load)

    def launch(self, name: str, tiling: Tiling, tensors: int) -> Launch:
        tile = tiling.tile
        macros = self.macros(
            THREADS=COLUMN_THREADS,
            MIN_BLOCKS=2 if self.per_vector == 8 else 4,  # as many as have enough registers
            CTAS=tile.ctas,
            LANES=tile.lanes,
            TILE_COLUMNS=tile.columns,
            ITEMS=0 if tiling.whole_sets and tile.hold == MEMORY else tile.items,
            HOLD=tile.hold,
            LOAD=tiling.load,
            WHOLE_SETS=int(tiling.whole_sets),
            COLUMNS_PER_SET=self.set_columns,
            COLUMNS_PER_PARAMETER=self.p,
            WEIGHT=self.parameter_layout(self.view.weight),
            BIAS=self.parameter_layout(self.view.bias),
        )
        parts = ("columns_backward",) if tensors == 2 else ()
        kernel = Kernel(name, ("call", "formula", "hold", "columns", *parts), macros)
        grid = (self.a * tiling.tiles * tile.ctas, tiling.chunks)
        return Launch(kernel, grid, COLUMN_THREADS, tile.shared_bytes(tensors))

    def merge(self, name: str, tiling: Tiling, *, weighted: bool) -> Launch:
        return self.finalize(name, tiling.chunks * self.set_columns, self.set_columns, self.p, weighted)

    def forward(self, step: Step) -> LaunchConfig | str:
        given = self.plan.given and step == "forward"
        tiling = self.tiling(1, always_chunks=given or step == "apply")
        if tiling.whole_sets:
            return self._config(tiling, (self.launch("columns_forward", tiling, 1),), 0, None)
        apply = () if step == "measure" else (self.launch("columns_apply", tiling, 1),)
        if given or step == "apply":
            return self._config(tiling, (*([self.given()] if given else []), *apply), 0, None, given=given)
        finalize = self.merge("finalize_statistics", tiling, weighted=False)
        return self._config(tiling, (self.launch("columns_measure", tiling, 1), finalize, *apply), 5, None)

    def backward(self, step: Step) -> LaunchConfig | str:
        varies = self.varies()
        if varies is None:
            return DIFFER
        tiling = self.tiling(2)
        if tiling.whole_sets and step != "backward":
            return TOGETHER
        launches: list[Launch] = [self.launch("columns_backward", tiling, 2)] if tiling.whole_sets else []
        if not tiling.whole_sets and step != "gradient":
            weighted = self.view.weight is not None and not varies[1]
            launches.append(self.launch("columns_gradient_sums", tiling, 2))
            launches.append(self.merge("finalize_gradient_sums", tiling, weighted=weighted))
        if not tiling.whole_sets and step != "gradient_sums":
            launches.append(self.launch("columns_gradient", tiling, 2))
        if step == "gradient" or (self.view.weight is None and self.view.bias is None):
            return self._config(tiling, launches, 2, None)
        lengths: Ints = (self.a, tiling.chunks, self.b, self.s, self.p)
        along: tuple[bool, ...] = (varies[0], False, varies[2], varies[3], False)
        if varies[1]:
            lengths, along = (self.a, tiling.tiles, self.r), (varies[0], False, True)
        sums = sums_over(lengths, along)
        if sums is None:
            return APART
        count = math.prod(lengths) if varies[1] else 0
        return self._config(tiling, (*launches, self.parameter_sums(sums)), 2, sums, count)

    def _config(
        self,
        tiling: Tiling,
        launches: Sequence[Launch],
        fields: int,
        sums: Sums | None,
        count: int = 0,
        *,
        given: bool = False,
    ) -> LaunchConfig | str:
        """Return a config: chunks leave `fields` floats per column, and `count` floats are summed per parameter."""
        if any(launch.grid[0] > LONGEST for launch in launches):
            return "there are too many sets"
        field_stride = self.a * tiling.chunks * self.columns
        of_partials = (tiling.chunks * self.columns, self.columns, self.set_columns, 1)
        specific = {"chunks": tiling.chunks, "field_stride": field_stride, "items": tiling.tile.items}
        return LaunchConfig(
            view=self.view,
            sets=self.sets,
            keeps_residuals=not tiling.whole_sets,
            given=given,
            launches=tuple(launches),
            partials=fields * field_stride,
            parameter_partials=count,
            counts=self.counts(columns=self.columns, **(sums._asdict() if sums is not None else {}), **specific),
            strides=self.strides((self.b, 0, 1, 0) if given else of_partials),
        )
