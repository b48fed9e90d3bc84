"""Whose line of code it is: that an error comes from, and that a warning is about. Knows packages by name alone."""

from __future__ import annotations

import re
import sys
from types import FrameType, ModuleType

# What a refusal of anynorm's begins with.
_OWN_WORDS = re.compile(
    "(pullback of )?(anynorm|layer_norm|rms_norm|group_norm|instance_norm|batch_norm|moments|update_running|vjp): "
)

_PACKAGES = {"anynorm", *[f"anynorm_{name}" for name in ("numpy", "numba", "torch", "cuda", "cupy", "jax", "dask")]}

# Types whose attributes no array library is to blame for.
_PYTHON = {"NoneType", "tuple", "list", "dict", "int", "float", "str", "function"}


def is_own(error: Exception) -> bool:
    """Say whether an error that an array library's functions were called in is anynorm's own.

    It is where it says so, or where the last line that ran is anynorm's. But to that line Python also ascribes what a
    library's compiled code raises, operands and keywords that the library does not take, and attributes that it lacks.
    """
    if _OWN_WORDS.match(str(error)):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or _package(trace.tb_frame) not in _PACKAGES:
        return False
    if isinstance(error, AttributeError):
        owner = error.obj if isinstance(error.obj, ModuleType) else type(error.obj)
        module = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
        return owner.__name__ in _PYTHON or module.partition(".")[0] in _PACKAGES
    return isinstance(error, KeyError | ImportError)


def users_level() -> int:
    """Return the `stacklevel` with which the caller's `warnings.warn` is about the line that called anynorm.

    torch's modules, which stand between a user's call and theirs, are passed over as well.
    """
    level, frame = 0, sys._getframe(1)
    while _package(frame) in _PACKAGES or _package(frame) == "torch":
        level += 1
        if frame.f_back is None:  # there is none: a thread that a library started
            break
        frame = frame.f_back
    return level + 1


def _package(frame: FrameType) -> str:
    """Return the package that a line of code belongs to."""
    return str(frame.f_globals.get("__name__")).partition(".")[0]
