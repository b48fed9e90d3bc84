"""A drawn call with its arrays made: what is passed, what the numbers were before, and the call itself."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

import anynorm
from benchmarks.fuzz.case import Case, Operand, fail
from benchmarks.fuzz.libraries import Home, flushed, home
from benchmarks.fuzz.memory import NumPyArray, Placed, address, native, place
from benchmarks.fuzz.values import drawn

an: Any = anynorm  # called here with what its annotations forbid

# Ways in which JAX traces the call.
TRACED = ("jit", "grad", "vmap", "scan", "jax_export")

# A sum of the bytes of larger memory is compared instead of the bytes.
_MUCH = 1 << 24


class Trial:
    """The arrays of one call, made anew for each variant: the same call on other numbers elsewhere in memory."""

    def __init__(self, case: Case, variant: int = 0) -> None:
        self.case, self.variant = case, variant
        self.home: Home = home(case.library)
        self.random = Random(f"{case.seed} {variant}")
        self.numbers = np.random.default_rng([case.seed, variant])
        self.placed: dict[str, Placed] = {}
        self.arrays: dict[str, Any] = {}
        for name, operand in case.operands.items():
            self.add(name, operand)
        self.before = {name: native(placed.array) for name, placed in self.placed.items()}

    def add(self, name: str, operand: Operand) -> Any:
        """Make an array, keep it by its name, and return it."""
        values = drawn(operand.values, operand.shape, operand.dtype, self.numbers)
        # The layouts of all variants are those of the first: calls of one kind on other addresses.
        placed = place(values, operand.layout, Random(f"{self.case.seed} {name}"))
        if operand.kind != "array":
            self.arrays[name] = self._no_array(operand, placed)
            return self.arrays[name]
        self.placed[name] = placed
        self.arrays[name] = self.home.make(placed, Random(f"{self.case.seed} {name}"))
        self.before = {**getattr(self, "before", {}), name: native(placed.array)}
        self.sums = {**getattr(self, "sums", {}), name: _sum(placed)}
        return self.arrays[name]

    def _no_array(self, operand: Operand, placed: Placed) -> Any:
        array = np.asarray(placed.array)
        if operand.kind == "list":
            return array.tolist() if array.ndim else [1.0]
        if operand.kind == "float":
            return 1.5
        if operand.kind == "masked":
            return np.ma.MaskedArray(array)
        if operand.kind == "matrix":
            return np.matrix(array.reshape(1, -1))
        other = home("array_api_strict" if self.case.library != "array_api_strict" else "numpy")
        return other.make(placed, self.random)

    @property
    def x(self) -> Any:
        """The array that is normalized."""
        return self.arrays["x"]

    @property
    def others(self) -> dict[str, Any]:
        """The array arguments beside x."""
        return {name: tensor for name, tensor in self.arrays.items() if name in ("weight", "bias", "mean", "var")}

    @property
    def function(self) -> Any:
        """The function that is tried."""
        return getattr(an, self.case.function)

    def of(self, arrays: dict[str, Any], **extra: Any) -> Any:
        """Call the function on given arrays."""
        others = {name: tensor for name, tensor in arrays.items() if name != "x"}
        return self.function(arrays["x"], *self.case.groups, **others, **self.case.options, **extra)

    def run(self, **extra: Any) -> Any:
        """Call the function on its own arrays."""
        return self.of({"x": self.x, **self.others}, **extra)

    def vjp(self, **extra: Any) -> tuple[Any, Any]:
        """Call `vjp`."""
        result: tuple[Any, Any] = an.vjp(
            self.function, self.x, *self.case.groups, **self.others, **self.case.options, **extra
        )
        return result

    def exact_arguments(self) -> dict[str, NumPyArray]:
        """Return the numbers of the arguments as the library sees them."""
        named = {
            name: value for name, value in self.before.items() if name in ("x", "weight", "bias", "mean", "var", "dy")
        }
        return {name: flushed(tensor) for name, tensor in named.items()} if self._flushes() else named

    def _flushes(self) -> bool:
        """Say whether subnormal numbers are taken as 0: by the programs of some libraries, not by the CPU engine."""
        if not self.home.flushes or self.case.way in TRACED:
            return self.home.flushes
        route = an.explain(self.function, self.x, *self.case.groups, **self.others, **self.case.options)
        return bool(route.path != "anynorm_numba")

    def check_unchanged(self, *but: str) -> None:
        """Raise unless every byte of every argument and around it is as before, but for those of some elements."""
        if not self.home.strided:
            return
        for name, placed in self.placed.items():
            if name in but:
                free = ~placed.painted()
                if not (placed.memory[free] == 0xFF).all():
                    where = np.flatnonzero(free & (placed.memory != 0xFF))[:3] - placed.offset
                    fail(f"memory beside {name} is written to", f"bytes {where} from its first element")
            elif _sum(placed) != self.sums[name]:
                fail(f"{name} is changed")


def _sum(placed: Placed) -> Any:
    memory = np.asarray(placed.memory)
    return memory.tobytes() if memory.size < _MUCH else hash(memory[memory.size % 8 :].view(np.uint64).sum().item())


def overlapping(trial: Trial) -> tuple[Any, bool, Placed]:
    """Return an `out` that lies within, across or beside an argument, whether it shares a byte, and where it lies.

    An `out` that is x itself, element by element, counts as sharing none.
    """
    name = trial.random.choice(sorted(trial.placed))
    target = trial.placed[name]
    x = trial.placed["x"].array
    size, shape = x.itemsize, x.shape
    reach = max(int(np.prod(shape)) * size, 1)
    memory = np.full(2 * len(target.memory) + 3 * reach + 256, 0xFF, np.uint8)
    # The argument moves into larger memory, in which there is room for out.
    shift = reach + 64 + (-address(memory) - reach - 64) % 16 + (target.offset - 64) % 16
    if not target.array.size:
        raise SkippedError
    low = sum([min(0, (n - 1) * step) for n, step in zip(target.array.shape, target.array.strides, strict=True)])
    shift -= low - low % 16
    array: NumPyArray = np.ndarray(target.array.shape, target.array.dtype, memory, shift, target.array.strides)
    array[...] = trial.before[name]
    moved = Placed(array, memory)
    strides = list(np.empty(shape, x.dtype).strides)
    if trial.random.random() < 0.5:
        strides = [trial.random.choice((1, 1, 2)) * stride for stride in strides]
    if name == "x" and trial.random.random() < 0.5:
        strides = list(x.strides)
        if trial.random.random() < 0.5 and trial.home.name != "torch":
            strides = [
                -stride if length > 1 and trial.random.random() < 0.3 else stride
                for length, stride in zip(shape, strides, strict=True)
            ]
    span = [(length - 1) * step for length, step in zip(shape, strides, strict=True)]
    lowest, highest = (
        sum([stride for stride in span if stride < 0]),
        sum([stride for stride in span if stride > 0]) + size,
    )
    first = shift + size * trial.random.randrange(-int(np.prod(shape)) - 2, array.size + 3)
    first = min(max(first, -lowest), len(memory) - highest)
    first -= (first - shift) % size
    if first + lowest < 0 or first + highest > len(memory):
        raise SkippedError
    out: NumPyArray = np.ndarray(shape, x.dtype, memory, first, strides)
    placed = Placed(out, memory)
    trial.placed[name] = moved
    trial.arrays[name] = trial.home.make(moved, trial.random)
    trial.sums[name] = _sum(moved)
    shares = bool((placed.painted() & moved.painted()).any())
    itself = (
        name == "x"
        and first == shift
        and [s for n, s in zip(shape, strides, strict=True) if n > 1]
        == [s for n, s in zip(shape, array.strides, strict=True) if n > 1]
    )
    alone = int(placed.painted().sum()) == out.size * size
    return trial.home.make(placed, trial.random), (shares and not itself) or not alone, placed


class SkippedError(Exception):
    """What was drawn cannot be tried, and that says nothing."""


Way = Callable[[Trial], None]
