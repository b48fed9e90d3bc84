"""Launch configs of sets of lines: in one kernel where a thread group can hold a set, else in chunks."""

from __future__ import annotations

import math

from anynorm.backend import Five, Ints, Plan, View
from anynorm_cuda._build import (
    ABSENT,
    ALONG_LINE,
    APART,
    DIFFER,
    LONGEST,
    MOST_ROWS,
    PER_LINE,
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
from anynorm_cuda._thread_groups import (
    MEMORY,
    REGISTERS,
    Device,
    ThreadGroup,
    backward_group,
    chunk_group,
    forward_group,
    parameter_group,
)

# What is stored to be summed to dweight and dbias: nothing, sums of each set, or of each piece of a line.
NO_SUMS, SUMS_PER_SET, SUMS_PER_PIECE = 0, 1, 2

# A thread group adds the gradients of up to MOST_SETS sets. A thread adds FOLD values one after the other, and then up
# to MOST_SETS / FOLD of these sums: no more roundings than the bound has room for.
FOLD, MOST_SETS = 16, 256

# The same for a thread that adds all of them one after the other.
MOST_LONG_SETS = 32

STAGES = 3  # sets of a thread group in shared memory: one is worked on, the loads of two are in flight

# The most bytes of shared memory that the source of the kernel `rows_backward_parameters` declares itself.
DECLARED = 36 << 10


class Rows(Builder):
    """Sets of lines."""

    def __init__(self, plan: Plan, view: View, dtypes: Dtypes, device: Device) -> None:
        super().__init__(plan, view, dtypes, device)
        self.lines, self.line_length = (self.r * self.s, self.p) if self.p > 1 else (1, self.s)
        # Whether the lines of a set are indexed by R and S, else by one of them.
        self.two_line_axes = self.p > 1 and self.r > 1 and self.s > 1
        self.vectors = -(-self.line_length // self.per_vector)
        self.load = self.line_load(self.line_length)

    def parameter_layout(self, strides: Five | None) -> int:
        return ABSENT if strides is None else ALONG_LINE if self.p == 1 and strides[3] else PER_LINE

    def held(self, group: ThreadGroup) -> ThreadGroup:
        """Return the group with where it can hold a set: vectors that are not aligned go through shared memory."""
        return group if self.load == WIDEST else group._replace(hold=MEMORY)

    def kernel(self, name: str, part: str, group: ThreadGroup, **specific: int) -> Kernel:
        # Lengths that differ from call to call (images, long sets) are arguments, not macros.
        known = self.p == 1 and not group.chunked
        macros = self.macros(
            THREADS=group.threads,
            CTAS=group.ctas,
            LANES=group.lanes,
            SUBGROUPS=group.subgroups,
            GROUPS=group.groups,
            ITEMS=group.items if known or group.chunked or group.hold == REGISTERS else 0,
            HOLD=group.hold,
            CHUNKED=int(group.chunked),
            LINE_LENGTH=self.line_length if known else 0,
            HAS_B=int(self.b > 1),
            ONE_LINE=int(self.lines == 1),
            TWO_LINE_AXES=int(self.two_line_axes),
            TAIL=int(self.line_length % self.per_vector != 0),
            WEIGHT=self.parameter_layout(self.view.weight),
            BIAS=self.parameter_layout(self.view.bias),
            **specific,
        )
        return Kernel(name, ("call", "formula", "hold", "thread_group", "lines", part), macros)

    def pieces(self, group: ThreadGroup) -> int:
        return self.lines * self.per_line(group)

    def per_line(self, group: ThreadGroup) -> int:
        return -(-self.vectors // group.lanes)

    def line_counts(self, group: ThreadGroup) -> dict[str, int]:
        """Return the counts of the argument that describe lines and a thread group."""
        return {
            "line_length": self.line_length,
            "pieces": self.pieces(group),
            "items": group.items,
            "per_line": self.per_line(group),
            "per_r": self.s if self.two_line_axes else 1,
        }

    def strides(self, of_partials: tuple[int, int, int, int]) -> Ints:
        """Return strides along A, lines, B and, where lines are indexed by R and S, the second of these."""
        strides = super().strides(of_partials)
        if self.two_line_axes or self.r > 1 or self.p == 1:
            return strides
        tensors = len(strides) // 4 - 1  # all but `partials`
        swapped = [strides[4 * tensor + axis] for tensor in range(tensors) for axis in (0, 3, 2, 1)]
        return (*swapped, *strides[4 * tensors :])

    def chunks(self, group: ThreadGroup) -> int:
        return -(-self.pieces(group) // (group.subgroups * group.items)) if group.chunked else 1

    def grid(self, group: ThreadGroup) -> tuple[int, int]:
        chunks = self.chunks(group)
        return (self.sets * chunks if group.chunked else -(-self.sets // group.groups) * group.ctas), 1

    def launch(self, name: str, part: str, group: ThreadGroup, tensors: int, **specific: int) -> Launch:
        kernel = self.kernel(name, part, group, **specific)
        return Launch(kernel, self.grid(group), group.threads, group.shared_bytes(tensors))

    def forward(self, step: Step) -> LaunchConfig | str:
        given = self.plan.given and step == "forward"
        group = self.held(forward_group(self.lines, self.vectors, self.device))
        if (given or step == "apply") and not group.chunked:
            group = chunk_group(self.vectors, 8)
        chunks = self.chunks(group)
        if self.grid(group)[0] > LONGEST:
            return "there are too many sets"

        def launch(name: str) -> Launch:
            return self.launch(name, "rows", group, 1)

        measured = group.chunked and not given and step != "apply"
        apply = () if step == "measure" else (launch("rows_apply"),)
        if given or step == "apply":
            launches = (*([self.given()] if given else []), *apply)
        elif group.chunked:
            finalize = self.finalize("finalize_statistics", chunks, 1, 1, weighted=False)
            launches = (launch("rows_measure"), finalize, *apply)
        else:
            launches = (launch("rows_forward"),)
        field_stride = self.sets * chunks
        of_partials = (self.b, 0, 1, 0) if given else (self.b * chunks, 1, chunks, 0)
        return LaunchConfig(
            view=self.view,
            sets=self.sets,
            keeps_residuals=group.chunked,
            given=given,
            launches=launches,
            partials=5 * field_stride if measured else 0,
            parameter_partials=0,
            counts=self.counts(**self.line_counts(group), chunks=chunks, field_stride=field_stride),
            strides=self.strides(of_partials),
        )

    def backward(self, step: Step) -> LaunchConfig | str:
        varies = self.varies()
        if varies is None:
            return DIFFER
        if self.p == 1 and varies[3]:
            return self._along_lines(varies, step)
        group = self.held(backward_group(self.lines, self.vectors, self.device))
        wanted = self.view.weight is not None or self.view.bias is not None
        by_line = varies[1] or varies[3] or group.chunked
        stored = (SUMS_PER_PIECE if by_line else SUMS_PER_SET) if wanted else NO_SUMS
        lengths: Ints = (self.a, self.b, self.r, self.s, self.per_line(group))
        along: tuple[bool, ...] = (varies[0], varies[2], varies[1], varies[3], False)
        if stored == SUMS_PER_SET:
            lengths, along = lengths[:2], along[:2]
        sums = sums_over(lengths, along)
        if sums is None and wanted:
            return APART
        return self._config(step, group, stored, sums if wanted else None, math.prod(lengths))

    def _config(
        self,
        step: Step,
        group: ThreadGroup,
        stored: int,
        sums: Sums | None,
        count: int,
        *beside: Launch,
        **specific: int,
    ) -> LaunchConfig | str:
        """Return the config of a backward pass: kernels that write dx, then `beside`, then the parameters' sums."""
        if not group.chunked and step != "backward":
            return TOGETHER
        if step == "gradient":
            beside, sums = (), None
        chunks = self.chunks(group)
        field_stride = self.sets * chunks

        def launch(name: str) -> Launch:
            return self.launch(name, "rows_backward", group, 2, PARAMETER_SUMS=stored)

        launches = [] if group.chunked else [launch("rows_backward")]
        if group.chunked and step != "gradient":
            launches.append(launch("rows_gradient_sums"))
            launches.append(self.finalize("finalize_gradient_sums", chunks, 1, 1, weighted=False))
        if group.chunked and step != "gradient_sums":
            launches.append(launch("rows_gradient"))
        launches += beside
        if sums is not None:
            launches.append(self.parameter_sums(sums))
        counts = self.line_counts(group) | {"chunks": chunks, "field_stride": field_stride} | specific
        return self._backward_config(launches, 2 * field_stride if group.chunked else 0, sums, count, **counts)

    def _backward_config(
        self, launches: list[Launch], partials: int, sums: Sums | None, count: int, **counts: int
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
            partials=partials,
            parameter_partials=count if sums is not None else 0,
            counts=self.counts(**(sums._asdict() if sums is not None else {}), **counts),
            strides=self.strides((self.b * chunks, 1, chunks, 0)),
        )

    def _along_lines(self, varies: tuple[bool, bool, bool, bool], step: Step) -> LaunchConfig | str:
        """Return the config for a weight that varies along the lines."""
        if varies[0]:
            return "the gradient of a weight or bias of each sample is wanted"
        group = parameter_group(self.vectors, self.device)
        if group is None:
            return self._along_long_lines(varies, step)
        if step != "backward":
            return TOGETHER
        rows, of_b = (self.a, self.b) if varies[2] else (self.sets, 1)
        # As many thread groups as run at once, or a multiple of that.
        at_once = max(1, self.device.processors * self.blocks(group) // (group.ctas * of_b)) * group.groups
        share = -(-rows // (at_once * -(-rows // (at_once * MOST_SETS))))
        clusters = -(-rows // (share * group.groups))
        accumulators = self.accumulator_bytes(group) if share > FOLD else 0
        stages = (
            2 if 32 * STAGES * group.items * group.threads + accumulators + DECLARED > self.device.shared else STAGES
        )
        macros = {"STAGES": stages, "FOLD": FOLD if accumulators else 0, "MIN_BLOCKS": self.blocks(group)}
        launch = Launch(
            self.kernel("rows_backward_parameters", "rows_backward_parameters", group, **macros),
            (clusters * group.ctas, of_b),
            group.threads,
            32 * stages * group.items * group.threads + accumulators,
        )
        sums = Sums(clusters, of_b * self.line_length, 1)
        launches = [launch, self.parameter_sums(sums)]
        return self._backward_config(launches, 0, sums, math.prod(sums), rows=rows, sets_per_group=share)

    def blocks(self, group: ThreadGroup) -> int:
        """Return how many blocks of `rows_backward_parameters` run on a multiprocessor at once."""
        return 6 if group.threads <= 128 else 3 if group.items == 1 else 2 if group.items == 2 else 1

    def accumulator_bytes(self, group: ThreadGroup) -> int:
        """Return the bytes of a block's accumulators of dweight and dbias, float32."""
        return 2 * 4 * self.per_vector * group.items * group.threads

    def _along_long_lines(self, varies: tuple[bool, bool, bool, bool], step: Step) -> LaunchConfig | str:
        """Return the config for a weight that varies along lines too long for `rows_backward_parameters`."""
        if varies[2] and self.b > 1:
            return f"lines of {self.line_length} elements with a weight of their own are too long"
        blocks = -(-self.vectors // 256)
        wanted = max(1, 8 * self.device.processors // blocks)
        share = min(MOST_LONG_SETS, -(-self.sets // wanted))
        rows = -(-self.sets // share)
        kernel = Kernel("long_parameters", ("call", "formula", "long_parameters"), self.macros(THREADS=256, CTAS=1))
        sums = Sums(rows, self.line_length, 1)
        group = self.held(backward_group(self.lines, self.vectors, self.device))
        launch = Launch(kernel, (blocks, rows), 256, 0)
        specific = {"sets_per_group": share, "columns": self.line_length}
        return self._config(step, group, NO_SUMS, sums, math.prod(sums), launch, **specific)
