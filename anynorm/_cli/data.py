"""What is normalized: a file, or data that ships with scikit-learn, as a floating array of samples and channels.

Whatever is guessed, cast or left out on the way is noted in words. Computes nothing else.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anynorm._cli import UsageError
from anynorm._cli.libraries import bfloat16
from anynorm._cli.norms import Layout, counted
from anynorm._cli.sources import ONE_IMAGE, Found, read, shipped
from anynorm._core.arrays import FLOATING
from anynorm._reference import NumPyArray

# 256 MiB of float32, of which some ten copies are in memory at once.
MOST_ELEMENTS = 64 * 2**20

_GROUPS = (32, 16, 8, 4, 3, 2, 1)


@dataclass
class Data:
    """A batch, its layout, and what was done to get there."""

    source: str
    x: NumPyArray
    layout: Layout
    channel_names: list[str]
    notes: list[str] = field(default_factory=list)


def load(
    file: str | None, data: str | None, key: str | None, channel_axis: int | None, groups: int | None, dtype: str | None
) -> Data:
    """Read what the arguments name and lay it out as a batch of samples with channels."""
    if file is not None and data is not None:
        msg = "give FILE or --data, not both."
        raise UsageError(msg)
    if key is not None and not (file or "").lower().endswith(".npz"):
        msg = "--array names an array of an .npz file. Leave it out, or give such a file."
        raise UsageError(msg)
    found = shipped(data) if file is None else read(Path(file), key)
    _check(found)
    axis = _channel_axis(found, channel_axis)
    x, axis = _as_batch(_sample(found.array, axis, found.notes), axis, found.notes)
    x = _as_floating(x, dtype, found.notes)
    layout = Layout(x.shape, axis, _groups(x.shape[axis], groups))
    _note_what_coincides(layout, found.notes)
    names = found.channel_names
    if names is None or len(names) != layout.channels:  # --channel-axis may name another axis
        names = [f"channel {index}" for index in range(layout.channels)]
    return Data(found.source, x, layout, names, found.notes)


def _check(found: Found) -> None:
    array = found.array
    if array.ndim < 2:
        msg = (
            f"{found.source} has shape {array.shape}. At least two axes are needed: (samples, features), or a batch of "
            "images such as (samples, channels, height, width)."
        )
        raise UsageError(msg)
    if array.size == 0:
        msg = f"{found.source} is empty: its shape is {array.shape}."
        raise UsageError(msg)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        msg = f"{found.source} has dtype {array.dtype}, which holds no real numbers. Save it as float32, for example."
        raise UsageError(msg)


def _channel_axis(found: Found, given: int | None) -> int:
    """Return the channel axis as found, non-negative: given, known, or guessed and noted."""
    shape: tuple[int, ...] = found.array.shape
    ndim = len(shape)
    if given is not None:
        if not -ndim <= given < ndim:
            msg = f"--channel-axis {given} is out of range: the array has shape {shape}. Choose {-ndim} to {ndim - 1}."
            raise UsageError(msg)
        return given % ndim
    if found.channel_axis is not None:
        return found.channel_axis % ndim
    if ndim == 2:
        axis, why = 1, "an array of two axes is (samples, features)"
    elif shape[-1] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        axis, why = ndim - 1, f"the last axis is as short as colours are, {shape[-1]}"
    else:
        axis, why = 1, "channels follow the samples"
    found.notes.append(f"--channel-axis is guessed to be {axis}: {why}")
    return axis


def _sample(array: NumPyArray, channel_axis: int, notes: list[str]) -> NumPyArray:
    """Return evenly spaced rows of an array that is too large, as an array in memory."""
    if array.size > MOST_ELEMENTS:
        along = 1 if channel_axis == 0 else 0
        length = array.shape[along]
        rows = MOST_ELEMENTS * length // array.size
        if not rows:
            msg = (
                f"one row of the array, whose shape is {array.shape}, has more than {MOST_ELEMENTS} elements. "
                "Cut it into smaller samples."
            )
            raise UsageError(msg)
        index = np.linspace(0, length - 1, rows).astype(int)
        notes.append(
            f"the array has {array.size} elements: {rows} evenly spaced of its {length} rows on axis {along} are used"
        )
        array = array[index] if along == 0 else array[:, index]
    return np.asarray(array)


def _as_batch(x: NumPyArray, channel_axis: int, notes: list[str]) -> tuple[NumPyArray, int]:
    """Return x with samples along axis 0, and its channel axis."""
    if channel_axis == 0 and x.ndim == 2:
        notes.append("transposed to (samples, features)")
        return np.ascontiguousarray(x.T), 1
    one_image = x.ndim == 3 and channel_axis == 2 and x.shape[2] <= 4
    if channel_axis == 0 or one_image:
        if ONE_IMAGE not in notes:
            notes.append("taken as a batch of one sample")
        return x[None], channel_axis + 1
    return x, channel_axis


def _as_floating(x: NumPyArray, dtype: str | None, notes: list[str]) -> NumPyArray:
    """Return x in a dtype the library takes, native and contiguous; what it loses by that is noted."""
    target = dtype or x.dtype.name
    if target not in FLOATING:
        target = "float64" if x.dtype.kind == "f" else "float32"
    if target == "bfloat16" and bfloat16() is None:
        msg = "--dtype bfloat16 needs ml_dtypes, which is not installed: pip install ml_dtypes"
        raise UsageError(msg)
    if target != x.dtype.name:
        notes.append(f"cast from {x.dtype.name} to {target}")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # NumPy warns of overflow, which is counted below
        cast = np.ascontiguousarray(x.astype(bfloat16() if target == "bfloat16" else target))
    unusual = int(np.count_nonzero(~np.isfinite(cast)))
    if unusual:
        nan = int(np.count_nonzero(np.isnan(cast)))
        notes.append(
            f"NaN: {nan}, infinite: {unusual - nan} of the values; the sets that hold them become NaN (in RMS norm, "
            "finite values beside an infinite one become 0), and mean and spread are those of the finite values"
        )
    return cast


def _groups(channels: int, given: int | None) -> int:
    if given is None:
        # Two channels a group at least, where that can be: with one, group norm is instance norm.
        return next((groups for groups in _GROUPS if channels % groups == 0 and channels > groups), 1)
    if given < 1 or channels % given:
        msg = f"--groups {given} does not divide the {channels} channels. Choose a divisor of {channels}."
        raise UsageError(msg)
    return given


def _note_what_coincides(layout: Layout, notes: list[str]) -> None:
    if layout.groups == layout.channels:
        notes.append(f"with {counted(layout.groups, 'group')} of one channel, group norm is instance norm")
    elif layout.groups == 1:
        notes.append("with 1 group, group norm reduces what layer norm does")
    if math.prod([layout.shape[axis] for axis in layout.places]) == 1:
        notes.append("a channel of a sample is one value, which instance norm turns into 0")
