"""A layer's arrays as a state: taken out, loaded, copied to another library, pickled.

Knows arrays by their names only, and no norm.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from anynorm._convert import copied, default_integer, device_of, from_numpy, to_numpy
from anynorm._core.arrays import FLOATING, Array, Namespace, described, dtype_name
from anynorm._core.backends import ops_of
from anynorm._core.plan import show
from anynorm.layers._arrays import Home, home_named
from anynorm.layers._pytrees import tell_jax

# Not in a state_dict, because torch's have no such key and its strict loading would refuse the rest.
_NOT_IN_STATE = "num_batches_skipped"


class Differences(NamedTuple):
    """What load_state_dict(..., strict=False) found different: keys that it missed, and keys it did not know."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class Stateful:
    """What has arrays by name, `_names`, each an attribute or None, beside attributes that are no arrays."""

    _names: tuple[str, ...] = ()

    def state_dict(self, prefix: str = "") -> dict[str, Any]:
        """Return the layer's arrays by the names torch gives them, each with `prefix` in front.

        weight, bias, running_mean, running_var and num_batches_tracked, those that exist: the arrays themselves, no
        copies. Which axes, eps and momentum they go with is not part of it.

        Parameters
        ----------
        prefix : str
            Such as "encoder.norm1.", with its dot.

        Returns
        -------
        dict
            Of arrays, for `load_state_dict` of any layer or for `save_state`.

        """
        return {prefix + name: array for name, array in self._arrays().items() if name != _NOT_IN_STATE}

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True, prefix: str = "") -> Differences:
        """Replace the layer's arrays by copies of those in `state`, in the layer's own library, dtype and device.

        Everything is checked first: either all is loaded or nothing.

        Parameters
        ----------
        state : mapping
            Arrays of any library, also torch's and in any dtype, by the names that `state_dict` gives them.
        strict : bool
            Whether missing and unexpected keys are an error. If not, what is missing stays as it is.
        prefix : str
            What the keys of this layer begin with, such as "encoder.norm1.". Other keys are ignored.

        Returns
        -------
        Differences
            (missing, unexpected), both empty if strict.

        Raises
        ------
        TypeError
            state is not a mapping.
        ValueError
            Keys are missing or unexpected (if strict), or an entry has another shape than the layer's, is not an array,
            or is one of integers where the layer has real numbers. The message lists all of it.

        """
        name = type(self).__name__
        if not isinstance(state, Mapping):
            msg = (
                f"{name}: load_state_dict takes a dict of arrays, got {described(state)}. Pass e.g. other.state_dict()."
            )
            raise TypeError(msg)
        own = {prefix + key: array for key, array in self._arrays().items() if key != _NOT_IN_STATE}
        missing = tuple([key for key in own if key not in state])
        unexpected = tuple([key for key in state if str(key).startswith(prefix) and key not in own])
        found_faults = [_fault(key, state[key], array) for key, array in own.items() if key in state]
        faults = [fault for fault in found_faults if fault is not None]
        if strict:
            faults = [f"{key} is missing" for key in missing] + [f"{key} is unexpected" for key in unexpected] + faults
        if faults:
            msg = f"{name}: nothing was loaded. {'; '.join(faults)}."
            if strict and not any(found_faults):
                msg += _advice(state, missing, unexpected, own, prefix, self._names)
            raise ValueError(msg)
        self._assign({key.removeprefix(prefix): _like(array, state[key]) for key, array in own.items() if key in state})
        return Differences(missing, unexpected)

    def to(self, xp: Namespace | None = None, *, device: object = None, dtype: object = None) -> Self:
        """Return a new layer with a copy of every array in another library, on another device or in another dtype.

        Mode, freezing and counts go along. What is not named stays as it is, but for the device, which is the library's
        own choice where `xp` names another library.

        Parameters
        ----------
        xp : namespace or None
            Such as the module numpy, torch or jax.numpy.
        device : device or None
            As the library names it.
        dtype : dtype, str or None
            One of the four floating dtypes, for parameters and running statistics.

        Returns
        -------
        Layer
            Of the same class; the two share nothing.

        Raises
        ------
        TypeError
            xp is no namespace of an array library, or dtype none of the four.
        ValueError
            The library has no such dtype or device.

        """
        arrays = self._arrays()
        own = ops_of(type(self).__name__, "an array of the layer", next(iter(arrays.values()))) if arrays else None
        home = home_named(type(self).__name__, own, xp, dtype, device)
        new = copy.copy(self)
        new._assign({name: _moved(array, home, dtype is not None) for name, array in arrays.items()})
        return new

    def _arrays(self) -> dict[str, Any]:
        """Return all arrays that exist, by name."""
        named = {name: getattr(self, name) for name in self._names}
        return {name: array for name, array in named.items() if array is not None}

    def _assign(self, new: Mapping[str, Any]) -> None:
        """Replace arrays, of whatever kind, by name."""
        for name, array in new.items():
            setattr(self, name, array)
        tell_jax()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle takes along: all but the lock, which belongs to one object."""
        return {name: array for name, array in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` returned."""
        self.__dict__.update(state)
        tell_jax()


def _fault(key: str, value: Array, own: Array) -> str | None:
    """Return what keeps an entry of a state from replacing the layer's own array, or None."""
    try:
        ops = ops_of("load_state_dict", key, value)
    except TypeError:
        return f"{key} is not an array but {described(value)}"
    if ops.shape(value) != tuple(own.shape):
        return f"{key} has shape {show(ops.shape(value))}, the layer's has {show(tuple(own.shape))}"
    given, needed = dtype_name(value.dtype), dtype_name(own.dtype)
    if needed in FLOATING and given not in FLOATING:
        return f"{key} has dtype {given}, which is none of {', '.join(FLOATING)}"
    if needed not in FLOATING and not given.startswith(("int", "uint")):
        return f"{key} has dtype {given}, but is a count and must have integers"
    return None


def _advice(
    state: Mapping[str, Any],
    missing: tuple[str, ...],
    unexpected: tuple[str, ...],
    own: Mapping[str, Any],
    prefix: str,
    names: tuple[str, ...],
) -> str:
    """Return what to try where nothing but the keys is wrong; `names` are all that such a layer may have."""
    if missing and len(missing) == len(own):
        tails = {key.removeprefix(prefix): array for key, array in own.items()}
        first = next(iter(tails))
        begins = [str(key).removesuffix(first) for key in unexpected if str(key).endswith(f".{first}")]
        fitting = [
            repr(begin)
            for begin in begins
            if all(
                begin + tail in state and _fault(tail, state[begin + tail], array) is None
                for tail, array in tails.items()
            )
        ]
        if fitting:
            return f" If this layer's keys begin with it, pass prefix={' or prefix='.join(fitting)}."
    absent = [name for name in names if prefix + name in unexpected]
    if absent:
        needed = dict.fromkeys([name if name in ("weight", "bias") else "track_running_stats" for name in absent])
        made = ", ".join([f"{name}=True" for name in needed])
        return f" Make the layer with {made} first, or pass strict=False to go without {', '.join(absent)}."
    return " To load what there is, pass strict=False."


def _like(own: Array, value: Array) -> Any:
    """Return the values of any library's array in the library, dtype and device of the layer's own."""
    ops = ops_of("load_state_dict", "own", own)
    made = from_numpy(to_numpy(value), ops, dtype_name(own.dtype), device_of(own))
    return _as_trainable(made, own)


def _moved(own: Array, home: Home, cast: bool) -> Any:
    """Return a copy of the values in another library, dtype or device."""
    ops = ops_of("to", "own", own)
    name = dtype_name(own.dtype)
    stays = ops.name == home.ops.name and home.device is None
    if name in FLOATING and cast:
        name = dtype_name(home.dtype)
    elif name not in FLOATING and not stays:
        name = default_integer(home.ops, home.device)
    made = copied(own, name) if stays else from_numpy(to_numpy(own), home.ops, name, home.device)
    return _as_trainable(made, own)


def _as_trainable(made: Array, own: Array) -> Any:
    """Return an array with torch's mark that a gradient is wanted, where the one it replaces has it."""
    if getattr(own, "requires_grad", False) and hasattr(made, "requires_grad_"):
        made.requires_grad_(True)
    return made
