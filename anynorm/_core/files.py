"""How a file is written: whole or not at all. Every file that anynorm writes goes through here; no array does."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import BinaryIO, Protocol

# Seconds between attempts at taking a name: Windows refuses it while another program has the old file open.
_WAITS = (0.01, 0.03, 0.1, 0.3)


class Figure(Protocol):
    """What is asked of a figure of matplotlib's."""

    def savefig(self, file: BinaryIO, /, *, format: str) -> object: ...  # noqa: A002  matplotlib's name


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that whoever reads it finds all of it; where that fails, leave what was there as it was.

    The data go into a new file of the same folder, which then takes the name. Several processes may write under one
    name at once: the last one's file stays. Links are followed. A file that is there keeps its permissions, and its
    owner where the system lets it. What is no file, such as a pipe or /dev/null, is written into.

    Raises
    ------
    OSError
        It cannot be written: there is no such folder, the file is write-protected, the disk is full. The error names
        the file.

    """
    name = os.fspath(path)
    target = os.path.realpath(name)
    old = None
    try:
        with suppress(FileNotFoundError):
            old = os.stat(name)
        if old is not None and not stat.S_ISREG(old.st_mode):
            with open(name, "wb") as stream:
                stream.write(data)
            return
        if old is not None:
            os.close(os.open(target, os.O_WRONLY))  # an error where the file, not its folder, is write-protected
        _replace(target, data, old)
    except OSError as error:
        if error.errno is None:
            raise
        # It may name the new file, which is gone, or none. errno makes it the same class again.
        raise OSError(error.errno, error.strerror, name) from None


def write_png(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a figure of matplotlib's as `write_whole` writes."""
    import io

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_whole(path, drawn.getvalue())


def _replace(target: str, data: bytes, old: os.stat_result | None) -> None:
    """Write a new file beside the target and let it take the target's name; remove it where that fails."""
    import secrets

    # Not by tempfile, whose files their owner alone can read. A short name: the target's may be of the greatest length.
    new = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.anynorm")
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode)
    try:
        with open(new, "xb", opener=lambda file, flags: os.open(file, flags, mode)) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # or a crash of the system may leave the name with nothing behind it
        if old is not None:
            _keep(new, old)
        _take(new, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise


def _keep(new: str, old: os.stat_result) -> None:
    """Give a file the owner and the permissions of another, where the system lets it."""
    with suppress(OSError):
        if hasattr(os, "chown"):
            os.chown(new, old.st_uid, old.st_gid)
    with suppress(OSError):
        os.chmod(new, stat.S_IMODE(old.st_mode))


def _take(new: str, target: str) -> None:
    """Let a file take a name, whoever had it."""
    import time

    for wait in _WAITS:
        try:
            return os.replace(new, target)
        except PermissionError:
            time.sleep(wait)
    return os.replace(new, target)
