"""States on disk: dicts of any library's arrays, in files of the safetensors format. Never a pickle, and no layer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anynorm._convert import numpy_dtype, to_numpy
from anynorm._core.advice import for_entry_dtype, for_no_entry
from anynorm._core.arrays import Array, described, dtype_name
from anynorm._core.backends import ops_of
from anynorm._core.files import write_whole

if TYPE_CHECKING:
    from anynorm._convert import NumPyArray

# What the format's names of dtypes are in array libraries.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


def save_state(state: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
    """Write arrays of any library into a safetensors file, by name.

    Any program that knows the format reads the file, safetensors.torch among them. Shapes, 0-d ones too, and dtypes,
    bfloat16 too, are kept; the library and the device are not.

    Parameters
    ----------
    state : mapping
        Arrays by name, such as a `state_dict`. A mapping inside becomes names with a dot: {"norm": {"weight": w}} is
        {"norm.weight": w}.
    file : str or path
        What there is under this name is replaced once all is written: readers find the one or the other, whole.

    Raises
    ------
    TypeError
        state is not a mapping, a name not a str or a value not an array that NumPy can read; nothing is written.
    ValueError
        Two entries come to the same name, one is named "__metadata__", or a dtype is none of the format's.
    OSError
        The file cannot be written; what was there before is as it was.
    ImportError
        safetensors is not installed; or ml_dtypes is not, and an array of torch is in bfloat16.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import anynorm as an
    >>> layer = an.RMSNorm(3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     an.save_state({"norm": layer.state_dict()}, pathlib.Path(folder, "model.safetensors"))
    ...     an.load_state(pathlib.Path(folder, "model.safetensors"))
    {'norm.weight': array([1., 1., 1.], dtype=float32)}

    """
    if not isinstance(state, Mapping):
        msg = f"save_state: state must be a dict of arrays, got {described(state)}. Pass e.g. layer.state_dict()."
        raise TypeError(msg)
    arrays: dict[str, NumPyArray] = {}
    for name, place, value in _flat(state, "", "state"):
        if name == "__metadata__":
            msg = "save_state: the format keeps the name '__metadata__' for itself. Rename that entry."
            raise ValueError(msg)
        if name in arrays:
            msg = f"save_state: two entries come to the name {name!r}. Rename one of them."
            raise ValueError(msg)
        arrays[name] = _contiguous(name, place, value)
    numpy_format = _safetensors("save_state").numpy
    write_whole(file, numpy_format.save(arrays))


def load_state(file: str | os.PathLike[str]) -> dict[str, NumPyArray]:
    """Read a safetensors file into a dict of NumPy arrays.

    The arrays are writable and the caller's own. `load_state_dict` of a layer takes them into any library.

    Parameters
    ----------
    file : str or path
        A file of the safetensors format, whichever program wrote it.

    Returns
    -------
    dict
        NumPy arrays by name, in the order of the names.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not of the format, or an array's dtype is not NumPy's.
    ImportError
        safetensors is not installed; or ml_dtypes is not, which brings NumPy's bfloat16, and the file has such arrays.

    """
    import numpy as np

    safetensors = _safetensors("load_state")
    data = Path(file).read_bytes()
    try:
        found = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        msg = f"load_state: {os.fspath(file)} is not a safetensors file: {error}. Write it with save_state."
        raise ValueError(msg) from None
    arrays = {}
    for name, entry in sorted(found, key=lambda pair: pair[0]):  # the format keeps no order
        if entry["dtype"] not in _DTYPES:
            msg = f"load_state: {name} in {os.fspath(file)} has dtype {entry['dtype']}, which NumPy does not have."
            raise ValueError(msg)
        # The format is little-endian. A copy, because a view of bytes is read-only.
        dtype = numpy_dtype(_DTYPES[entry["dtype"]])
        stored = np.frombuffer(entry["data"], dtype=dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype)
        arrays[name] = stored.reshape(entry["shape"]).astype(dtype)
    return arrays


def _flat(state: Mapping[str, Any], prefix: str, place: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the arrays of nested mappings with their dotted names, and how they are reached."""
    for name, value in state.items():
        if not isinstance(name, str):
            msg = f"save_state: names must be str, got {described(name)}" + (f" in {prefix!r}." if prefix else ".")
            raise TypeError(msg)
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.", f"{place}[{name!r}]")
        else:
            yield prefix + name, f"{place}[{name!r}]", value


def _contiguous(name: str, place: str, value: Array) -> NumPyArray:
    """Return an array's values as NumPy's, in C order and native bytes, with its own shape and dtype."""
    import numpy as np

    try:
        ops = ops_of("save_state", name, value)
    except TypeError:
        # That error is about what a norm can take.
        msg = f"save_state: {name} must be an array, got {described(value)}. {for_no_entry(place, value)}"
        raise TypeError(msg) from None
    own = dtype_name(value.dtype)
    if own not in _DTYPES.values():
        msg = f"save_state: {name} has dtype {value.dtype}, which the format does not have. "
        raise ValueError(msg + for_entry_dtype(place, own, ops.name))
    try:
        array = to_numpy(value)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        # Sparse, nested, traced or without numbers: why is in the library's own words.
        said = str(error).removeprefix("anynorm: ").splitlines()[0]
        msg = f"save_state: {name}, {described(value)[:200]}, cannot be read: {said.removesuffix('.')}. "
        msg += "Store arrays whose numbers NumPy can read."
        raise TypeError(msg) from error
    # numpy_dtype raises where bfloat16 was widened on the way for want of ml_dtypes.
    return np.array(array, dtype=numpy_dtype(own), order="C")


def _safetensors(function: str) -> Any:
    """Import safetensors, or say what to install."""
    try:
        import safetensors
    except ModuleNotFoundError as error:
        if error.name != "safetensors":
            raise
        msg = f"{function}: files of this kind need safetensors, which is not installed: pip install safetensors"
        raise ImportError(msg) from None
    import safetensors.numpy

    return safetensors
