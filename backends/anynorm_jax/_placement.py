"""Where JAX keeps arrays, and where it would put what it computes of them. Computes nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import SingleDeviceSharding

_config: Any = jax.config  # whose settings are not annotated
_sharding: Any = jax.sharding  # nor are its functions


class Placement(NamedTuple):
    """Where a result goes: what `jax.device_put` takes beside an array."""

    device: Any  # the one that it is committed to; None: JAX's default device, committed to none


def settings() -> Hashable:
    """Return the settings of this moment that decide how a call is served, or whether it is refused."""
    # Without x64 float64 is refused.
    return _config.jax_enable_x64, _config.jax_default_device, _reserved_for_xla()


def _reserved_for_xla() -> str | None:
    """Return which setting of this moment only what XLA computes obeys, in half a sentence, or None."""
    if _config.jax_debug_nans or _config.jax_debug_infs:
        return "JAX is set to look for NaN or infinity in what it computes"
    if str(_config.jax_transfer_guard_host_to_device).endswith("_explicit"):
        return "JAX is set to watch transfers, for which it takes a result of the engine"
    if not _sharding.get_abstract_mesh().empty:
        return "a mesh is set, on which JAX places results"
    return None


def placement_of(arrays: Sequence[Array]) -> Placement | str:
    """Return where XLA would put what it computes of arrays that lie on one CPU; half a sentence if they do not.

    In either case under the settings of this moment.
    """
    reason = _reserved_for_xla()
    if reason is not None:
        return reason
    sharding = arrays[0].sharding
    if type(sharding) is not SingleDeviceSharding:
        return "x is placed by a sharding over a mesh"
    device: Any
    (device,) = sharding.device_set
    if device.platform != "cpu" or sharding.memory_kind != device.default_memory().kind:
        return f"x lies in {device.platform} memory of the kind {sharding.memory_kind}"
    if not arrays[0].is_fully_addressable:
        return "x lies in the memory of another process"
    if any(array.sharding != sharding for array in arrays):
        return "an array lies on another device than x"
    if any(array.committed for array in arrays):
        return Placement(device)
    with jax.ensure_compile_time_eval():  # also where JAX traces what surrounds the call
        default = jax.device_put(np.zeros(1, np.float32)).sharding
    return Placement(None) if sharding == default else "JAX moves x to its default device"
