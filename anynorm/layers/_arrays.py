"""Where a layer's arrays live: which library, dtype and device its arguments name, and the first values there."""

from __future__ import annotations

from typing import Any, NamedTuple

from anynorm._array import Library, check_array, described, dtype_name
from anynorm._convert import FLOATING, LIKE_NUMPY, default_integer, device_of, dtype_of
from anynorm._dispatch import library_of
from anynorm._plan import show
from anynorm._prepare import check_companion


class Home(NamedTuple):
    """A library, one of its floating dtypes and, where one was named or follows from an array, a device."""

    library: Library
    dtype: Any
    device: Any

    def ones(self, shape: tuple[int, ...]) -> Any:
        """Return ones that live here."""
        return self.library.xp.ones(shape, dtype=self.dtype, **self._where())

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Return zeros that live here."""
        return self.library.xp.zeros(shape, dtype=self.dtype, **self._where())

    def counter(self) -> Any:
        """Return a 0-d 0 of the library's default integers, int64 where it has that."""
        dtype = getattr(self.library.xp, default_integer(self.library, self.device))
        return self.library.xp.zeros((), dtype=dtype, **self._where())

    def _where(self) -> dict[str, Any]:
        return {} if self.device is None else {"device": self.device}


def make_parameters(
    layer: str, shape: tuple[int, ...], weight: Any, bias: Any, xp: Any, dtype: Any, device: Any
) -> tuple[Any, Any, Home]:
    """Return weight (ones), bias (zeros), each None where it is not wanted or as it is where given, and where they are.

    A TypeError or ValueError says what does not fit together.
    """
    wanted = {"weight": weight, "bias": bias}
    given = {name: its for name, its in wanted.items() if not isinstance(its, bool)}
    for name, its in given.items():
        check_parameter(layer, name, its, shape)
    home = _home_of_arrays(layer, given, xp, dtype, device) if given else home_named(layer, None, xp, dtype, device)
    start = {"weight": home.ones, "bias": home.zeros}
    made = {name: its if name in given else start[name](shape) if its else None for name, its in wanted.items()}
    return made["weight"], made["bias"], home


def check_parameter(layer: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise unless value is a floating array of this shape."""
    library = library_of(layer, name, value)
    check_array(layer, name, value, library)
    if library.shape(value) != shape:
        msg = f"{layer}: {name} has shape {show(library.shape(value))}, but this layer's has shape {show(shape)}."
        raise ValueError(msg)


def _home_of_arrays(layer: str, given: dict[str, Any], xp: Any, dtype: Any, device: Any) -> Home:
    """Return where the given arrays live, if they agree with each other and with what was named."""
    (first, reference), *others = given.items()
    library = library_of(layer, first, reference)
    for name, its in others:
        check_companion(layer, name, its, reference, library, first)
    here: dict[str, Any] = {"xp": library.name, "dtype": reference.dtype, "device": device_of(reference)}
    named: dict[str, Any] = {}
    if xp is not None:
        named["xp"] = _library_named(layer, xp).name
    if dtype is not None:
        named["dtype"] = _dtype_named(layer, library, dtype, here["device"])
    if device is not None and here["device"] is not None:
        named["device"] = _probe(layer, library, device).device
    for name, its in named.items():
        if its != here[name]:
            msg = (
                f"{layer}: {name} names {its}, but {first} has {here[name]}, which the layer takes over. "
                f"Leave out {name}, or convert {first} first."
            )
            raise (TypeError if name == "xp" else ValueError)(msg)
    return Home(library, reference.dtype, here["device"])


def home_named(layer: str, own: Library | None, xp: Any, dtype: Any, device: Any) -> Home:
    """Return where new arrays are to be made: in float32, in a layer's own library or else NumPy, or what was named."""
    if xp is None and own is None:
        import numpy as xp
    library = own if xp is None else _library_named(layer, xp)
    assert library is not None
    if device is not None:
        _probe(layer, library, device)
    return Home(library, _dtype_named(layer, library, "float32" if dtype is None else dtype, device), device)


def _library_named(layer: str, xp: Any) -> Library:
    """Return the library of a namespace such as `numpy`, `torch` or `jax.numpy`."""
    try:
        return library_of(layer, "xp", xp.zeros(1))
    except (AttributeError, TypeError):
        msg = (
            f"{layer}: xp must be the namespace of an array library, such as the module numpy, torch or jax.numpy; "
            f"got {described(xp)}. Import the library and pass the module itself."
        )
        raise TypeError(msg) from None


def _dtype_named(layer: str, library: Library, dtype: Any, device: Any) -> Any:
    """Return the library's dtype that `dtype`, one of its dtypes or a name, stands for."""
    name = dtype if isinstance(dtype, str) else _name_in(library, dtype)
    if name not in FLOATING:
        msg = (
            f"{layer}: dtype must be one of {', '.join(FLOATING)}, by name or as {library.name}'s own dtype; "
            f"got {described(dtype)}. Pass e.g. dtype='float32'."
        )
        raise TypeError(msg)
    try:
        return dtype_of(library, name, device)
    except ValueError as error:
        msg = f"{layer}: dtype={dtype!r} cannot be had: {error}"
        raise ValueError(msg) from None


def _name_in(library: Library, dtype: Any) -> str | None:
    """Return the name of one of the library's own dtypes, or None."""
    if library.name not in LIKE_NUMPY:
        return dtype_name(dtype) if isinstance(dtype, type(library.xp.float32)) else None
    import numpy as np

    try:
        name: str = np.dtype(dtype).name
    except TypeError:
        return None
    return name


def _probe(layer: str, library: Library, device: Any) -> Any:
    """Return a small array on the device; a ValueError with the library's own reason where it knows no such device."""
    try:
        return library.xp.zeros(1, device=device)
    except Exception as error:  # each library has its own class for this
        msg = f"{layer}: {library.name} cannot place arrays on device={device!r}: {error}"
        raise ValueError(msg) from error
