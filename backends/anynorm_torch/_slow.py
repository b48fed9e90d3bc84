"""The warning that tensors take long because what an engine needs is not installed. Decides nothing else."""

from __future__ import annotations

import warnings

from torch import Tensor

import anynorm_cuda
import anynorm_numba
from anynorm.backend import users_level
from anynorm_torch._memory import memory_of

_ENGINES = {"cpu": anynorm_numba, "cuda": anynorm_cuda}

# Where no engine serves it, a call of so many elements takes 0.1 ms; of fewer, as much, most of it Python's own.
SIZABLE = 1 << 14

# By memory, who said it: setdefault lets one thread be the first.
_said: dict[str, object] = {}


def say_if_slow(reason: str, x: Tensor) -> None:
    """Warn, once in a process for each memory, where the reason why no engine serves x is that it is not installed."""
    memory = memory_of(x)
    if memory not in _ENGINES or memory in _said or reason != _ENGINES[memory].missing() or x.numel() < SIZABLE:
        return
    first = object()
    if _said.setdefault(memory, first) is not first:
        return
    msg = (
        f"anynorm: torch tensors on {memory} are served by the formula, which takes many times as long as torch's own "
        f"operators, because {reason}. This is said once; to silence it: "
        'warnings.filterwarnings("ignore", message="anynorm: torch tensors")'
    )
    warnings.warn(msg, RuntimeWarning, stacklevel=users_level())
