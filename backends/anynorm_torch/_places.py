"""Which engine serves a tensor, by the memory that it lies in."""

from __future__ import annotations

from typing import Any

from anynorm_torch import _memory
from anynorm_torch._device import DEVICE
from anynorm_torch._host import HOST
from anynorm_torch._jobs import Jobs

JOBS: dict[str, Jobs] = {its.memory: its for its in (HOST, DEVICE)}


def jobs_for(x: Any) -> Jobs:
    """Return what hands a tensor to an engine that reads its memory, if one may."""
    return JOBS[_memory.memory_of(x)]
