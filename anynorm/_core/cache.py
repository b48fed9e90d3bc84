"""The one cache: from all that decides how a call is served to what serves it.

Keys are (backend, function, its numbers, eps, signature, whether fast paths are on) for a forward pass, and (what
served the forward pass, signature with dy) for a backward pass. No array and no tracer's symbol enters it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

# Read as `entries.get(key)`, which is one call less than a function of ours.
entries: dict[Any, Any] = {}

# Signatures that are remembered before all start anew.
MANY = 4096


def remember(key: Hashable, value: object) -> None:
    """Put what serves a signature into the cache."""
    if len(entries) >= MANY:
        entries.clear()
    entries[key] = value
