"""Where a layer's arrays live: which library, dtype and device its arguments name, and the first values there."""

from __future__ import annotations

from typing import Any, NamedTuple

from anynorm._convert import LIKE_NUMPY, default_integer, device_of, dtype_of
from anynorm._core.arrays import FLOATING, Array, Namespace, described, dtype_name
from anynorm._core.backends import backend_of, ops_of
from anynorm._core.checks import check_array, check_companion
from anynorm._core.ops import Ops
from anynorm._core.plan import show


class Home(NamedTuple):
    """A library, one of its floating dtypes and, where one was named or follows from an array, a device."""

    ops: Ops
    dtype: Any
    device: Any

    def ones(self, shape: tuple[int, ...]) -> Any:
        """Return ones that live here."""
        return self.ops.xp.ones(shape, dtype=self.dtype, **self._where())

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Return zeros that live here."""
        return self.ops.xp.zeros(shape, dtype=self.dtype, **self._where())

    def counter(self) -> Any:
        """Return a 0-d 0 of the library's default integers, int64 where it has that."""
        dtype = getattr(self.ops.xp, default_integer(self.ops, self.device))
        return self.ops.xp.zeros((), dtype=dtype, **self._where())

    def _where(self) -> dict[str, Any]:
        return {} if self.device is None else {"device": self.device}


def make_parameters(
    layer: str,
    shape: tuple[int, ...],
    weight: bool | Array,
    bias: bool | Array,
    xp: Namespace | None,
    dtype: object,
    device: object,
) -> tuple[Any, Any, Home]:
    """Return weight (ones), bias (zeros), each None where it is not wanted or as it is where given, and where they are.

    A TypeError or ValueError says what does not fit together.
    """
    wanted = {"weight": weight, "bias": bias}
    given = {name: value for name, value in wanted.items() if not isinstance(value, bool)}
    for name, value in given.items():
        if not hasattr(value, "shape"):
            msg = (
                f"{layer}: {name} must be True or False, for whether to have it, or the array to start with; got "
                f"{described(value)}. Pass e.g. {name}=True, or numpy.ones({shape}, dtype='float32')."
            )
            raise TypeError(msg)
        check_parameter(layer, name, value, shape)
    home = _home_of_arrays(layer, given, xp, dtype, device) if given else home_named(layer, None, xp, dtype, device)
    start = {"weight": home.ones, "bias": home.zeros}
    made = {name: value if name in given else start[name](shape) if value else None for name, value in wanted.items()}
    return made["weight"], made["bias"], home


def check_parameter(layer: str, name: str, value: Array, shape: tuple[int, ...]) -> None:
    """Raise unless value is a floating array of this shape."""
    backend = backend_of(layer, name, value)
    ops = backend.ops
    check_array(layer, name, value, backend)
    if ops.shape(value) != shape:
        msg = f"{layer}: {name} has shape {show(ops.shape(value))}, but this layer's has shape {show(shape)}. "
        msg += "Give one of that shape, or make the layer for the other."
        raise ValueError(msg)


def _home_of_arrays(layer: str, given: dict[str, Any], xp: Namespace | None, dtype: object, device: object) -> Home:
    """Return where the given arrays live, if they agree with each other and with what was named."""
    (first, reference), *others = given.items()
    backend = backend_of(layer, first, reference)
    ops = backend.ops
    for name, value in others:
        check_companion(layer, name, value, reference, backend, first)
    here: dict[str, Any] = {"xp": ops.name, "dtype": reference.dtype, "device": device_of(reference)}
    named: dict[str, Any] = {}
    if xp is not None:
        named["xp"] = _library_named(layer, xp).name
    if dtype is not None:
        named["dtype"] = _dtype_named(layer, ops, dtype, here["device"])
    if device is not None and here["device"] is not None:
        named["device"] = _probe(layer, ops, device).device
    for name, value in named.items():
        if value != here[name]:
            msg = (
                f"{layer}: {name} names {value}, but {first} has {here[name]}, which the layer takes over. "
                f"Leave out {name}, or convert {first} first."
            )
            raise (TypeError if name == "xp" else ValueError)(msg)
    return Home(ops, reference.dtype, here["device"])


def home_named(layer: str, own: Ops | None, xp: Namespace | None, dtype: object, device: object) -> Home:
    """Return where new arrays are to be made: in float32, in a layer's own library or else NumPy, or what was named."""
    if xp is None and own is None:
        import numpy as xp
    ops = own if xp is None else _library_named(layer, xp)
    assert ops is not None
    if device is not None:
        _probe(layer, ops, device)
    return Home(ops, _dtype_named(layer, ops, "float32" if dtype is None else dtype, device), device)


def _library_named(layer: str, xp: Namespace) -> Ops:
    """Return the library of a namespace such as `numpy`, `torch` or `jax.numpy`."""
    try:
        return ops_of(layer, "xp", xp.zeros(1))
    except (AttributeError, TypeError):
        msg = (
            f"{layer}: xp must be the namespace of an array library, such as the module numpy, torch or jax.numpy; "
            f"got {described(xp)}. Import the library and pass the module itself."
        )
        raise TypeError(msg) from None


def _dtype_named(layer: str, ops: Ops, dtype: object, device: object) -> Any:
    """Return the library's dtype that `dtype`, one of its dtypes or a name, stands for."""
    name = dtype if isinstance(dtype, str) else _name_in(ops, dtype)
    if name not in FLOATING:
        msg = (
            f"{layer}: dtype must be one of {', '.join(FLOATING)}, by name or as {ops.name}'s own dtype; "
            f"got {described(dtype)}. Pass e.g. dtype='float32'."
        )
        raise TypeError(msg)
    try:
        return dtype_of(ops, name, device)
    except ValueError as error:
        msg = f"{layer}: dtype={dtype!r} cannot be had: {error}"
        raise ValueError(msg) from None


def _name_in(ops: Ops, dtype: Any) -> str | None:
    """Return the name of one of the library's own dtypes, or None."""
    if ops.name not in LIKE_NUMPY:
        return dtype_name(dtype) if isinstance(dtype, type(ops.xp.float32)) else None
    import numpy as np

    try:
        name: str = np.dtype(dtype).name
    except TypeError:
        return None
    return name


def _probe(layer: str, ops: Ops, device: object) -> Any:
    """Return a small array on the device; a ValueError with the library's own reason where it knows no such device."""
    try:
        return ops.xp.zeros(1, device=device)
    except Exception as error:  # each library has its own class for this
        why = "pass one of jax.devices()." if ops.name == "jax" and isinstance(device, str) else error
        msg = f"{layer}: {ops.name} cannot place arrays on device={device!r}: {why}"
        raise ValueError(msg) from error
