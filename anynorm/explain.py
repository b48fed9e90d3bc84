"""What a call would do, without doing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

from anynorm._core.dispatch import bound
from anynorm._functions import NORMS, one_of
from anynorm.moments import moments

P = ParamSpec("P")


class Route(NamedTuple):
    """Which implementation serves a call, and the one reason a faster one does not."""

    path: str
    reason: str | None

    def __str__(self) -> str:
        return self.path if self.reason is None else f"{self.path} ({self.reason})"


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
        (path, reason): path is a backend package's name or "formula"; reason is None, or why nothing faster serves.

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
    executable = bound(one_of("explain", function, [*NORMS, moments]), args, options).entry.executable
    return Route(executable.engine, executable.reason)
