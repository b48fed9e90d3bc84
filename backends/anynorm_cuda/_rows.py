"""Launch configs of sets of lines: in one go where a team can hold a set, else chunk by chunk."""

from __future__ import annotations

import math

from anynorm.backend import Five, Ints, Plan, View
from anynorm_cuda._build import (
    APART,
    DIFFER,
    LINE,
    LONGEST,
    MOST_ROWS,
    NONE,
    VECTOR,
    WIDEST,
    Builder,
    Dtypes,
    LaunchConfig,
    Sums,
    sums_over,
)
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._teams import MEMORY, REGISTERS, Device, Team, chunk_team, forward_team, gradient_team, parameter_team

# What a team leaves to sum up to dweight and dbias: nothing, sums of each set, or of each piece of a line.
NO_SUMS, SETS_SUMS, PIECES_SUMS = 0, 1, 2

# Sets that a team takes one after the other before it leaves what it gathered. A thread adds FOLD numbers one after the
# other, and then up to MOST_SHARE / FOLD sums of so many: no more roundings than the bound has room for.
FOLD, MOST_SHARE = 16, 256

# The same, where it adds all of them one after the other.
LONG_SHARE = 32

STAGES = 3  # sets of a team in shared memory, of which two are on their way

# Bytes of shared memory that the source of the kernel that gathers gradients declares, at most.
DECLARED = 36 << 10


class Rows(Builder):
    """Sets of lines."""

    def __init__(self, plan: Plan, view: View, dtypes: Dtypes, device: Device) -> None:
        super().__init__(plan, view, dtypes, device)
        self.lines, self.run = (self.r * self.s, self.p) if self.p > 1 else (1, self.s)
        # Lines that lie along two axes, R and S, or along one alone.
        self.split = self.p > 1 and self.r > 1 and self.s > 1
        self.vectors = -(-self.run // self.per_vector)
        self.load = self.words(self.run)

    def lies(self, steps: Five | None) -> int:
        return NONE if steps is None else VECTOR if self.p == 1 and steps[3] else LINE

    def held(self, team: Team) -> Team:
        """Return the team that holds what it has where it can: vectors that are not aligned pass through memory."""
        return team if self.load == WIDEST else team._replace(hold=MEMORY)

    def kernel(self, name: str, part: str, team: Team, **own: int) -> Kernel:
        # Lengths that change from call to call, those of images, and of sets that take long, are not compiled in.
        known = self.p == 1 and not team.chunked
        macros = self.macros(
            THREADS=team.threads,
            CTAS=team.ctas,
            LANES=team.lanes,
            UNITS=team.units,
            SETS=team.sets,
            ITEMS=team.items if known or team.chunked or team.hold == REGISTERS else 0,
            HOLD=team.hold,
            CHUNKED=int(team.chunked),
            RUN=self.run if known else 0,
            INNER=int(self.b > 1),
            LINES=int(self.lines == 1),
            SPLIT=int(self.split),
            TAIL=int(self.run % self.per_vector != 0),
            WEIGHT=self.lies(self.view.weight),
            BIAS=self.lies(self.view.bias),
            **own,
        )
        return Kernel(name, ("call", "formula", "hold", "team", "lines", part), macros)

    def pieces(self, team: Team) -> int:
        return self.lines * self.per_line(team)

    def per_line(self, team: Team) -> int:
        return -(-self.vectors // team.lanes)

    def lengths(self, team: Team) -> dict[str, int]:
        """Return what the argument tells of lines and of a team."""
        return {
            "run": self.run,
            "pieces": self.pieces(team),
            "items": team.items,
            "per_line": self.per_line(team),
            "per_r": self.s if self.split else 1,
        }

    def steps(self, of_partial: tuple[int, int, int, int]) -> Ints:
        """Return steps along A, lines, B and, where lines lie along two axes, the second of these."""
        steps = super().steps(of_partial)
        if self.split or self.r > 1 or self.p == 1:
            return steps
        tensors = len(steps) // 4 - 1  # all but `of_partial`
        swapped = [steps[4 * tensor + place] for tensor in range(tensors) for place in (0, 3, 2, 1)]
        return (*swapped, *steps[4 * tensors :])

    def chunks(self, team: Team) -> int:
        return -(-self.pieces(team) // (team.units * team.items)) if team.chunked else 1

    def grid(self, team: Team) -> tuple[int, int]:
        chunks = self.chunks(team)
        return (self.sets * chunks if team.chunked else -(-self.sets // team.sets) * team.ctas), 1

    def launch(self, name: str, part: str, team: Team, tensors: int, **own: int) -> Launch:
        kernel = self.kernel(name, part, team, **own)
        return Launch(kernel, self.grid(team), team.threads, team.room(tensors))

    def forward(self, *, only_measure: bool) -> LaunchConfig | str:
        team = self.held(forward_team(self.lines, self.vectors, self.device))
        if self.plan.given and not team.chunked:
            team = chunk_team(self.vectors, 8)
        chunks, grid = self.chunks(team), self.grid(team)
        if grid[0] > LONGEST:
            return "there are too many sets"

        def launch(name: str) -> Launch:
            return self.launch(name, "rows", team, 1)

        write = () if only_measure else (launch("rows_write"),)
        if self.plan.given:
            launches: tuple[Launch, ...] = (self.given(), *write)
        elif team.chunked:
            launches = (launch("rows_measure"), self.settle("settle", chunks, 1, 1, weighted=False), *write)
        else:
            launches = (launch("rows"),)
        plane = self.sets * chunks
        of_partial = (self.b, 0, 1, 0) if self.plan.given else (self.b * chunks, 1, chunks, 0)
        return LaunchConfig(
            view=self.view,
            sets=self.sets,
            keeps_residuals=team.chunked,
            given=self.plan.given,
            launches=launches,
            partial=5 * plane if team.chunked and not self.plan.given else 0,
            sums=0,
            counts=self.counts(**self.lengths(team), chunks=chunks, plane=plane),
            steps=self.steps(of_partial),
        )

    def backward(self) -> LaunchConfig | str:
        varies = self.varies()
        if varies is None:
            return DIFFER
        if self.p == 1 and varies[3]:
            return self._along_lines(varies)
        team = self.held(gradient_team(self.lines, self.vectors, self.device))
        pieces = self.pieces(team)
        wanted = self.view.weight is not None or self.view.bias is not None
        by_line = varies[1] or varies[3]
        kind = (PIECES_SUMS if by_line else SETS_SUMS) if wanted else NO_SUMS
        if kind == SETS_SUMS and team.chunked:
            kind = PIECES_SUMS
        lengths: Ints = (self.a, self.b, self.r, self.s, pieces // self.lines)
        along: tuple[bool, ...] = (varies[0], varies[2], varies[1], varies[3], False)
        if kind == SETS_SUMS:
            lengths, along = lengths[:2], along[:2]
        sums = sums_over(lengths, along)
        if sums is None and wanted:
            return APART
        return self._config(team, kind, sums if wanted else None, math.prod(lengths))

    def _config(
        self, team: Team, kind: int, sums: Sums | None, count: int, *beside: Launch, **own: int
    ) -> LaunchConfig | str:
        """Return the config of a backward pass: what writes dx, in one go or chunk by chunk, then what runs beside."""
        chunks = self.chunks(team)
        plane = self.sets * chunks

        def launch(name: str) -> Launch:
            return self.launch(name, "row_gradients", team, 2, SUMS=kind)

        if team.chunked:
            settle = self.settle("settle_means", chunks, 1, 1, weighted=False)
            launches = [launch("row_shares"), settle, launch("row_slopes"), *beside]
        else:
            launches = [launch("row_gradients"), *beside]
        if sums is not None:
            launches.append(self.parameter_sums(sums))
        counts = self.lengths(team) | {"chunks": chunks, "plane": plane} | own
        return self._backward_config(launches, 2 * plane if team.chunked else 0, sums, count, **counts)

    def _backward_config(
        self, launches: list[Launch], partial: int, sums: Sums | None, count: int, **counts: int
    ) -> LaunchConfig | str:
        if any(launch.grid[0] > LONGEST or launch.grid[1] > MOST_ROWS for launch in launches):
            return "there are too many sets"
        chunks = counts.get("chunks", 1)
        return LaunchConfig(
            view=self.view,
            sets=self.sets,
            keeps_residuals=True,
            given=False,
            launches=tuple(launches),
            partial=partial,
            sums=count if sums is not None else 0,
            counts=self.counts(**(sums._asdict() if sums is not None else {}), **counts),
            steps=self.steps((self.b * chunks, 1, chunks, 0)),
        )

    def _along_lines(self, varies: tuple[bool, bool, bool, bool]) -> LaunchConfig | str:
        """Return the config for a weight that lies along the lines."""
        if varies[0]:
            return "the gradient of a weight or bias of each sample is wanted"
        team = parameter_team(self.vectors, self.device)
        if team is None:
            return self._along_long_lines(varies)
        rows, of_b = (self.a, self.b) if varies[2] else (self.sets, 1)
        # As many teams as run at once, or a multiple of that.
        at_once = max(1, self.device.processors * self.blocks(team) // (team.ctas * of_b)) * team.sets
        share = -(-rows // (at_once * -(-rows // (at_once * MOST_SHARE))))
        teams = -(-rows // (share * team.sets))
        folded = self.folded(team) if share > FOLD else 0
        stages = 2 if 32 * STAGES * team.items * team.threads + folded + DECLARED > self.device.shared else STAGES
        macros = {"STAGES": stages, "FOLD": FOLD if folded else 0, "BLOCKS": self.blocks(team)}
        launch = Launch(
            self.kernel("row_parameters", "row_parameters", team, **macros),
            (teams * team.ctas, of_b),
            team.threads,
            32 * stages * team.items * team.threads + folded,
        )
        sums = Sums(teams, of_b * self.run, 1)
        return self._backward_config(
            [launch, self.parameter_sums(sums)], 0, sums, teams * of_b * self.run, rows=rows, share=share
        )

    def blocks(self, team: Team) -> int:
        """Return how many blocks of a team that gathers gradients run on a processor at once."""
        return 6 if team.threads <= 128 else 3 if team.items == 1 else 2 if team.items == 2 else 1

    def folded(self, team: Team) -> int:
        """Return the bytes of what the threads of a team gathered of dweight and dbias, float32."""
        return 2 * 4 * self.per_vector * team.items * team.threads

    def _along_long_lines(self, varies: tuple[bool, bool, bool, bool]) -> LaunchConfig | str:
        if varies[2] and self.b > 1:
            return f"lines of {self.run} elements with a weight of their own are too long"
        strips = -(-self.vectors // 256)
        wanted = max(1, 8 * self.device.processors // strips)
        share = min(LONG_SHARE, -(-self.sets // wanted))
        teams = -(-self.sets // share)
        macros = self.macros(THREADS=256, CTAS=1)
        kernel = Kernel("long_parameters", ("call", "formula", "long_parameters"), macros)
        sums = Sums(teams, self.run, 1)
        team = self.held(gradient_team(self.lines, self.vectors, self.device))
        gather = Launch(kernel, (strips, teams), 256, 0)
        # One argument for all: `share` and `columns` are for the parameters.
        return self._config(team, NO_SUMS, sums, teams * self.run, gather, share=share, columns=self.run)
