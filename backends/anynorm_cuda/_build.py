"""What a launch config is, and what those of rows and of columns share: macros, the argument, kernels both launch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from anynorm.backend import Five, Ints, Plan, View
from anynorm_cuda import _geometry as at
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda._teams import Device

# By dtype: its type in the source, and bytes of an element.
SOURCE_TYPES = {"float16": ("f16", 2), "bfloat16": ("bf16", 2), "float32": ("f32", 4)}

# How weight and bias lie: absent, along lines, one number for a line (or a column), one for a row.
NONE, VECTOR, LINE, ROW = 0, 1, 2, 3

# Rows shorter than this, of sets that have several, go side by side with those of other sets.
SHORT = 64

# So many numbers of chunks one thread merges; of more, a warp or a block does.
ALONE = 8

WIDEST = 16  # bytes of the widest load
LONGEST = 2**31 - 2**20  # what kernels count in int: sets, elements of one, columns, numbers to sum
MOST_ROWS = 65535  # of blocks, in a grid

DIFFER = "gradients of a weight and a bias that vary along different axes are wanted"
APART = "the gradient of a weight is wanted that varies on both sides of an axis along which it does not"


class Dtypes(NamedTuple):
    """Dtypes of x, weight and bias, by name, and how their addresses are aligned.

    A power of two that divides the bits set in the address of some array divides the address of each.
    """

    x: str
    weight: str | None
    bias: str | None
    address_bits: int = 0  # of x and all arrays of its shape
    parameter_bits: int = 0  # of weight and bias
    dweight: str = "float32"  # of the gradients of weight and bias
    dbias: str = "float32"


class LaunchConfig(NamedTuple):
    """How a pass is launched: its kernels, in order, and all of their argument but addresses."""

    view: View
    sets: int
    keeps_residuals: bool  # whether they must be kept, because one kernel leaves them to another
    given: bool
    launches: tuple[Launch, ...]
    partial: int  # floats that chunks leave
    sums: int  # floats that sum up to the gradient of a weight, and as many to that of a bias; 0: `partial` has them
    counts: Ints
    steps: Ints

    @property
    def workspace_bytes(self) -> int:
        """Return the bytes of memory that the kernels work in."""
        backward = len(self.view.steps) == 3
        return 4 * (self.partial + (2 * self.sets + 2 * self.sums if backward else 0))


def as_rows(view: View) -> bool:
    """Say whether sets lie as lines. It follows from the lengths of a set alone."""
    _, r, _, s, p = view.lengths
    return (r == 1 or s * p >= SHORT) if p > 1 else (s > 1 and r == 1)


def _widths(view: View, dtypes: Dtypes) -> tuple[int, int]:
    """Return how many bytes at once can be read of x and all like it, and of weight and bias along lines."""
    rows, several = as_rows(view), view.lengths[4] > 1
    # Where lines of a set, or rows of a table whose columns are sets, begin.
    places = ("ARBS" if several else "ARB") if rows else "AR"
    begins = ["ARBSP".index(place) for place in places]

    def divides(bits: int, size: int, tensors: Sequence[Five | None]) -> int:
        return math.gcd(WIDEST, bits, *[size * steps[place] for steps in tensors if steps for place in begins])

    load = divides(dtypes.address_bits, SOURCE_TYPES[dtypes.x][1], view.steps)
    if several or not rows:  # weight and bias are read number by number
        return load, WIDEST
    own = ((dtypes.weight, view.weight), (dtypes.bias, view.bias))
    widths = [divides(dtypes.parameter_bits, SOURCE_TYPES[name][1], [steps]) for name, steps in own if name]
    return load, min(widths, default=WIDEST)


class Sums(NamedTuple):
    """Over what a parameter's gradient is summed: numbers lie as (outer, kept, within)."""

    outer: int
    kept: int
    within: int


def sums_over(lengths: Ints, varies: Sequence[bool]) -> Sums | None:
    """Return the lengths before, along and behind the axes that a parameter varies along, if these are neighbours."""
    places = [(length, own) for length, own in zip(lengths, varies, strict=True) if length > 1]
    kept = [place for place, (_, own) in enumerate(places) if own]
    first, last = (kept[0], kept[-1] + 1) if kept else (len(places), len(places))
    if not all(own for _, own in places[first:last]):
        return None
    parts = (places[:first], places[first:last], places[last:])
    sums = Sums(*[math.prod([length for length, _ in part]) for part in parts])
    return sums if math.prod(sums) <= LONGEST else None


class Builder:
    """What both families share: a view, and how it becomes macros and an argument."""

    def __init__(self, plan: Plan, view: View, dtypes: Dtypes, device: Device) -> None:
        self.plan, self.view, self.dtypes, self.device = plan, view, dtypes, device
        self.a, self.r, self.b, self.s, self.p = view.lengths
        self.sets = self.a * self.b
        self.n = self.r * self.s * self.p
        self.per_vector = WIDEST // SOURCE_TYPES[dtypes.x][1]
        self.load, self.wide = _widths(view, dtypes)

    def words(self, length: int, begins: int = 0) -> int:
        """Return the bytes of what lines of a length are moved in: whole vectors, or words of which they are made.

        Lines begin at multiples of so many elements, beside what is known of them.
        """
        size = SOURCE_TYPES[self.dtypes.x][1]
        load = math.gcd(self.load, size * begins)
        return load if load == WIDEST else math.gcd(load, size * length)

    def macros(self, **own: int) -> tuple[tuple[str, str | int], ...]:
        dtypes = self.dtypes
        types = {"X": dtypes.x, "W": dtypes.weight or "float32", "B": dtypes.bias or "float32"}
        common = {
            "LOAD": self.load,
            "WIDE": self.wide,
            "CENTRES": int(self.plan.centres),
        }
        return (*[(name, SOURCE_TYPES[dtype][0]) for name, dtype in types.items()], *{**common, **own}.items())

    def counts(self, **own: int) -> Ints:
        common = {"sets": self.sets, "inner": self.b, "n": self.n, "rows": self.r, "chunks": 1, "share": 1}
        known = {**dict.fromkeys(at.COUNTS + at.DIVISORS, 1), **common, **own}
        divisors = [number for name in at.DIVISORS for number in at.divisor(known[name])]
        return (*[known[name] for name in at.COUNTS], *divisors)

    def steps(self, of_partial: tuple[int, int, int, int]) -> Ints:
        tensors = {2: ("of_x", "of_y"), 3: ("of_x", "of_dy", "of_y")}[len(self.view.steps)]
        five: dict[str, Five | None] = dict(zip(tensors, self.view.steps, strict=True))
        five |= {"of_weight": self.view.weight, "of_bias": self.view.bias}
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

    def parameter_sums(self, sums: Sums) -> Launch:
        threads = 1024 if sums.outer * sums.within > 64 else 256
        dtypes = {"X": "float32", "W": "float32", "B": "float32", "DW": self.dtypes.dweight, "DB": self.dtypes.dbias}
        types: list[tuple[str, str | int]] = [(name, SOURCE_TYPES[dtype][0]) for name, dtype in dtypes.items()]
        macros = (*types, ("THREADS", threads), ("CTAS", 1))
        kernel = Kernel("parameter_sums", ("call", "formula", "parameters"), macros)
        return Launch(kernel, (-(-sums.kept // 32), 2), threads, 0)

    def varies(self) -> tuple[bool, bool, bool, bool] | None:
        """Return along which of A, R, B, S weight and bias vary; None if they differ in that."""
        both = self.view.weight, self.view.bias
        found = {tuple([step != 0 for step in steps[:4]]) for steps in both if steps is not None}
        if len(found) > 1:
            return None
        return found.pop() if found else (False,) * 4  # type: ignore[return-value]
