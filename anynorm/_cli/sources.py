"""Where data comes from: files of arrays and images, and what ships with scikit-learn. Read as it is, not yet laid out.

What a reader knows of the axes, or had to choose, goes with the array.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anynorm._cli import UsageError
from anynorm._reference import NumPyArray

# What a note says of an image, and so of nothing else.
ONE_IMAGE = "an image is a batch of one sample, channels last"


@dataclass
class Found:
    """An array as it was found, before its axes are known."""

    source: str
    array: NumPyArray
    channel_axis: int | None = None  # where what was read says so
    channel_names: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def shipped(data: str | None) -> Found:
    """Return the photos, or the digits if they are named."""
    return _digits() if data == "digits" else _photos()


def _photos() -> Found:
    """Return crops of two photos, seen through the simplest bank of filters: what a first layer hands to a norm.

    The photos themselves have three channels, whose groups would be single channels or all; the filters give twelve, of
    very different means and spreads, in natural groups of three.
    """
    from sklearn.datasets import load_sample_images

    side, crops = 64, []
    for photo in load_sample_images().images:
        rows = np.linspace(0, photo.shape[0] - side - 2, 2).astype(int)
        columns = np.linspace(0, photo.shape[1] - side - 2, 4).astype(int)
        crops += [photo[row : row + side + 2, column : column + side + 2] for row in rows for column in columns]
    photos = np.moveaxis(np.asarray(crops, dtype=np.float32), -1, 1)
    centre = photos[..., 1:-1, 1:-1]
    left, right = photos[..., 1:-1, :-2], photos[..., 1:-1, 2:]
    above, below = photos[..., :-2, 1:-1], photos[..., 2:, 1:-1]
    filtered = {
        "": centre,
        ", sideways slope": (right - left) / 2,
        ", downward slope": (below - above) / 2,
        ", curvature": left + right + above + below - 4 * centre,
    }
    return Found(
        "scikit-learn's photos china.jpg and flower.jpg: 16 crops, 3 colours through 4 filters",
        np.concatenate(list(filtered.values()), axis=1),
        channel_axis=1,
        channel_names=[f"{colour}{name}" for name in filtered for colour in ("red", "green", "blue")],
        notes=["the filters are: the pixel itself, its slope sideways, its slope downward, its curvature"],
    )


def _digits() -> Found:
    from sklearn.datasets import load_digits

    images = load_digits().images
    return Found("scikit-learn's handwritten digits", images[:, None].astype(np.float32), 1, ["grey"])


def read(path: Path, key: str | None) -> Found:
    """Read a file of a kind that its suffix tells; `key` chooses among several arrays."""
    if not path.is_file():
        msg = f"there is no file {path}." if not path.exists() else f"{path} is not a file."
        raise UsageError(msg)
    try:
        match path.suffix.lower():
            case ".npy":
                return _read_npy(path)
            case ".npz":
                return _read_npz(path, key)
            case _:
                return _read_image(path)
    except (OSError, MemoryError) as error:
        msg = f"{path} cannot be read: {error}"
        raise UsageError(msg) from error


def _read_npy(path: Path) -> Found:
    try:
        # Mapped, so that a file larger than memory can be sampled.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(_unreadable(path, error)) from error
    if not isinstance(array, np.ndarray):
        msg = f"{path} is an .npz file by its content. Rename it."
        raise UsageError(msg)
    return Found(str(path), array)


def _read_npz(path: Path, key: str | None) -> Found:
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            msg = f"{path} is an .npy file by its content. Rename it."
            raise UsageError(msg)
        with arrays:
            names = list(arrays.files)
            if not names:
                msg = f"{path} holds no array."
                raise UsageError(msg)
            if key is None and len(names) > 1:
                msg = f"{path} holds several arrays. Choose one with --array: {', '.join(names)}."
                raise UsageError(msg)
            if key is not None and key not in names:
                msg = f"{path} holds no array {key!r}. It holds {', '.join(names)}."
                raise UsageError(msg)
            name = key or names[0]
            return Found(f"{path}, array {name}", arrays[name])
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    kind = path.suffix.lower()
    with path.open("rb") as file:
        whole = file.read(6).startswith(b"PK" if kind == ".npz" else b"\x93NUMPY")
    # NumPy takes whatever it does not know for a pickle.
    if not whole:
        return f"{path} is not a valid {kind} file: its first bytes are not those of one."
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return f"{path} holds Python objects, not numbers, and they are not loaded. Save a plain numeric array."
    return f"{path} is not a valid {kind} file: {error}"


def _read_image(path: Path) -> Found:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            # A palette's indices are no intensities, and neither is one bit.
            plain = {"P": "RGB", "PA": "RGBA", "1": "L"}.get(image.mode)
            array = np.asarray(image if plain is None else image.convert(plain))
            names = list(image.getbands()) if plain is None else list(plain)
    except (UnidentifiedImageError, SyntaxError) as error:  # Pillow's word for a broken PNG
        msg = f"{path} is of no known type. Give a .npy or .npz file, or an image that Pillow opens."
        raise UsageError(msg) from error
    except Image.DecompressionBombError as error:
        msg = f"{path} is too large an image: {error}"
        raise UsageError(msg) from error
    found = Found(str(path), array if array.ndim == 3 else array[..., None], -1, names)
    found.notes.append(ONE_IMAGE)
    if frames > 1:
        found.notes.append(f"the first of the image's {frames} frames is used")
    return found
