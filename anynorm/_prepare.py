"""From the arguments of a function to a call that is checked and planned. Chooses no implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from anynorm._advice import is_shape, reject_shape
from anynorm._array import Library, check_array, check_device, check_eps, check_out, check_writes
from anynorm._dispatch import known_library, library_of, refuse_unsuited
from anynorm._plan import Plan, refuse_single


class Known:
    """What was decided when a call of its kind first came, so that the next one is neither checked nor planned anew.

    The kind is the function, its numbers, and what the package's `kind` says of the arrays: all that checks and plan
    look at. A package that offers `kind` offers `again` too: its `forward` for such a call.
    It keeps in `decided` what it likes, but no array: calls of one kind come with many.
    """

    __slots__ = ("decided", "plan", "size")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.size = math.prod(cast("tuple[int, ...]", plan.shape))
        self.decided: dict[Any, Any] = {}


# Kinds of calls that a library remembers before it starts anew.
MANY = 4096


class Call(NamedTuple):
    """A call that was checked and planned. Nothing is computed yet."""

    plan: Plan
    library: Library
    x: Any
    weight: Any
    bias: Any
    eps: float
    stats: tuple[Any, Any] | None
    out: Any
    known: Known | None = None


def prepare(
    function: str,
    x: Any,
    build: Callable[..., Plan],
    key: tuple[Any, ...],
    *,
    weight: Any = None,
    bias: Any = None,
    eps: object = 0.0,
    stats: tuple[Any, Any] | None = None,
    out: Any = None,
) -> Call:
    """Check the arrays of a call and plan it; `build` gets x's shape, `key`, and the shapes of weight and bias."""
    library = known_library(x)
    mean, var = (None, None) if stats is None else stats
    kind = None
    # Only a float is its own key to a dict: True and 1 are 1.0 as well. `key` holds ints that were checked.
    if library is not None and library.kind is not None and type(eps) is float:
        kind = library.kind(x, weight, bias, mean, var, out)
        if kind is not None:
            kind = function, key, eps, kind
            known = library.known.get(kind)
            if known is not None:
                return Call(known.plan, library, x, weight, bias, eps, stats, out, known)
    if library is None:
        library = library_of(function, "x", x)
    elif library.differ:
        refuse_unsuited(function, "x", x)
    call = _prepared(function, library, x, build, key, weight, bias, eps, stats, out)
    if kind is None or call.library.is_empty(call.plan.shape):
        return call
    known = _remember(call.library, kind, call.plan)
    return call._replace(known=known)


def _remember(library: Library, kind: Any, plan: Plan) -> Known:
    if len(library.known) >= MANY:
        library.known.clear()
    known = library.known[kind] = Known(plan)
    return known


def _prepared(
    function: str,
    library: Library,
    x: Any,
    build: Callable[..., Plan],
    key: tuple[Any, ...],
    weight: Any,
    bias: Any,
    eps: object,
    stats: tuple[Any, Any] | None,
    out: Any,
) -> Call:
    """Check the arrays of a call of a kind that is not known, and plan it."""
    compute = check_array(function, "x", x, library)
    shape = library.shape(x)
    if not shape:
        msg = f"{function}: x is 0-dimensional, so there is nothing to normalize over. Give it at least one axis."
        raise ValueError(msg)
    mean, var = (None, None) if stats is None else stats
    if isinstance(weight, tuple | list) and function in ("layer_norm", "rms_norm") and is_shape(weight):
        reject_shape(function, weight, bias, eps, out)
    others = {"weight": weight, "bias": bias, "mean": mean, "var": var}
    for argument, value in others.items():
        if value is not None:
            check_companion(function, argument, value, x, library)
    eps = check_eps(function, eps, compute)
    shapes = [None if its is None else library.shape(its) for its in (weight, bias)]
    plan = build(library.compiling(), function, shape, *key, *shapes)
    if function == "batch_norm" and library.holds(plan.n == 1):
        refuse_single(plan)
    if out is not None:
        check_writes(function, library)
        check_beside(function, "out", out, x, library)
        check_out(function, out, x, {name: its for name, its in others.items() if its is not None}, library)
    return Call(plan, library, x, weight, bias, eps, stats, out)


def check_companion(function: str, argument: str, value: Any, x: Any, library: Library, beside: str = "x") -> None:
    """Raise unless an argument is an array of x's library, on x's device, of an accepted dtype."""
    check_beside(function, argument, value, x, library, beside)
    check_array(function, argument, value, library)


def check_beside(function: str, argument: str, value: Any, x: Any, library: Library, beside: str = "x") -> None:
    """Raise unless an argument is an array of x's library, on x's device."""
    own = library_of(function, argument, value)
    if own.name != library.name:
        msg = (
            f"{function}: {beside} is an array of {library.name} but {argument} is one of {own.name}. "
            f"Nothing is converted silently: convert {argument} to {library.name} first."
        )
        raise TypeError(msg)
    refusal = None if library.refuses_beside is None else library.refuses_beside(value, x)
    if refusal is not None:
        msg = f"{function}: {argument} {refusal}"
        raise TypeError(msg)
    check_device(function, argument, value, x, library, beside)
