"""What `python -m anynorm` is made of. The library itself never imports it, and it uses the library's public names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UsageError(Exception):
    """The command cannot run as asked; the message says what to do instead. Shown without a traceback, exit code 2."""


def piped(run: Callable[[], int]) -> int:
    """Return the exit code of what prints, or 1 if whoever reads it has gone, as `| head` does."""
    try:
        code = run()
        sys.stdout.flush()  # it is noticed now or when Python ends
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
        return 1
    return code
