"""Which engine serves a memory, and the warning that tensors take long because what it needs is not installed."""

from __future__ import annotations

import warnings

import torch
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


def missing(memory: str) -> str | None:
    """Return why no engine serves tensors in a memory in this environment, or None."""
    if memory not in _ENGINES:
        return f"no engine reads the memory of {memory}"
    if memory == "cuda" and torch.version.hip is not None:
        return "the CUDA engine's kernels do not run on ROCm"
    reason: str | None = _ENGINES[memory].missing()
    return reason


def path_to(memory: str) -> str:
    """Return what serves tensors in a memory, in the words of `anynorm.explain`."""
    reason = missing(memory)
    return _ENGINES[memory].__name__ if reason is None else f"formula ({reason})"


def say_if_slow(reason: str, x: Tensor) -> None:
    """Warn, once in a process for each memory, where the reason why no engine serves x is that it is not installed."""
    memory = memory_of(x)
    if memory not in _ENGINES or memory in _said or reason != missing(memory) or x.numel() < SIZABLE:
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
