"""Each public function beside its half that checks and plans, for those who take a function as an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from anynorm._array import described
from anynorm._prepare import Call
from anynorm.batch_norm import batch_norm, batch_norm_call
from anynorm.group_norm import group_norm, group_norm_call, instance_norm, instance_norm_call
from anynorm.layer_norm import layer_norm, layer_norm_call, rms_norm, rms_norm_call
from anynorm.moments import moments, moments_call

_CALLS: dict[Callable[..., Any], Callable[..., Call]] = {
    layer_norm: layer_norm_call,
    rms_norm: rms_norm_call,
    group_norm: group_norm_call,
    instance_norm: instance_norm_call,
    batch_norm: batch_norm_call,
    moments: moments_call,
}

for _function, _call in _CALLS.items():
    # What Python says of a missing or unknown argument should name the function that was called.
    _call.__qualname__ = _function.__qualname__

NORMS: tuple[Callable[..., Any], ...] = (layer_norm, rms_norm, group_norm, instance_norm, batch_norm)


def call_of(asking: str, function: object, known: Sequence[Callable[..., Any]]) -> Callable[..., Call]:
    """Return the half of a function that checks and plans; a TypeError if it is none of those `known`."""
    for candidate in known:
        if function is candidate:
            return _CALLS[candidate]
    names = ", ".join([candidate.__name__ for candidate in known])
    advice = (
        " Pass the function that the layer calls; layer.vjp(x) is its gradient." if hasattr(function, "vjp") else ""
    )
    msg = f"{asking}: function must be one of anynorm's {names}; got {described(function)}.{advice}"
    raise TypeError(msg)
