"""From the type of an array to the `Backend` that serves it. The one place that loads backends."""

from __future__ import annotations

import warnings
from typing import Any

from anynorm._core.advice import reject_array
from anynorm._core.arrays import Namespace, class_name
from anynorm._core.frames import users_level
from anynorm._core.ops import ArrayOps, Ops
from anynorm._core.unknown import UntestedOps, fault_of, namespace
from anynorm._core.unsuited import may_differ, type_name, unsuited
from anynorm.backend import Backend, Declined, Executable, Operands, Plan

# Loaders are plain `import` statements because torch.compile traces those; importlib.import_module breaks its
# graph, even behind a cache.


def _first_party(library: str) -> type[Any] | None:
    """Return the class of the backend in this distribution for a library, or None."""
    match library:
        case "numpy":
            from anynorm_numpy import NumPyBackend

            return NumPyBackend
        case "cupy":
            from anynorm_cupy import CuPyBackend

            return CuPyBackend
        case "torch":
            from anynorm_torch import TorchBackend

            return TorchBackend
        case "jax":
            from anynorm_jax import JaxBackend

            return JaxBackend
        case "dask":
            from anynorm_dask import DaskBackend

            return DaskBackend
    return None


# By exact type: one look-up for each array of a call.
by_type: dict[type, Backend] = {}

# Types of which one array may be unsuited and another not, so that each is asked.
_asked: set[type] = set()

# First-party backends that were loaded, by library: several types may share one.
_loaded: dict[str, Backend] = {}

# Those of other distributions, by type. A type is in `by_type` once one of them accepted an array of it.
_registered: dict[type, list[Backend]] = {}


def backend_of(function: str, argument: str, x: object) -> Backend:
    """Return the backend that serves an array; a TypeError if it is no array, or means more than its numbers."""
    backend = by_type.get(type(x))
    if backend is None:
        return _meet(function, argument, x)
    check_suited(function, argument, x)
    return backend


def check_suited(function: str, argument: str, x: object) -> None:
    """Raise a TypeError if an array means more than its numbers, where others of its type may not."""
    if type(x) in _asked:
        _refuse_unsuited(function, argument, x)


def ops_of(function: str, argument: str, x: object) -> Ops:
    """Return the operations of an array's library; a TypeError as `backend_of` raises it."""
    return backend_of(function, argument, x).ops


def _meet(function: str, argument: str, x: object) -> Backend:
    """Find the backend for an array of a type for which none is known."""
    found = namespace(x)
    name = "" if found is None else found[0]
    backend = _loaded.get(name)
    own = _first_party(name) if backend is None else None
    if own is not None:
        backend = _loaded[name] = own()
    elif backend is None:
        backend = _third_party(x)
        if backend is not None:
            by_type[type(x)] = backend
            return backend
    if found is None:
        reject_array(function, argument, x)
    if name != "torch":  # whose backend knows, and whose compiler need not trace this
        _refuse_unsuited(function, argument, x)
        if may_differ(type(x)):
            _asked.add(type(x))
    if backend is None:
        backend = _unserved(function, argument, x, *found)
        if _registered[type(x)]:  # and may accept the next array of this type
            return backend
    by_type[type(x)] = backend
    return backend


def _unserved(function: str, argument: str, x: object, name: str, xp: Namespace) -> Backend:
    """Return a backend for a library that has none, by the standard's own calls."""
    fault = fault_of(name, xp)
    if fault is not None:
        msg = (
            f"{function}: {argument} is {type_name(x)}, whose library does not follow the array API standard: {fault}. "
            f"Convert it first, e.g. numpy.asarray({argument})."
        )
        raise TypeError(msg)
    backend = _Unserved(UntestedOps(name, xp))
    # So array libraries say it of all their arrays; where some can be written to, each is asked.
    backend.immutable = not hasattr(type(x), "__setitem__")
    return backend


class _Unserved(Backend):
    """The backend of a library that has none."""

    def compile(self, plan: Plan, operands: Operands) -> Executable[Any] | Declined:  # noqa: ARG002
        return Declined(f"no backend serves {self.ops.name} arrays")


def _refuse_unsuited(function: str, argument: str, x: object) -> None:
    """Raise a TypeError if an array means more than its numbers."""
    refusal = unsuited(x)
    if refusal is None:
        return
    if argument == "out":
        refusal = f"is {type_name(x)}, which is more than numbers. Allocate it with xp.empty_like(x)."
    msg = f"{function}: {argument} {refusal}"
    raise TypeError(msg)


def _third_party(x: object) -> Backend | None:
    """Return the first backend that an installed distribution registers for x's type and that accepts x."""
    if type(x) not in _registered:
        _registered[type(x)] = _load(class_name(x))
    for backend in _registered[type(x)]:
        try:
            accepted = backend.accepts(x)
        except Exception as error:
            asked = f"{class_name(backend)}.accepts must say whether it serves {class_name(x)}"
            msg = f"anynorm: {asked}, it raised {error!r}"
            raise RuntimeError(msg) from error
        if accepted:
            return backend
    return None


# Backends of other distributions: what their executables return is checked.
outside: set[Backend] = set()


def _load(array_type: str) -> list[Backend]:
    """Load the backends that installed distributions register for a type; a warning says which cannot be."""
    from importlib.metadata import entry_points  # here, because it doubles the time of `import anynorm`

    backends = []
    for entry_point in entry_points(group="anynorm.backends", name=array_type):
        try:
            loaded = entry_point.load()
            if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
                msg = f"{entry_point.value} is no subclass of anynorm.backend.Backend"
                raise TypeError(msg)
            backend: Backend = loaded()  # type: ignore[call-arg]  # a subclass knows its ops
            if not isinstance(getattr(backend, "ops", None), ArrayOps):
                msg = f"{entry_point.value} has no ops: its __init__ must call super().__init__(ops)"
                raise TypeError(msg)
            backends.append(backend)
            outside.add(backend)
        except Exception as error:  # whatever a stranger's import raises, the formula still serves its arrays
            where = f"the backend {entry_point.value!r} for {array_type}"
            msg = f"anynorm: {where} cannot be used: {error!r}"
            warnings.warn(msg, RuntimeWarning, stacklevel=users_level())
    return backends
