"""The public functions that others take as an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from anynorm._core.arrays import described
from anynorm.batch_norm import batch_norm
from anynorm.group_norm import group_norm, instance_norm
from anynorm.layer_norm import layer_norm, rms_norm

NORMS: tuple[Callable[..., Any], ...] = (layer_norm, rms_norm, group_norm, instance_norm, batch_norm)


def one_of(asking: str, function: object, known: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Return a function; a TypeError if it is none of those `known`."""
    if [candidate for candidate in known if candidate is function]:
        return cast("Callable[..., Any]", function)
    names = ", ".join([candidate.__name__ for candidate in known])
    advice = f"Pass one of them itself, e.g. anynorm.{known[0].__name__}."
    if hasattr(type(function), "vjp"):
        advice = "Pass the function that the layer calls; layer.vjp(x) is its gradient."
    msg = f"{asking}: function must be one of anynorm's {names}; got {described(function)}. {advice}"
    raise TypeError(msg)
