"""What a call would do, without doing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

from anynorm._calls import NORMS, call_of
from anynorm._dispatch import Route, route
from anynorm.moments import moments

P = ParamSpec("P")


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
    anynorm_numba

    """
    return route(call_of("explain", function, [*NORMS, moments])(*args, **options))
