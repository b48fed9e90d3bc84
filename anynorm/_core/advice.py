"""What to do instead, in the words of errors: for what is no array, and for dtypes.

Each piece of code in here is right when it is followed; tests follow it. Knows types by name and imports no library.
"""

from __future__ import annotations

from numbers import Real
from typing import NoReturn

from anynorm._core.arrays import class_name


def for_no_array(function: str, argument: str, value: object) -> str:
    """Return what to do with what is no array that anynorm can take."""
    if argument == "out":
        return "Allocate it with xp.empty_like(x)."
    in_norm = function.endswith("_norm") and argument in ("weight", "bias", "mean", "var")
    if in_norm and isinstance(value, int | float | list | tuple):
        return _for_parameter(function, argument, value)
    names = {cls.__name__ for cls in type(value).__mro__}
    roots = {cls.__module__.partition(".")[0] for cls in type(value).__mro__}
    if "MaskedArray" in names and argument != "x":
        number = 1 if argument in ("weight", "var", "running_var") else 0
        return (
            f"Its mask would be ignored. Pass {argument}.filled({number}), or {argument}.data where nothing is masked."
        )
    if "MaskedArray" in names:
        return (
            "Its mask would be ignored, and a number filled in would change the statistics of all others. Pass what is "
            f"not masked: {argument}.compressed() as one set, or {argument}.data where nothing is masked."
        )
    if "matrix" in names and "numpy" in roots:
        return f"Convert it first, e.g. numpy.asarray({argument})."
    for root, advice in _BY_MODULE.items():
        if root in roots:
            return advice.format(argument)
    if _offers(value, "todense"):  # BCOO of jax.experimental.sparse, whose module is that of all of JAX
        return f"{_ZEROS}, pass {argument}.todense()."
    if value is None or isinstance(value, str | bytes | dict | set) or callable(value):
        return "Pass an array, such as one of NumPy, torch or JAX."
    if isinstance(value, list | tuple) and value and hasattr(value[0], "shape"):
        return f"Arrays of one shape stack first, e.g. numpy.stack({argument}) or torch.stack({argument})."
    if argument == "x" and isinstance(value, Real):
        return f"A number is no set. Pass an array, e.g. numpy.asarray([{argument}], dtype='float32')."
    return (
        f"Convert it first, e.g. numpy.asarray({argument}, dtype='float32') or "
        f"torch.as_tensor({argument}, dtype=torch.float32)."
    )


_ZEROS = "If its missing elements are meant as zeros, which count like the others"
_IN_A_FILE = (
    "It lies in a file. Read the part that is needed first, e.g. {0}[...] for all of it; or dask.array.from_array({0}) "
    "reads it in chunks."
)
_LABELLED = "Pass its values, e.g. {0}.to_numpy().astype('float32'), in which missing ones are NaN."
_BY_MODULE = {
    "scipy": _ZEROS + ", pass {0}.toarray().",
    "cupyx": _ZEROS + ", pass {0}.toarray().",
    "dask": "Compute it, {0}.compute(); of a Delayed, dask.array.from_delayed({0}, shape, dtype) is an array, too.",
    "pint": "Pass its numbers, {0}.magnitude: what is normalized has no unit.",
    "h5py": _IN_A_FILE,
    "zarr": _IN_A_FILE,
    "netCDF4": _IN_A_FILE + " After {0}.set_auto_mask(False) what is read has no mask.",
    "xarray": "Pass the array in it, {0}.data; {0}.copy(data=y) puts a result of the same shape beside its labels.",
    "pandas": _LABELLED,
    "polars": _LABELLED,
    "tensorflow": "Convert it first, e.g. {0}.numpy(), through which TensorFlow takes no gradient.",
}


def _offers(value: object, name: str) -> bool:
    """Say whether values of this type have an attribute; some objects, such as a Delayed of Dask, answer to any."""
    return hasattr(type(value), name)


def _for_parameter(function: str, argument: str, value: object) -> str:
    """Return what to do with a number, a list or a tuple in the place of weight or bias."""
    along = "-1:" if function in ("layer_norm", "rms_norm") else "1:2"
    if isinstance(value, int | float):
        convert = f"Pass one number for each place, e.g. numpy.full(x.shape[{along}], {value!r}, dtype='float32')."
    else:
        convert = f"Convert it first, e.g. numpy.asarray({argument}, dtype='float32')."
    if argument in ("mean", "var"):
        return convert
    others = "Axes and eps go by keyword: axis=..., eps=..." if along == "-1:" else "eps goes by keyword: eps=..."
    return f"{convert} {others}"


def for_number(value: object, otherwise: str) -> str:
    """Return what to do with what is no Python number, or flag, where one is needed; JAX traces arguments unasked."""
    if "Tracer" not in {cls.__name__ for cls in type(value).__mro__}:
        return otherwise
    return (
        "JAX traces it. Make it static, by jax.jit's static_argnames or, where it is given by position, "
        "static_argnums; or let a closure bring it, e.g. jax.jit(lambda x: ...)."
    )


def for_dtype(argument: str, name: str, library: str) -> str:
    """Return what to do with an array of a dtype that is not accepted, by the names of dtype and library."""
    if name.startswith("complex"):
        return (
            f"A cast would drop its imaginary part: pass {_part(argument, 'real', library)} and "
            f"{_part(argument, 'imag', library)} apart, if each is to be normalized."
        )
    if name in ("longdouble", "float96", "float128"):
        return f"Cast it first, e.g. {_cast(argument, 'float64', library)}, which rounds it to 53 bits."
    if name in ("int32", "uint32", "int64", "uint64"):
        exact = "which holds integers up to 2**24 exactly"
        return f"Cast it first, e.g. {_cast(argument, 'float32', library)}, {exact}."
    if name in ("bool", "int8", "uint8", "int16", "uint16") or "float" in name:
        return f"Cast it first, e.g. {_cast(argument, 'float32', library)}."
    return f"If its elements are numbers, cast it first, e.g. {_cast(argument, 'float64', library)}."


def for_no_entry(place: str, value: object) -> str:
    """Return how to store what is no array; `place` is the code that reaches it in a state."""
    names = {cls.__name__ for cls in type(value).__mro__}
    if "MaskedArray" in names:
        return f"A file has no masks: store {place}.data and numpy.ma.getmaskarray({place}) under two names."
    if _offers(value, "m2") and _offers(value, "_asdict"):
        return (
            f'Store its fields, {{"n": numpy.asarray({place}.n), "mean": {place}.mean, "m2": {place}.m2}}; of what is '
            "read anynorm.Moments(n, mean, m2) makes it again, without the digits in its rest."
        )
    if _offers(value, "state_dict"):
        return f"Store what it holds, {place}.state_dict()."
    if _offers(value, "nnz") or _offers(value, "todense"):
        dense = "toarray" if _offers(value, "toarray") else "todense"
        return f"Store it with its zeros, {place}.{dense}()."
    if _offers(value, "to_numpy"):
        return f"Store its values, {place}.to_numpy()."
    if _offers(value, "magnitude"):
        return f"Store its numbers, {place}.magnitude."
    if "matrix" in names or isinstance(value, Real):
        return f"Convert it first, numpy.asarray({place})."
    if isinstance(value, tuple | list) and value:
        return f"Convert it first, numpy.asarray({place}), or give each part a name, dict(zip(names, {place}))."
    return "The format holds arrays of numbers and nothing else: keep it elsewhere, e.g. in a JSON file."


def for_entry_dtype(place: str, own: str, library: str) -> str:
    """Return how to store an array of a dtype that no file has; `place` is the code that reaches it in a state."""
    if own.startswith(("str", "bytes")):
        return "The format holds numbers and nothing else: keep strings elsewhere, e.g. in a JSON file."
    if own.startswith(("datetime", "timedelta")):
        return f"Store the count, {place}.astype('int64'), whose unit is {own.partition('64')[2] or 'none'}."
    if own.startswith("void"):
        return f"Store its fields one by one, {{field: {place}[field] for field in {place}.dtype.names}}."
    if "key<" in own:
        return f"Store its numbers, jax.random.key_data({place})."
    if own.startswith("q"):
        return f"Store its numbers, {place}.dequantize(), or {place}.int_repr() beside scale and zero point."
    if own == "object":
        return f"If its elements are numbers, cast it first, {_cast(place, 'float64', library)}, which makes None NaN."
    # No cast that drops an imaginary part.
    return f"Cast it first, e.g. {_cast(place, 'complex64' if own.startswith('complex') else 'float64', library)}."


def _cast(argument: str, dtype: str, library: str) -> str:
    if library == "torch":
        return f"{argument}.to(torch.{dtype})"
    if library in ("numpy", "cupy", "jax", "dask"):
        return f"{argument}.astype('{dtype}')"
    return f"xp.astype({argument}, xp.{dtype})"


def _part(argument: str, part: str, library: str) -> str:
    return f"{argument}.{part}" if library in ("numpy", "cupy", "jax", "dask", "torch") else f"xp.{part}({argument})"


def reject_array(function: str, argument: str, value: object) -> NoReturn:
    """Raise the TypeError for something that is not an array anynorm can take."""
    own = class_name(value).removeprefix("builtins.")
    msg = f"{function}: {argument} must be an array of a library that follows the array API standard, got {own}. "
    raise TypeError(msg + for_no_array(function, argument, value))
