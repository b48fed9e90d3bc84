"""From a view to a job: which kernels run, in how many threads, and the argument they get. No array is touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from anynorm._plan import Plan
from anynorm._view import Five, Ints, Layout, View, view
from anynorm_cuda import _geometry as at
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._teams import Device, Team, chunk_team, forward_team, gradient_team, parameter_team

# Types of the source, and bytes of an element.
KINDS = {"float16": ("f16", 2), "bfloat16": ("bf16", 2), "float32": ("f32", 4)}

# How weight and bias lie: absent, along lines, one number for a line (or a column), one for a row.
NONE, VECTOR, LINE, ROW = 0, 1, 2, 3
NO_SUMS, SETS_SUMS, PIECES_SUMS = 0, 1, 2

# Rows shorter than this, of sets that have several, go side by side with those of other sets.
SHORT = 64

# A block takes strips of so many vectors of columns: 128 bytes, the least that memory is read in at full speed.
LANES, COLUMN_THREADS, COLUMN_ITEMS = 8, 256, (1, 4, 8)

# Sets that a team takes one after the other before it leaves what it gathered: 31 roundings of half an ulp are within
# the bound.
MOST_SHARE = 32

# So many numbers of chunks one thread merges; of more, a warp or a block does.
ALONE = 8

STAGES = 3  # sets of a team in shared memory, of which two are on their way
WIDEST = 16  # bytes of the widest load
LONGEST = 2**31 - 2**20  # what kernels count in int: sets, elements of one, columns, numbers to sum
MOST_ROWS = 65535  # of blocks, in a grid


class Kinds(NamedTuple):
    """The dtypes of x, weight and bias, by name; and what divides the addresses of x and all like it, and of both."""

    x: str
    weight: str | None
    bias: str | None
    bits: int = 0  # all bits that are set in the address of some array: what divides this divides each
    parameter_bits: int = 0


class Job(NamedTuple):
    """What to launch, in order, and all of the argument but addresses."""

    view: View
    sets: int
    keeps: bool  # whether statistics must be kept, because one kernel leaves them to another
    given: bool
    launches: tuple[Launch, ...]
    partial: int  # floats that chunks leave
    sums: int  # floats that sum up to the gradient of a weight, and as many to that of a bias; 0: `partial` has them
    counts: Ints
    steps: Ints

    @property
    def work(self) -> int:
        """Bytes of memory to work in."""
        backward = len(self.view.steps) == 3
        return 4 * (self.partial + (2 * self.sets + 2 * self.sums if backward else 0))


def forward_job(
    plan: Plan,
    kinds: Kinds,
    shape: Ints,
    strides: tuple[Ints, Ints],
    weight: Layout | None,
    bias: Layout | None,
    device: Device,
) -> Job | str:
    """Return the job for x and y, strides in elements, or half a sentence that says why there is none."""
    its = _view(plan, kinds, shape, strides, weight, bias)
    if isinstance(its, str):
        return its
    only_measure = plan.function == "moments"
    build = _Rows if _as_rows(its) else _Columns
    return build(plan, its, kinds, device).forward(only_measure=only_measure)


def gradient_job(
    plan: Plan,
    kinds: Kinds,
    shape: Ints,
    strides: tuple[Ints, Ints, Ints],
    weight: Layout | None,
    bias: Layout | None,
    device: Device,
) -> Job | str:
    """Return the job for x, dy and dx; weight and bias as their gradients are wanted, in C order."""
    if plan.given:
        return "statistics are given"
    its = _view(plan, kinds, shape, strides, weight, bias)
    if isinstance(its, str):
        return its
    if not _in_order(its):
        return "the gradient of a weight is wanted whose axes lie in another order than x's"
    build = _Rows if _as_rows(its) else _Columns
    return build(plan, its, kinds, device).backward()


def _view(
    plan: Plan, kinds: Kinds, shape: Ints, strides: tuple[Ints, ...], weight: Layout | None, bias: Layout | None
) -> View | str:
    if kinds.x not in KINDS:
        return f"the kernels have no {kinds.x}"
    found = view(plan, shape, strides, weight, bias)
    return found if isinstance(found, str) else _unfit(found) or found


def _as_rows(its: View) -> bool:
    """Say whether sets lie as lines. It follows from the lengths of a set alone."""
    _, r, _, s, p = its.lengths
    return (r == 1 or s * p >= SHORT) if p > 1 else (s > 1 and r == 1)


def _unfit(its: View) -> str | None:
    """Return why no kernel runs a view, or None."""
    a, r, b, s, p = its.lengths
    if max(r * s * p, a * b, b * s * p) > LONGEST:
        return f"more than {LONGEST} sets, elements of a set, or columns, are not counted"
    rows = _as_rows(its)
    along = [("P", p, 1), ("S", s, p), ("B", b, s * p)]
    if rows:
        along = along[:1] if p > 1 else along[1:2]
    for steps in its.steps:
        for place, length, needed in along:
            if length > 1 and steps["ARBSP".index(place)] != needed:
                return "neighbours in x's innermost axis do not lie side by side in memory"
    parameters = [steps for steps in (its.weight, its.bias) if steps is not None]
    if not rows and any(steps[1] and (steps[2] or steps[3]) for steps in parameters):
        return "weight or bias varies along rows and columns of a table whose columns are normalized"
    if rows and p == 1 and any(steps[3] not in (0, 1) for steps in parameters):
        return "weight or bias does not lie along x's innermost axis as x does"
    if not rows and -(-r // (COLUMN_THREADS // LANES * COLUMN_ITEMS[-1])) > MOST_ROWS:
        return f"columns of {r} rows are not counted"
    return None


def _in_order(its: View) -> bool:
    """Say whether the places that parameters vary along lie as their gradients do: in C order."""
    for steps in (its.weight, its.bias):
        expected = 1
        for place in (3, 2, 1, 0):  # S, B, R, A
            if steps is not None and its.lengths[place] > 1 and steps[place]:
                if steps[place] != expected:
                    return False
                expected *= its.lengths[place]
    return True


def _widths(its: View, kinds: Kinds) -> tuple[int, int]:
    """Return how many bytes at once can be read of x and all like it, and of weight and bias along lines."""
    rows, several = _as_rows(its), its.lengths[4] > 1
    # Where lines of a set, or rows of a table whose columns are sets, begin.
    places = ("ARBS" if several else "ARB") if rows else "AR"
    begins = ["ARBSP".index(place) for place in places]

    def divides(bits: int, size: int, tensors: Sequence[Five | None]) -> int:
        return math.gcd(WIDEST, bits, *[size * steps[place] for steps in tensors if steps for place in begins])

    load = divides(kinds.bits, KINDS[kinds.x][1], its.steps)
    if several or not rows:  # weight and bias are read number by number
        return load, WIDEST
    own = ((kinds.weight, its.weight), (kinds.bias, its.bias))
    widths = [divides(kinds.parameter_bits, KINDS[name][1], [steps]) for name, steps in own if name]
    return load, min(widths, default=WIDEST)


class _Sums(NamedTuple):
    """Over what a parameter's gradient is summed: numbers lie as (outer, kept, within)."""

    outer: int
    kept: int
    within: int


def _sums(lengths: Ints, varies: Sequence[bool]) -> _Sums | None:
    """Return the lengths before, along and behind the axes that a parameter varies along, if these are neighbours."""
    places = [(length, own) for length, own in zip(lengths, varies, strict=True) if length > 1]
    kept = [place for place, (_, own) in enumerate(places) if own]
    first, last = (kept[0], kept[-1] + 1) if kept else (len(places), len(places))
    if not all(own for _, own in places[first:last]):
        return None
    parts = (places[:first], places[first:last], places[last:])
    sums = _Sums(*[math.prod([length for length, _ in part]) for part in parts])
    return sums if math.prod(sums) <= LONGEST else None


class _Builder:
    """What both families share: a view, and how it becomes macros and an argument."""

    def __init__(self, plan: Plan, its: View, kinds: Kinds, device: Device) -> None:
        self.plan, self.its, self.kinds, self.device = plan, its, kinds, device
        self.a, self.r, self.b, self.s, self.p = its.lengths
        self.sets = self.a * self.b
        self.n = self.r * self.s * self.p
        self.load, self.wide = _widths(its, kinds)

    def macros(self, **own: int) -> tuple[tuple[str, str | int], ...]:
        kinds = self.kinds
        types = {"X": kinds.x, "W": kinds.weight or "float32", "B": kinds.bias or "float32"}
        common = {
            "LOAD": self.load,
            "WIDE": self.wide,
            "CENTRES": int(self.plan.centres),
        }
        return (*[(name, KINDS[its][0]) for name, its in types.items()], *{**common, **own}.items())

    def counts(self, **own: int) -> Ints:
        common = {"sets": self.sets, "inner": self.b, "n": self.n, "rows": self.r, "chunks": 1, "share": 1}
        known = {**dict.fromkeys(at.COUNTS, 1), **common, **own}
        return tuple([known[name] for name in at.COUNTS])

    def steps(self, of_partial: tuple[int, int, int, int]) -> Ints:
        tensors = {2: ("of_x", "of_y"), 3: ("of_x", "of_dy", "of_y")}[len(self.its.steps)]
        five: dict[str, Five | None] = dict(zip(tensors, self.its.steps, strict=True))
        five |= {"of_weight": self.its.weight, "of_bias": self.its.bias}
        known = {name: (steps or (0,) * 5)[:4] for name, steps in five.items()} | {"of_partial": of_partial}
        return tuple([step for name in at.TENSORS for step in known.get(name, (0,) * 4)])

    def settle(self, name: str, partials: int, of_set: int, places: int, weighted: bool) -> Launch:
        """Return the launch of a kernel that merges what chunks left of each set."""
        shared = partials > ALONE
        threads = 256 if partials > 128 else 32 if shared else 128
        own = {"OF_SET": of_set, "PLACES": places, "WEIGHTED": int(weighted), "SHARED_SET": int(shared)}
        # Of x's type, nothing depends.
        macros = (("X", "f32"), *self.macros(THREADS=threads, CTAS=1, **own)[1:])
        blocks = self.sets if shared else -(-self.sets // threads)
        return Launch(Kernel(name, ("call", "formula", "settle"), macros), (blocks, 1), threads, 0)

    def given(self) -> Launch:
        macros = self.macros(THREADS=128, CTAS=1)
        return Launch(Kernel("given", ("call", "formula", "parameters"), macros), (-(-self.sets // 128), 1), 128, 0)

    def parameter_sums(self, sums: _Sums) -> Launch:
        threads = 1024 if sums.outer * sums.within > 64 else 256
        macros = (("X", "f32"), ("W", "f32"), ("B", "f32"), ("THREADS", threads), ("CTAS", 1))
        kernel = Kernel("parameter_sums", ("call", "formula", "parameters"), macros)
        return Launch(kernel, (-(-sums.kept // 32), 2), threads, 0)

    def varies(self) -> tuple[bool, bool, bool, bool] | None:
        """Return along which of A, R, B, S weight and bias vary; None if they differ in that."""
        found = {tuple([step != 0 for step in its[:4]]) for its in (self.its.weight, self.its.bias) if its is not None}
        if len(found) > 1:
            return None
        return found.pop() if found else (False,) * 4  # type: ignore[return-value]


_DIFFER = "gradients of a weight and a bias that vary along different axes are wanted"
_APART = "the gradient of a weight is wanted that varies on both sides of an axis along which it does not"


class _Rows(_Builder):
    """Sets of lines."""

    def __init__(self, plan: Plan, its: View, kinds: Kinds, device: Device) -> None:
        super().__init__(plan, its, kinds, device)
        self.lines, self.run = (self.r * self.s, self.p) if self.p > 1 else (1, self.s)
        self.per_r = self.s if self.p > 1 else 1
        self.vectors = -(-self.run // (16 // KINDS[kinds.x][1]))

    def lies(self, steps: Five | None) -> int:
        return NONE if steps is None else VECTOR if self.p == 1 and steps[3] else LINE

    def kernel(self, name: str, parts: tuple[str, ...], team: Team, **own: int) -> Kernel:
        macros = self.macros(
            THREADS=team.threads,
            CTAS=team.ctas,
            LANES=team.lanes,
            UNITS=team.units,
            SETS=team.sets,
            ITEMS=team.items,
            HOLD=team.hold,
            CHUNKED=int(team.chunked),
            LINES=self.lines,
            PER_R=self.per_r,
            RUN=self.run,
            WEIGHT=self.lies(self.its.weight),
            BIAS=self.lies(self.its.bias),
            **own,
        )
        return Kernel(name, ("call", "formula", "team", "lines", *parts), macros)

    def pieces(self, team: Team) -> int:
        return self.lines * -(-self.vectors // team.lanes)

    def chunks(self, team: Team) -> int:
        return -(-self.pieces(team) // (team.units * team.items)) if team.chunked else 1

    def grid(self, team: Team) -> tuple[int, int]:
        chunks = self.chunks(team)
        return (self.sets * chunks if team.chunked else -(-self.sets // team.sets) * team.ctas), 1

    def forward(self, *, only_measure: bool) -> Job | str:
        team = forward_team(self.lines, self.vectors, self.device)
        if self.plan.given and not team.chunked:
            team = chunk_team(self.vectors, 8)
        chunks, grid = self.chunks(team), self.grid(team)
        if grid[0] > LONGEST:
            return "there are too many sets"

        def launch(name: str) -> Launch:
            return Launch(self.kernel(name, ("rows",), team), grid, team.threads, team.room(1))

        write = () if only_measure else (launch("rows_write"),)
        if self.plan.given:
            launches: tuple[Launch, ...] = (self.given(), *write)
        elif team.chunked:
            launches = (launch("rows_measure"), self.settle("settle", chunks, 1, 1, weighted=False), *write)
        else:
            launches = (launch("rows"),)
        plane = self.sets * chunks
        of_partial = (self.b, 0, 1, 0) if self.plan.given else (self.b * chunks, 1, chunks, 0)
        return Job(
            view=self.its,
            sets=self.sets,
            keeps=team.chunked,
            given=self.plan.given,
            launches=launches,
            partial=5 * plane if team.chunked and not self.plan.given else 0,
            sums=0,
            counts=self.counts(chunks=chunks, plane=plane),
            steps=self.steps(of_partial),
        )

    def backward(self) -> Job | str:
        varies = self.varies()
        if varies is None:
            return _DIFFER
        if self.p == 1 and varies[3]:
            return self._along_lines(varies)
        team = gradient_team(self.lines, self.vectors, self.device)
        pieces = self.pieces(team)
        wanted = self.its.weight is not None or self.its.bias is not None
        by_line = varies[1] or varies[3]
        kind = (PIECES_SUMS if by_line else SETS_SUMS) if wanted else NO_SUMS
        if kind == SETS_SUMS and team.chunked:
            kind = PIECES_SUMS
        lengths: Ints = (self.a, self.b, self.lines // self.per_r, self.per_r, pieces // self.lines)
        along: tuple[bool, ...] = (varies[0], varies[2], varies[1], varies[3], False)
        if kind == SETS_SUMS:
            lengths, along = lengths[:2], along[:2]
        sums = _sums(lengths, along)
        if sums is None and wanted:
            return _APART
        return self._job(team, sums if wanted else None, math.prod(lengths), SUMS=kind)

    def _job(self, team: Team, sums: _Sums | None, count: int, **own: int) -> Job | str:
        """Return the job of a backward pass in one go, or chunk by chunk."""
        chunks, grid = self.chunks(team), self.grid(team)

        def launch(name: str) -> Launch:
            return Launch(self.kernel(name, ("row_gradients",), team, **own), grid, team.threads, team.room(2))

        if team.chunked:
            settle = self.settle("settle_means", chunks, 1, 1, weighted=False)
            launches = [launch("row_shares"), settle, launch("row_slopes")]
        else:
            launches = [launch("row_gradients")]
        if sums is not None:
            launches.append(self.parameter_sums(sums))
        plane = self.sets * chunks
        return self._gradient_job(launches, 2 * plane if team.chunked else 0, sums, count, chunks=chunks, plane=plane)

    def _gradient_job(
        self, launches: list[Launch], partial: int, sums: _Sums | None, count: int, **counts: int
    ) -> Job | str:
        if any(launch.grid[0] > LONGEST or launch.grid[1] > MOST_ROWS for launch in launches):
            return "there are too many sets"
        chunks = counts.get("chunks", 1)
        return Job(
            view=self.its,
            sets=self.sets,
            keeps=True,
            given=False,
            launches=tuple(launches),
            partial=partial,
            sums=count if sums is not None else 0,
            counts=self.counts(**(sums._asdict() if sums is not None else {}), **counts),
            steps=self.steps((self.b * chunks, 1, chunks, 0)),
        )

    def _along_lines(self, varies: tuple[bool, bool, bool, bool]) -> Job | str:
        """Return the job for a weight that lies along the lines."""
        if varies[0]:
            return "the gradient of a weight or bias of each sample is wanted"
        team = parameter_team(self.vectors, self.device)
        if team is None:
            return self._along_long_lines(varies)
        rows, of_b = (self.a, self.b) if varies[2] else (self.sets, 1)
        wanted = max(1, self.device.processors * _blocks_of_a_processor(team) // (team.ctas * of_b))
        share = min(MOST_SHARE, -(-rows // (wanted * team.sets)))
        teams = -(-rows // (share * team.sets))
        stages = 2 if 32 * STAGES * team.items * team.threads + 12288 > self.device.shared else STAGES
        launch = Launch(
            self.kernel("row_parameters", ("row_parameters",), team, STAGES=stages),
            (teams * team.ctas, of_b),
            team.threads,
            32 * stages * team.items * team.threads,
        )
        sums = _Sums(teams, of_b * self.run, 1)
        return self._gradient_job(
            [launch, self.parameter_sums(sums)], 0, sums, teams * of_b * self.run, rows=rows, share=share
        )

    def _along_long_lines(self, varies: tuple[bool, bool, bool, bool]) -> Job | str:
        if varies[2] and self.b > 1:
            return f"lines of {self.run} elements with a weight of their own are too long"
        strips = -(-self.vectors // 256)
        wanted = max(1, 8 * self.device.processors // strips)
        share = min(MOST_SHARE, -(-self.sets // wanted))
        teams = -(-self.sets // share)
        macros = self.macros(THREADS=256, CTAS=1)
        kernel = Kernel("long_parameters", ("call", "formula", "long_parameters"), macros)
        sums = _Sums(teams, self.run, 1)
        # TWO geometries in one argument: `chunks` and `plane` for the first three, `share` and `columns` for the last.
        team = chunk_team(self.vectors, 4)
        chunks, plane = self.chunks(team), self.sets * self.chunks(team)
        shares, slopes = [
            Launch(self.kernel(name, ("row_gradients",), team, SUMS=NO_SUMS), self.grid(team), team.threads, 0)
            for name in ("row_shares", "row_slopes")
        ]
        launches = [
            shares,
            self.settle("settle_means", chunks, 1, 1, weighted=False),
            slopes,
            Launch(kernel, (strips, teams), 256, 0),
            self.parameter_sums(sums),
        ]
        counts = {"chunks": chunks, "plane": plane, "share": share, "columns": self.run}
        return self._gradient_job(launches, 2 * plane, sums, teams * self.run, **counts)


def _blocks_of_a_processor(team: Team) -> int:
    """Return how many blocks of a team that gathers gradients run on a processor at once."""
    return 8 if team.threads <= 128 else 4 if team.items == 1 else 2 if team.items == 2 else 1


class _Columns(_Builder):
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
            GRADIENTS=int(len(self.its.steps) == 3),
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
            return _DIFFER
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
        sums = _sums(lengths, along)
        if sums is None:
            return _APART
        count = math.prod(lengths) if varies[1] else 0
        return self._job((*launches, self.parameter_sums(sums)), 2 * self.plane, sums, count)

    def _job(self, launches: tuple[Launch, ...], partial: int, sums: _Sums | None, count: int = 0) -> Job | str:
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
