"""How an array gets from one library to another: through NumPy, by value, never sharing memory. The one place for it.

Nothing else in anynorm converts; what does, says so in its name or its job (a layer's state, its move, a file).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anynorm._core.arrays import Array, dtype_name
from anynorm._core.backends import ops_of
from anynorm._core.ops import Ops

if TYPE_CHECKING:
    import numpy as np
    import torch

    NumPyArray = np.ndarray[Any, np.dtype[Any]]

# Libraries whose dtypes are NumPy's own.
LIKE_NUMPY = ("numpy", "cupy", "dask", "jax")


def dtype_of(ops: Ops, name: str, device: object = None) -> Any:
    """Return the library's dtype of this name; a ValueError where it has none, on this device or as it is set."""
    found = numpy_dtype(name) if ops.name in LIKE_NUMPY else getattr(ops.xp, name, None)
    absent = name in ("float64", "int64") and name not in _asked(ops, "dtypes", device, kind=None)
    if found is None or absent:
        advice = "Set jax_enable_x64 before, or choose" if ops.name == "jax" else "Choose"
        msg = f"{ops.name} has no {name} here. {advice} another dtype, e.g. float32."
        raise ValueError(msg)
    return found


def default_integer(ops: Ops, device: object = None) -> str:
    """Return the name of the library's default integer dtype: int64 where it has that."""
    return dtype_name(_asked(ops, "default_dtypes", device)["integral"])


def _asked(ops: Ops, question: str, device: object, **options: Any) -> Any:
    """Return what the library's namespace says of its dtypes on a device."""
    where = {} if ops.name in ("jax", "dask") else {"device": device}
    return getattr(ops.xp.__array_namespace_info__(), question)(**options, **where)


def device_of(array: Any) -> Any:
    """Return where an array lies, or None where its library places arrays itself."""
    ops = ops_of("device_of", "array", array)
    return None if ops.name in ("numpy", "jax", "dask") else array.device


def to_numpy(array: Any) -> NumPyArray:
    """Return the values of any library's array as one of NumPy's, which may share memory with it.

    bfloat16 stays bfloat16 where ml_dtypes is installed, and else becomes float32, which holds its every value. Dask
    computes, what lies on a GPU is fetched, what takes part in automatic differentiation is detached.
    """
    import numpy as np

    ops = ops_of("to_numpy", "array", array)
    if ops.name == "torch":
        return _from_torch(array)
    if ops.name == "dask":
        return to_numpy(array.compute())
    if ops.name == "cupy":
        array = array.get()
    if ops.name == "array_api_strict":
        # On its other devices a strict array refuses NumPy.
        array = array.to_device(ops.xp.Device("CPU_DEVICE"))
    try:
        values = np.asarray(array)
    except (TypeError, ValueError) as error:
        raise TypeError(_no_way(ops, str(error))) from error
    if values.dtype == object:  # NumPy knew nothing better than to keep the array as it is
        raise TypeError(_no_way(ops, "NumPy makes objects of them"))
    return values


def _no_way(ops: Ops, why: str) -> str:
    return f"anynorm: arrays of {ops.name} cannot become NumPy's: {why}. Convert them first."


def from_numpy(array: NumPyArray, ops: Ops, dtype: str, device: object = None) -> Any:
    """Return the values as a library's array of the dtype of this name, on `device` (None: the library's choice).

    The result shares no memory with `array`. A ValueError where the library has no such dtype, or where a value that is
    finite does not fit it.
    """
    import numpy as np

    wanted = dtype_of(ops, dtype, device)
    through = wanted if ops.name in LIKE_NUMPY else np.dtype("float32" if dtype == "bfloat16" else dtype)
    # A copy of NumPy's own, in C order and native bytes, may be given away: torch and JAX take it over as it is.
    with np.errstate(all="ignore"):
        own = np.array(array, dtype=through, order="C", copy=True)
        wrong = own != array if array.dtype.kind in "iu" else np.isinf(own) & np.isfinite(array)
    if wrong.any():
        msg = f"{array[wrong].flat[0]} does not fit {dtype}. Choose a dtype that holds it."
        raise ValueError(msg)
    if ops.name == "numpy":
        return own
    placed = ops.xp.asarray(own) if device is None else ops.xp.asarray(own, device=device)
    return ops.astype(placed, wanted)


def copied(array: Array, dtype: str) -> Any:
    """Return the values as a new array of the same library, on the same device, in the dtype of this name."""
    ops = ops_of("copied", "array", array)
    wanted = dtype_of(ops, dtype, device_of(array))
    return ops.xp.astype(ops.constant(array), wanted, copy=True)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of this name; an ImportError for bfloat16 without ml_dtypes, which brings it."""
    import numpy as np

    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        msg = "NumPy has no bfloat16 of its own. Install it: pip install ml_dtypes"
        raise ModuleNotFoundError(msg, name="ml_dtypes") from None
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def _from_torch(tensor: torch.Tensor) -> NumPyArray:
    tensor = tensor.detach().cpu().resolve_neg()
    if dtype_name(tensor.dtype) != "bfloat16":
        array: NumPyArray = tensor.numpy()
        return array
    # torch hands out no bfloat16.
    widened: NumPyArray = tensor.float().numpy()
    try:
        return widened.astype(numpy_dtype("bfloat16"))
    except ModuleNotFoundError:
        return widened
