"""What a call would do, without doing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

from anynorm._array import described
from anynorm._dispatch import Call, Route, route
from anynorm.batch_norm import batch_norm, batch_norm_call
from anynorm.group_norm import group_norm, group_norm_call, instance_norm, instance_norm_call
from anynorm.layer_norm import layer_norm, layer_norm_call, rms_norm, rms_norm_call
from anynorm.moments import moments, moments_call

P = ParamSpec("P")

# Each public function, and its half that checks and plans.
CALLS: dict[Callable[..., Any], Callable[..., Call]] = {
    layer_norm: layer_norm_call,
    rms_norm: rms_norm_call,
    group_norm: group_norm_call,
    instance_norm: instance_norm_call,
    batch_norm: batch_norm_call,
    moments: moments_call,
}


def explain(function: Callable[P, Any], /, *args: P.args, **options: P.kwargs) -> Route:
    """Return which implementation would serve a call, and the one reason why a faster one would not.

    The arguments are checked as the call itself checks them; nothing is computed.

    Parameters
    ----------
    function : callable
        layer_norm, rms_norm, group_norm, instance_norm, batch_norm or moments.
    *args, **options
        Its arguments.

    Returns
    -------
    Route
        (path, reason): path is a backend package's name or "formula"; reason is None, or why it is the formula.

    Raises
    ------
    TypeError
        function is none of the six.
    Exception
        What the call itself would raise.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> print(an.explain(an.layer_norm, np.ones((2, 3), dtype="float32")))
    anynorm_numpy

    """
    if not callable(function) or function not in CALLS:
        names = ", ".join([known.__name__ for known in CALLS])
        msg = f"explain: function must be one of anynorm's {names}; got {described(function)}."
        raise TypeError(msg)
    return route(CALLS[function](*args, **options))
