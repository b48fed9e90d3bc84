"""Subclasses of other people's classes that bear their names, and that pickle and copy make again. No arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def stand_in(
    own: type[torch.nn.Module], bases: tuple[type, ...], names: dict[str, Any], remake: Callable[..., Any], *args: Any
) -> type[torch.nn.Module]:
    """Return the class of `bases` and `names` that stands for `own`. remake(*args) returns an empty object of it."""

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807  as pickle and copy call it
        reduced: Any = own.__reduce_ex__(self, max(protocol, 2))
        return remake, args, *reduced[2:]

    said = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    new: Any = type(own.__name__, bases, {**names, **said, "__reduce_ex__": __reduce_ex__, "_anynorm_own": own})
    return new  # type: ignore[no-any-return]
