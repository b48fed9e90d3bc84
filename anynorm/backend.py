"""Everything a backend imports: what it subclasses, what it is given, and the tools that engines share.

A backend serves the arrays of one library. It is a subclass of `Backend` and answers two questions about a call:
`signature`, all that decides how the call is served but the values in its arrays, and `compile`, the `Executable` for
that signature, or `Declined` with the reason. Executables are cached by signature in one place, `anynorm._core.cache`.

    class MyBackend(Backend):
        def __init__(self):
            super().__init__(ArrayOps("mylib", mylib))

        def signature(self, x, weight, bias, mean, var, out, dy=None):
            arrays = x, weight, bias, mean, var, dy
            if out is not None or {type(array) for array in arrays} - {mylib.Array, type(None)}:
                return None
            return tuple([None if array is None else (array.dtype, array.shape) for array in arrays])

        def compile(self, plan, operands):
            written = plan.function == "layer_norm" and operands.dy is None
            return MyLaunch(plan, self.ops) if written else Declined("only the forward pass of layer norm is written")

A distribution registers its class for a type of array:

    [project.entry-points."anynorm.backends"]
    "mylib.Array" = "anynorm_mylib:MyBackend"
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from anynorm._core import cache, formula
from anynorm._core.arrays import FLOAT32, FLOAT64, Format, Operand, Shape, tree_sum
from anynorm._core.executable import AnyResiduals, Declined, Executable, Operands, RunningStatistics
from anynorm._core.files import write_whole
from anynorm._core.formula import GradientSums, Residuals, Statistics
from anynorm._core.frames import users_level
from anynorm._core.memory import Memory, apart, may_be_written, reach, refuses_out
from anynorm._core.ops import ArrayOps, Derivable, Ops
from anynorm._core.packed import PackedResiduals, PackedStatistics, pack_fields, pack_statistics, pack_sums, unpack_sums
from anynorm._core.plan import Plan
from anynorm._core.unsuited import conversion, type_name, unsuited
from anynorm._core.view import Five, Ints, Layout, View, view, why_apart

__all__ = [
    "FLOAT32",
    "FLOAT64",
    "AnyResiduals",
    "ArrayOps",
    "Backend",
    "Declined",
    "Executable",
    "Five",
    "Format",
    "GradientSums",
    "Ints",
    "Layout",
    "Memory",
    "Operand",
    "Operands",
    "Ops",
    "PackedResiduals",
    "PackedStatistics",
    "Plan",
    "Residuals",
    "RunningStatistics",
    "Shape",
    "Statistics",
    "View",
    "apart",
    "cache",
    "conversion",
    "formula",
    "may_be_written",
    "pack_fields",
    "pack_statistics",
    "pack_sums",
    "reach",
    "refuses_out",
    "tree_sum",
    "type_name",
    "unpack_sums",
    "unsuited",
    "users_level",
    "view",
    "why_apart",
    "write_whole",
]


class Backend(Derivable):
    """How the arrays of one library are served. The defaults serve any standard array by the formula.

    Attributes
    ----------
    ops : ArrayOps
        The library's array operations.
    immutable : bool
        Whether no array of the library can be written to.
    places_itself : bool
        Whether the library sees to devices itself, so that a call may mix them.
    activations : tuple of str
        What its executables apply to y where a plan says so. `compile` is asked for no plan with another.

    """

    ops: Ops
    immutable: bool = False
    places_itself: bool = False
    activations: tuple[str, ...] = ()

    def __init__(self, ops: Ops) -> None:
        self.ops = ops

    # Two questions about a call.

    def signature(
        self, x: Any, weight: Any, bias: Any, mean: Any, var: Any, out: Any, dy: Any = None
    ) -> Hashable | None:
        """Return all that decides about a call but the values in its arrays, each of which may be None.

        Equal signatures share an executable without being checked again: dtypes, shapes, strides, alignment, devices,
        whether `out` may be written and overlaps nothing. dy is given for a backward pass alone. None: no later call
        can be told to be like this one, so each is looked at anew.
        """
        return None

    def compile(self, plan: Plan, operands: Operands) -> Executable[Any] | Declined:
        """Return what serves calls like this one, whose arguments are checked, or why nothing faster than the formula.

        With operands.dy it is the backward pass that is to be served.
        """
        return Declined(f"no backend computes on {self.ops.name} arrays")

    # What may be served. Each answer is None, or the rest of a sentence that begins with the argument's name.

    def accepts(self, x: object) -> bool:
        """Say whether x is an array that this backend serves; asked of arrays of a type until it is so of one."""
        return True

    def refuses(self, x: Any) -> str | None:
        """Return why no norm can take an array, or None."""
        return None

    def refuses_beside(self, array: Any, x: Any) -> str | None:
        """Return why an array cannot be used beside x, or None."""
        return None

    def refuses_out(self, out: Any, x: Any, others: dict[str, Any]) -> str | None:
        """Return why `out` may not be written while the others are read, or None; x is None where it is among them."""
        return None

    def writable(self, x: Any) -> bool:
        """Say whether x can be written to."""
        from array_api_compat import is_writeable_array

        return bool(is_writeable_array(x))
