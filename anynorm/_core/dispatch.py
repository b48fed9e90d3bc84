"""What runs a call: an `Executable`, found in the cache by function, numbers and signature of the arrays, or compiled.

A call is: bind the arguments, look up the signature, run forward. The first call of a signature is checked, planned and
compiled. A backward pass is looked up by the signature of dy in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

from anynorm._core import cache
from anynorm._core.advice_calls import advice_on_binding
from anynorm._core.arrays import Array, Shape, class_name, described
from anynorm._core.backends import backend_of, by_type, check_suited, outside
from anynorm._core.checks import check_gradient, checked_plan, option_argument, real_number
from anynorm._core.plan import Plan
from anynorm.backend import AnyResiduals, Backend, Declined, Executable, Operands

F = TypeVar("F", bound=Callable[..., Any])

_fast_paths: ContextVar[bool] = ContextVar("anynorm.fast_paths", default=os.environ.get("ANYNORM_FAST_PATHS") != "0")


class Entry:
    """What is the same for all calls of a signature: the backend, the plan and what runs it. Equal to itself alone."""

    __slots__ = ("backend", "cached", "executable", "plan", "shape")

    def __init__(self, backend: Backend, plan: Plan, shape: Shape, executable: Executable[Any], cached: bool) -> None:
        self.backend = backend
        self.plan = plan
        self.shape = shape  # x's, which is the plan's but for group norm
        self.executable = executable
        self.cached = cached  # whether later calls find it


def entry_for(
    function: str,
    build: Callable[..., Plan],
    numbers: tuple[Any, ...],
    x: Array,
    weight: Array | None,
    bias: Array | None,
    given: tuple[Any, Any] | None,
    eps: float,
    out: Array | None,
) -> Entry:
    """Return what serves a call; the first of a signature is checked, planned and compiled here."""
    backend = by_type.get(type(x)) or backend_of(function, "x", x)
    mean, var = (None, None) if given is None else given
    key = None
    signature = backend.signature(x, weight, bias, mean, var, out)
    if signature is not None:
        key = backend, function, numbers, eps, signature, _fast_paths.get()
        try:
            entry: Entry | None = cache.entries.get(key)
        except TypeError:
            raise _unhashable(backend, signature) from None
        if entry is not None:
            return entry
    check_suited(function, "x", x)
    operands = Operands(x, weight, bias, mean, var, out)
    plan = checked_plan(function, build, numbers, operands, eps, backend)
    executable = _compiled(backend, plan, operands)
    entry = Entry(backend, plan, backend.ops.shape(x), executable, cached=key is not None)
    if key is not None:
        cache.remember(key, entry)
    return entry


def _unhashable(backend: Backend, signature: object) -> TypeError:
    got = described(signature)
    return TypeError(f"{class_name(backend)}.signature must return something that can be hashed, or None, got {got}.")


def _compiled(backend: Backend, plan: Plan, operands: Operands) -> Executable[Any]:
    """Return the backend's executable, or the formula with the reason why there is none."""
    ops = backend.ops
    if ops.compiling():
        reason = f"{ops.name} is compiling the call itself"
    elif not _fast_paths.get():
        reason = "fast paths are turned off"
    elif ops.is_empty(plan.shape):
        reason = "x is empty"
    elif plan.activation is not None and plan.activation not in backend.activations:
        reason = f"no backend applies an activation to {ops.name} arrays"
    else:
        return _by_backend(backend, plan, operands)
    return Executable(plan, ops, reason)


def _by_backend(backend: Backend, plan: Plan, operands: Operands) -> Executable[Any]:
    """Return what a backend compiles, or the formula with its reason; a TypeError if it returns anything else."""
    found = backend.compile(plan, operands)
    if isinstance(found, Executable):
        if "plan" not in vars(found):
            msg = f"{class_name(found)}.__init__ must call super().__init__(plan, ops)."
            raise TypeError(msg)
        return _checked(found) if backend in outside and "forward" not in vars(found) else found
    if isinstance(found, Declined):
        return Executable(plan, backend.ops, found.reason)
    msg = f"{class_name(backend)}.compile must return an Executable, or Declined(reason), got {described(found)}."
    raise TypeError(msg)


def _checked(executable: Executable[Any]) -> Executable[Any]:
    """Return an executable whose forward pass raises if it returns anything but a pair: an array could be unpacked."""
    forward = executable.forward

    def checked(*arguments: Any) -> Any:
        found: Any = forward(*arguments)
        if not isinstance(found, tuple) or len(found) != 2:
            msg = f"{class_name(executable)}.forward must return (y, residuals), got {described(found)}."
            raise TypeError(msg)
        return found

    executable.forward = checked  # type: ignore[assignment,method-assign]
    return executable


def norm(moments_of: Callable[..., Any] | None = None, *, only_measures: bool = False) -> Callable[[F], F]:
    """Make a function that binds its arguments, and returns them as a tuple, one that runs the norm.

    The tuple is what `entry_for` takes, and an option. Of a norm it says whether the moments are wanted too: then the
    result is (y, moments_of(...)). A function that only measures returns moments_of(..., option). The function's own
    signature is the public one; `vjp` and `explain` call it as `__wrapped__`.
    """

    def with_run(bind: F) -> F:
        @wraps(bind)
        def run(*args: Any, **options: Any) -> Any:
            try:
                function, build, numbers, x, weight, bias, given, eps, out, option = bind(*args, **options)
            except TypeError as error:
                raise advice_on_binding(bind.__name__, bind, args, options, error) from None
            if type(eps) is not float:
                eps = real_number(function, "eps", eps)
            if option is not True and option is not False:
                option = option_argument(function, option)
            entry = entry_for(function, build, numbers, x, weight, bias, given, eps, out)
            if only_measures and moments_of is not None:
                return moments_of(entry.plan, entry.backend.ops, x, entry.executable.measure(x), option)
            y, residuals = entry.executable.forward(x, weight, bias, eps, given, out, option)
            if moments_of is None or not option:
                return y
            return y, moments_of(entry.plan, entry.backend.ops, x, residuals)

        return cast("F", run)

    return with_run


class Head(NamedTuple):
    """What a norm binds its arguments to, arrays and eps apart: the same for all calls of a layer."""

    function: str
    build: Callable[..., Plan]
    numbers: tuple[Any, ...]


def head_of(function: Any, **options: Any) -> Head:
    """Return what a public function binds these arguments to."""
    return Head(*function.__wrapped__(None, **options)[:3])


def normalized(head: Head, x: Array, weight: Any, bias: Any, given: tuple[Any, Any] | None, eps: Any) -> Any:
    """Return y of a layer's call, which binds nothing anew: 0.6 µs less than the public function."""
    function, build, numbers = head
    if type(eps) is not float:
        eps = real_number(function, "eps", eps)
    entry = entry_for(function, build, numbers, x, weight, bias, given, eps, None)
    return entry.executable.forward(x, weight, bias, eps, given, None, False)[0]


class Bound(NamedTuple):
    """A call whose arguments are bound, and what serves it."""

    entry: Entry
    x: Any
    weight: Any
    bias: Any
    given: tuple[Any, Any] | None
    eps: float
    out: Any
    wants_moments: bool


def bound(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Bound:
    """Bind the arguments of a public function as it does itself."""
    try:
        name, build, numbers, x, weight, bias, given, eps, out, wants_moments = function.__wrapped__(*args, **options)
    except TypeError as error:
        raise advice_on_binding(function.__name__, function.__wrapped__, args, options, error) from None
    if type(eps) is not float:
        eps = real_number(name, "eps", eps)
    wants_moments = option_argument(name, wants_moments)
    entry = entry_for(name, build, numbers, x, weight, bias, given, eps, out)
    return Bound(entry, x, weight, bias, given, eps, out, wants_moments)


def forward(call: Bound) -> tuple[Any, Any]:
    """Return y and the residuals of a call."""
    entry, x, weight, bias, given, eps, out, _ = call
    found: tuple[Any, Any] = entry.executable.forward(x, weight, bias, eps, given, out, True)
    return found


def backward(call: Bound, residuals: AnyResiduals, dy: Array, out: Array | None) -> tuple[Any, Any, Any]:
    """Return dx, dweight and dbias for a dy; the first of a signature is checked and compiled here.

    By the formula if the forward pass was: `fast_paths` of a later moment, in another thread perhaps, must not mix the
    two.
    """
    entry, x, weight, bias, given, *_ = call
    mean, var = (None, None) if given is None else given
    backend, key = entry.backend, None
    if entry.cached:
        signature = backend.signature(x, weight, bias, mean, var, out, dy)
        if signature is not None:
            key = entry, signature
            try:
                executable: Executable[Any] | None = cache.entries.get(key)
            except TypeError:
                raise _unhashable(backend, signature) from None
            if executable is not None:
                return executable.backward(dy, x, weight, residuals, out)
    operands = Operands(x, weight, bias, mean, var, out, dy, residuals)
    check_gradient(entry.plan, operands, entry.shape if entry.cached else None, backend)
    executable = entry.executable
    if residuals is None:
        msg = (
            f"{class_name(executable)}.forward must return (y, residuals) where save is True, got None for the latter."
        )
        raise TypeError(msg)
    if type(executable) is not Executable:
        executable = _by_backend(backend, entry.plan, operands)
    if key is not None:
        cache.remember(key, executable)
    return executable.backward(dy, x, weight, residuals, out)


@contextmanager
def fast_paths(enabled: bool) -> Iterator[None]:
    """Turn the backends' fast paths on or off within a `with` block, for this thread or task alone.

    Off, every array is served by the formula: to compare the two, or to report a difference. The environment variable
    ANYNORM_FAST_PATHS=0 turns them off for a process.

    Parameters
    ----------
    enabled : bool
        Whether fast paths may be taken.

    Raises
    ------
    TypeError
        If `enabled` is neither True nor False.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> with an.fast_paths(False):
    ...     print(an.explain(an.rms_norm, np.ones((2, 3))))
    formula (fast paths are turned off)

    """
    if not isinstance(enabled, bool):
        msg = f"fast_paths: enabled must be True or False, got {described(enabled)}."
        raise TypeError(msg)
    token = _fast_paths.set(enabled)
    try:
        yield
    finally:
        _fast_paths.reset(token)
