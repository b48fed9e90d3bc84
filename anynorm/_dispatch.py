"""From the type of an array to the package that serves it, and from a checked call to its result.

The one place that decides which implementation runs. Knows no numerics and no axis rule.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from anynorm import _formula
from anynorm._array import Library, described, namespace, reject_array, tried
from anynorm._frames import users_level
from anynorm._unsuited import kind, may_differ, unsuited

if TYPE_CHECKING:
    from anynorm._prepare import Call

# Loaders are plain `import` statements because torch.compile traces those; importlib.import_module breaks its
# graph, even behind a cache.


def _numpy() -> ModuleType:
    import anynorm_numpy

    return anynorm_numpy


def _torch() -> ModuleType:
    import anynorm_torch

    return anynorm_torch


def _cupy() -> ModuleType:
    import anynorm_cupy

    return anynorm_cupy


def _jax() -> ModuleType:
    import anynorm_jax

    return anynorm_jax


def _dask() -> ModuleType:
    import anynorm_dask

    return anynorm_dask


_FIRST_PARTY = {"numpy": _numpy, "cupy": _cupy, "torch": _torch, "jax": _jax, "dask": _dask}

# One look-up of the exact type for each array of a call.
_libraries: dict[type, Library] = {}

_fast_paths: ContextVar[bool] = ContextVar("anynorm.fast_paths", default=True)


def library_of(function: str, argument: str, x: object) -> Library:
    """Return the library an array belongs to; a TypeError if it is no array."""
    library = _libraries.get(type(x))
    if library is None:
        return _meet(function, argument, x)
    if library.differ:
        refuse_unsuited(function, argument, x)
    return library


def known_library(x: object) -> Library | None:
    """Return the library of an array whose type was met before."""
    return _libraries.get(type(x))


def _meet(function: str, argument: str, x: object) -> Library:
    """Describe the library of a type that was not seen before."""
    found = namespace(x)
    if found is None:
        reject_array(function, argument, x)
    if found[0] != "torch":  # whose package knows, and whose compiler need not trace this
        refuse_unsuited(function, argument, x)
    name, xp = found
    package = _FIRST_PARTY[name]() if name in _FIRST_PARTY else _third_party(type(x))
    if package is None:
        fault = tried(name, xp)
        if fault is not None:
            msg = (
                f"{function}: {argument} is {kind(x)}, whose library does not follow the array API standard: {fault}. "
                f"Convert it first, e.g. numpy.asarray({argument})."
            )
            raise TypeError(msg)
    library = _libraries[type(x)] = Library(name, xp, package)
    library.differ = name != "torch" and may_differ(type(x))
    # So array libraries say it of all their arrays; where some can be written to, each is asked.
    library.immutable = library.immutable or (package is None and not hasattr(type(x), "__setitem__"))
    return library


def refuse_unsuited(function: str, argument: str, x: object) -> None:
    """Raise a TypeError if an array means more than its numbers."""
    refusal = unsuited(x)
    if refusal is None:
        return
    if argument == "out":
        refusal = f"is {kind(x)}, which is more than numbers. Allocate it with xp.empty_like(x)."
    msg = f"{function}: {argument} {refusal}"
    raise TypeError(msg)


def _third_party(cls: type) -> ModuleType | None:
    """Load the package that an installed distribution registers for this array type."""
    from importlib.metadata import entry_points  # here, because it doubles the time of `import anynorm`

    array_type = f"{cls.__module__}.{cls.__qualname__}"
    for entry_point in entry_points(group="anynorm.backends", name=array_type):
        try:
            package = entry_point.load()
            if not isinstance(package, ModuleType):
                msg = f"{entry_point.value} is no module"
                raise TypeError(msg)
        except Exception as error:  # whatever a stranger's import raises, the formula still serves its arrays
            backend = f"the backend {entry_point.value!r} for {array_type}"
            msg = f"anynorm: {backend} failed to import and is not used: {error!r}"
            warnings.warn(msg, RuntimeWarning, stacklevel=users_level())
        else:
            return package
    return None


class Route(NamedTuple):
    """Which implementation serves a call, and the one reason a faster one does not."""

    path: str
    reason: str | None

    def __str__(self) -> str:
        return self.path if self.reason is None else f"{self.path} ({self.reason})"


def route(call: Call) -> Route:
    """Decide which implementation serves a call. Nothing is computed."""
    reason = why_formula(call)
    if reason is not None:
        return Route("formula", reason)
    plan, library, x, weight, bias, _, stats, out, _ = call
    if library.path is None:
        return Route(library.package.__name__, None)
    return Route(*library.path(plan, x, weight, bias, stats=stats, out=out))


def why_formula(call: Call) -> str | None:
    """Return the reason why the formula serves a call, or None where a backend does."""
    library = call.library
    reason = _why_no_backend(call)
    if reason is None and library.declines is not None:
        reason = library.declines(call.plan, call.x, call.weight, call.bias, stats=call.stats, out=call.out)
    return reason


def _why_no_backend(call: Call) -> str | None:
    """Return the reason why a backend is not even asked, or None."""
    library, plan = call.library, call.plan
    if library.package is None:
        return f"no backend serves {library.name} arrays"
    if library.compiling():
        return f"{library.name} is compiling the call itself"
    if not _fast_paths.get():
        return "fast paths are turned off"
    if library.is_empty(plan.shape):
        return "x is empty"
    needed = library.moments if plan.function == "moments" else library.forward
    return f"no backend computes on {library.name} arrays" if needed is None else None


def run(call: Call, *, save: bool = False) -> tuple[Any, Any]:
    """Compute y, and what was learned of the statistics if `save` asks for it."""
    return _run(call, save=save)[:2]


def _run(call: Call, *, save: bool) -> tuple[Any, Any, bool]:
    """Compute y and what was learned, and say whether a backend did."""
    plan, library, x, weight, bias, eps, stats, out, known = call
    result: Any = None
    if known is not None and _fast_paths.get():
        result = library.again(known, x, weight, bias, eps, stats, out, save)  # type: ignore[misc]
    elif (_why_no_backend(call) if library.decides_within else why_formula(call)) is None:
        result = library.forward(plan, x, weight, bias, eps, stats=stats, out=out, save=save)  # type: ignore[misc]
    if result is not None and not isinstance(result, str):
        return *result, True
    by_formula = library.there(x, _formula.forward, plan, x, weight, bias, eps, stats=stats, out=out, library=library)
    return *by_formula, False


def run_for_gradient(call: Call) -> tuple[Any, Any, Callable[..., tuple[Any, Any, Any]]]:
    """Compute y, what was learned of the statistics, and the function from dy, and `out` for dx, to the gradients."""
    plan, library, x, weight, _, eps, stats, _, _ = call
    y, saved, by_backend = _run(call, save=True)
    if saved is None and stats is not None:
        saved = library.there(x, _formula.given, plan, stats, eps, x, library=library)
    # Decided with the forward pass: `fast_paths` of a later moment, in another thread perhaps, must not mix the two.
    if by_backend and library.backward is not None:
        return y, saved, partial(library.backward, plan, x=x, weight=weight, saved=saved)
    by_formula = partial(library.there, x, _formula.backward, plan)
    return y, saved, partial(by_formula, x=x, weight=weight, saved=saved, library=library)


def measure(call: Call) -> _formula.Saved:
    """Compute the statistics of x alone."""
    library = call.library
    if why_formula(call) is not None or library.moments is None:
        return library.there(call.x, _formula.moments, call.plan, call.x, library=library)  # type: ignore[no-any-return]
    saved: _formula.Saved = library.moments(call.plan, call.x)
    return saved


@contextmanager
def fast_paths(enabled: bool) -> Iterator[None]:
    """Turn the backends' fast paths on or off within a `with` block, for this thread or task alone.

    Off, every array is served by the formula: to compare the two, or to report a difference.

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
