"""What launch configs are, and what those of rows and of columns share: macros, the argument, kernels of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from anynorm.backend import Five, Ints, Plan, View
from anynorm_cuda import _argument
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._thread_groups import Device

# By dtype: its type in the source, and the bytes of an element.
SOURCE_TYPES = {"float16": ("f16", 2), "bfloat16": ("bf16", 2), "float32": ("f32", 4)}

# How weight and bias vary: not there, along lines, one value per line (or per column), one per row.
ABSENT, ALONG_LINE, PER_LINE, PER_ROW = 0, 1, 2, 3

# Rows shorter than this, of sets with several rows, are served as columns, beside those of other sets.
SHORT = 64

# One thread merges up to so many partials of a set; a warp or a block merges more.
MERGED_BY_ONE_THREAD = 8

WIDEST = 16  # bytes of the widest load
LONGEST = 2**31 - 2**20  # what kernels count in int: sets, elements of a set, columns, terms of a sum
MOST_ROWS = 65535  # block rows of a grid

DIFFER = "gradients of a weight and a bias that vary along different axes are wanted"
APART = "the gradient of a weight is wanted that varies on both sides of an axis along which it does not"

TOGETHER = "one kernel computes the sums of a set and its gradient"

# The two passes, and the steps of each apart: measure and apply, gradient_sums and gradient.
Step = Literal["forward", "measure", "apply", "backward", "gradient_sums", "gradient"]


class Dtypes(NamedTuple):
    """The names of the dtypes of x, weight and bias, and the alignment of their addresses.

    `address_bits` is the bitwise or of addresses: a power of two divides it where it divides every address.
    """

    x: str
    weight: str | None
    bias: str | None
    address_bits: int = 0  # of x and all arrays of its shape
    parameter_bits: int = 0  # of weight and bias
    dweight: str = "float32"
    dbias: str = "float32"


class LaunchConfig(NamedTuple):
    """How a pass or a step is launched: its kernels, in order, and their argument without addresses and eps."""

    view: View
    sets: int
    keeps_residuals: bool  # whether residuals need memory, because one kernel leaves them to the next
    given: bool
    launches: tuple[Launch, ...]
    partials: int  # floats
    parameter_partials: int  # floats of dweight_partials, and as many of dbias_partials; 0: they are in `partials`
    counts: Ints
    strides: Ints

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the memory in which the kernels work."""
        backward = len(self.view.strides) == 3
        return 4 * (self.partials + (2 * self.sets + 2 * self.parameter_partials if backward else 0))


def as_rows(view: View) -> bool:
    """Return whether sets are made of contiguous lines. It depends on the lengths of a set alone."""
    _, r, _, s, p = view.lengths
    return (r == 1 or s * p >= SHORT) if p > 1 else (s > 1 and r == 1)


def _load_bytes(view: View, dtypes: Dtypes) -> tuple[int, int]:
    """Return the widest load, in bytes, that is aligned for x and arrays of its shape, and for weight and bias."""
    rows, several = as_rows(view), view.lengths[4] > 1
    # The axes along which lines of a set, or rows of a table of columns, begin.
    axes = ["ARBSP".index(axis) for axis in (("ARBS" if several else "ARB") if rows else "AR")]

    def widest(bits: int, size: int, tensors: Sequence[Five | None]) -> int:
        return math.gcd(WIDEST, bits, *[size * strides[axis] for strides in tensors if strides for axis in axes])

    load = widest(dtypes.address_bits, SOURCE_TYPES[dtypes.x][1], view.strides)
    if several or not rows:  # weight and bias are read element by element
        return load, WIDEST
    parameters = ((dtypes.weight, view.weight), (dtypes.bias, view.bias))
    loads = [widest(dtypes.parameter_bits, SOURCE_TYPES[name][1], [strides]) for name, strides in parameters if name]
    return load, min(loads, default=WIDEST)


class Sums(NamedTuple):
    """The lengths of a parameter's partials, which are summed over `outer` and `inner`."""

    outer: int
    kept: int
    inner: int


def sums_over(lengths: Ints, varies: Sequence[bool]) -> Sums | None:
    """Return the lengths before, along and behind the axes along which a parameter varies, if these are neighbours."""
    axes = [(length, along) for length, along in zip(lengths, varies, strict=True) if length > 1]
    kept = [axis for axis, (_, along) in enumerate(axes) if along]
    first, last = (kept[0], kept[-1] + 1) if kept else (len(axes), len(axes))
    if not all(along for _, along in axes[first:last]):
        return None
    parts = (axes[:first], axes[first:last], axes[last:])
    sums = Sums(*[math.prod([length for length, _ in part]) for part in parts])
    return sums if math.prod(sums) <= LONGEST else None


class Builder:
    """What both families share: a view, and how macros and an argument are made of it."""

    def __init__(self, plan: Plan, view: View, dtypes: Dtypes, device: Device) -> None:
        self.plan, self.view, self.dtypes, self.device = plan, view, dtypes, device
        self.a, self.r, self.b, self.s, self.p = view.lengths
        self.sets = self.a * self.b
        self.n = self.r * self.s * self.p
        self.per_vector = WIDEST // SOURCE_TYPES[dtypes.x][1]
        self.load, self.parameter_load = _load_bytes(view, dtypes)

    def line_load(self, length: int, begins: int = 0) -> int:
        """Return the bytes in which lines of a length are moved: a whole vector, or a word that divides the line.

        Lines begin at multiples of `begins` elements, beside what their strides say.
        """
        size = SOURCE_TYPES[self.dtypes.x][1]
        load = math.gcd(self.load, size * begins)
        return load if load == WIDEST else math.gcd(load, size * length)

    def macros(self, **specific: int) -> tuple[tuple[str, str | int], ...]:
        dtypes = self.dtypes
        types = {"X": dtypes.x, "W": dtypes.weight or "float32", "B": dtypes.bias or "float32"}
        common = {"LOAD": self.load, "PARAMETER_LOAD": self.parameter_load, "CENTRES": int(self.plan.centres)}
        return (*[(name, SOURCE_TYPES[dtype][0]) for name, dtype in types.items()], *{**common, **specific}.items())

    def counts(self, **specific: int) -> Ints:
        common = {"sets": self.sets, "b_length": self.b, "n": self.n, "rows": self.r}
        counts = {**dict.fromkeys(_argument.COUNTS + _argument.DIVISORS, 1), **common, **specific}
        divisors = [number for name in _argument.DIVISORS for number in _argument.divisor(counts[name])]
        return (*[counts[name] for name in _argument.COUNTS], *divisors)

    def strides(self, of_partials: tuple[int, int, int, int]) -> Ints:
        names = {2: ("x_strides", "y_strides"), 3: ("x_strides", "dy_strides", "y_strides")}[len(self.view.strides)]
        five: dict[str, Five | None] = dict(zip(names, self.view.strides, strict=True))
        five |= {"weight_strides": self.view.weight, "bias_strides": self.view.bias}
        found = {name: (strides or (0,) * 5)[:4] for name, strides in five.items()} | {"partial_strides": of_partials}
        return tuple([stride for name in _argument.STRIDES for stride in found.get(name, (0,) * 4)])

    def finalize(self, name: str, partials: int, set_columns: int, per_parameter: int, weighted: bool) -> Launch:
        """Return the launch of a kernel that merges the partials of each set."""
        block_per_set = partials > MERGED_BY_ONE_THREAD
        threads = 256 if partials > 128 else 32 if block_per_set else 128
        specific = {
            "COLUMNS_PER_SET": set_columns,
            "COLUMNS_PER_PARAMETER": per_parameter,
            "WEIGHTED": int(weighted),
            "BLOCK_PER_SET": int(block_per_set),
        }
        # The kernel does not depend on x's dtype.
        macros = (("X", "f32"), *self.macros(THREADS=threads, CTAS=1, **specific)[1:])
        blocks = self.sets if block_per_set else -(-self.sets // threads)
        return Launch(Kernel(name, ("call", "formula", "finalize"), macros), (blocks, 1), threads, 0)

    def given(self) -> Launch:
        kernel = Kernel("given_statistics", ("call", "formula", "parameters"), self.macros(THREADS=128, CTAS=1))
        return Launch(kernel, (-(-self.sets // 128), 1), 128, 0)

    def parameter_sums(self, sums: Sums) -> Launch:
        threads = 1024 if sums.outer * sums.inner > 64 else 256
        dtypes = {"X": "float32", "W": "float32", "B": "float32", "DW": self.dtypes.dweight, "DB": self.dtypes.dbias}
        types: list[tuple[str, str | int]] = [(name, SOURCE_TYPES[dtype][0]) for name, dtype in dtypes.items()]
        macros = (*types, ("THREADS", threads), ("CTAS", 1))
        kernel = Kernel("parameter_sums", ("call", "formula", "parameters"), macros)
        return Launch(kernel, (-(-sums.kept // 32), 2), threads, 0)

    def varies(self) -> tuple[bool, bool, bool, bool] | None:
        """Return along which of A, R, B, S weight and bias vary; None if they differ in that."""
        both = self.view.weight, self.view.bias
        found = {tuple([stride != 0 for stride in strides[:4]]) for strides in both if strides is not None}
        if len(found) > 1:
            return None
        return found.pop() if found else (False,) * 4  # type: ignore[return-value]
