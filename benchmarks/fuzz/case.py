"""A drawn call as data: what is passed, how it lies in memory, by which library and way. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

Shape = tuple[int, ...]

NORMS = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm")
OVER_AXES = ("layer_norm", "rms_norm", "moments")
DTYPES = ("float16", "bfloat16", "float32", "float64")

# Of an operand: an array of the library, or what is none.
NO_ARRAYS = ("list", "float", "masked", "matrix", "other_library")


class FindingError(AssertionError):
    """What a call did is not what it should have done. The first words are its kind, by which findings are counted."""

    def __init__(self, kind: str, details: str = "") -> None:
        super().__init__(f"{kind}: {details}" if details else kind)
        self.kind = kind


def fail(kind: str, details: str = "") -> NoReturn:
    """Raise a FindingError."""
    raise FindingError(kind, details)


@dataclass(frozen=True)
class Layout:
    """How an array lies: in which order and with which steps, and what else may be odd about it."""

    order: str = "C"
    shift: int = 0  # bytes by which its address misses its alignment
    odd: str = ""  # "big_endian", "memmap", "read_only" or "subclass"

    def __str__(self) -> str:
        shift = f"+{self.shift}B" if self.shift else ""
        return f"{self.order}{shift}{' ' + self.odd if self.odd else ''}"


@dataclass(frozen=True)
class Operand:
    """An array argument before it is made."""

    shape: Shape
    dtype: str
    values: str
    layout: Layout = field(default_factory=Layout)
    kind: str = "array"

    def __str__(self) -> str:
        kind = "" if self.kind == "array" else f"{self.kind} of "
        return f"{kind}{self.dtype}{list(self.shape)} {self.values}, lying {self.layout}"


@dataclass(frozen=True)
class Case:
    """One call, all of it decided by `seed`."""

    seed: int
    function: str
    groups: tuple[Any, ...]
    options: dict[str, Any]
    operands: dict[str, Operand]
    library: str
    fast: bool  # False: within fast_paths(False)
    way: str
    wrong: str = ""  # what was made wrong on purpose

    @property
    def x(self) -> Operand:
        """The array that is normalized."""
        return self.operands["x"]

    @property
    def eps(self) -> Any:
        """The eps that is used, whether or not it is passed."""
        return self.options.get("eps", 1e-6 if self.function == "rms_norm" else 1e-5)

    def __str__(self) -> str:
        rest = [repr(group) for group in self.groups] + [f"{name}={option!r}" for name, option in self.options.items()]
        lines = [f"seed {self.seed}: {self.function}(x, {', '.join(rest)})"]
        lines += [f"  {name}: {operand}" for name, operand in self.operands.items()]
        path = "" if self.fast else ", fast_paths(False)"
        wrong = f", made wrong: {self.wrong}" if self.wrong else ""
        return "\n".join([*lines, f"  on {self.library}{path}, by {self.way}{wrong}"])
