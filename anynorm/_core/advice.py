"""What to do instead, in the words of errors: for what is no array, for dtypes, for torch's order of arguments.

Each piece of code in here is right when it is followed; tests follow it. Knows types by name and imports no library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NoReturn

from anynorm._core.arrays import class_name

# What torch.nn.functional's function of the same name takes after x.
_TORCH = {
    "layer_norm": ("normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("normalized_shape", "weight", "eps"),
    "group_norm": ("num_groups", "weight", "bias", "eps"),
    "instance_norm": ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    "batch_norm": ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}


def advice_on_binding(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], error: TypeError
) -> TypeError:
    """Return the error to raise where binding a function's arguments raised one.

    Where they do not fit its signature, it says so in terms of torch's order of arguments and names the call to make;
    else it is the error itself.
    """
    from inspect import signature  # here, because importing it takes long

    parameters = signature(function).parameters
    by_position = [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    by_keyword = [name for name, parameter in parameters.items() if parameter.kind is not parameter.POSITIONAL_ONLY]
    excess = args[len(by_position) :]
    unknown = {name: value for name, value in options.items() if name not in by_keyword}
    groups_missing = "num_groups" in parameters and len(args) == 1
    if function.__name__ not in _TORCH or not args or not (excess or unknown or groups_missing):
        return error
    if any(name in options and name in by_keyword for name in by_position[: len(args)]):
        return error  # given twice, which Python has said
    given = dict(zip(by_position, args, strict=False))
    given |= {name: value for name, value in options.items() if name in by_keyword}
    own = {name: given.get(name, parameter.default) for name, parameter in parameters.items() if name != "x"}
    if groups_missing:
        del own["num_groups"]
    *others, last = by_position
    can_be = f"{', '.join(others)} and {last}" if others else last
    return TypeError(f"{function.__name__}: " + _on_call(function.__name__, can_be, excess, unknown, own))


def _on_call(
    function: str, can_be: str, excess: tuple[Any, ...], unknown: dict[str, Any], own: dict[str, object]
) -> str:
    """Return the error about more arguments by position than a function takes, or keywords that it does not know.

    `excess` are those by position that are too many, `can_be` says which can be given so, `own` are the function's
    other arguments.
    """
    order = _TORCH[function]
    before = [name for name in ("num_groups", "weight", "bias") if name in own] if order[0] != "running_mean" else []
    given = (*[own.pop(name) for name in before], *excess) if excess else ()
    known = {name: value for name, value in own.items() if not _is_default(function, name, value)}
    named = dict(zip(order, given, strict=False))
    msg = ""
    if given:
        msg += f"only {can_be} can be given by position, got {len(given) + 1} arguments so. "
    if unknown:
        names = " and ".join(unknown)
        msg += f"It has no keyword {names}. " if len(unknown) == 1 else f"It has no keywords {names}. "
    elif not excess:
        return "num_groups is missing. Give it by position, e.g. anynorm.group_norm(x, 1)."
    twice = named.keys() & (unknown.keys() | known.keys()) or unknown.keys() & known.keys()
    all_of_it = named | unknown | known
    if twice or len(given) > len(order) or not _is_torchs(function, all_of_it, set(order) | own.keys()):
        others = "Give the others by keyword, e.g. eps=..." if excess else "Leave it out, or give what it has"
        return msg + f"{others}, as help(anynorm.{function}) shows them."
    if order[0] == "running_mean" and 0 < len(given) <= 2:
        msg += "Give weight=..., bias=... by keyword. "
    if function == "instance_norm" and all_of_it.get("running_mean") is not None and _flag(all_of_it, True):
        msg += "Each instance has its own statistics here; running_mean and running_var do not enter. "
    if function == "rms_norm" and all_of_it.get("eps") is None:
        msg += _EPS_OF_RMS
    order_given = ", ".join([*order[: len(given)], *[f"{name}=..." for name in unknown]])
    msg += f"In torch's {'order' if given else 'words'}, (x, {order_given}), the same call is "
    return msg + _instead(function, all_of_it)


_EPS_OF_RMS = "Where none is given torch's eps is the machine epsilon, anynorm's 1e-6. "

# What distinguishes an argument that was given: torch's own and arrays are None where they were not.
_DEFAULTS = {"axis": -1, "channel_axis": 1, "batch_axis": 0, "return_moments": False}


def _is_default(function: str, name: str, value: object) -> bool:
    default = (1e-6 if function == "rms_norm" else 1e-5) if name == "eps" else _DEFAULTS.get(name)
    return value is default or (name == "eps" and isinstance(value, float) and value == default)


def _is_torchs(function: str, given: dict[str, Any], known: set[str]) -> bool:
    """Say whether these arguments mean something in torch's words, mixed with our keywords."""
    if not given.keys() <= known:
        return False
    if function in ("layer_norm", "rms_norm"):
        return is_shape(given.get("normalized_shape")) and "axis" not in given
    if function == "group_norm":
        return "num_groups" in given
    if ("running_mean" in given) != ("running_var" in given):
        return False
    flag = given.get("use_input_stats" if function == "instance_norm" else "training", False)
    if type(flag).__name__ not in ("bool", "bool_", "int") or "mean" in given or "var" in given:
        return False
    by_running = not _flag(given, function == "instance_norm")
    if by_running and function == "instance_norm" and given.get("running_mean") is None:
        return False
    return not (by_running and given.get("running_mean") is not None and "return_moments" in given)


def _flag(given: dict[str, Any], default: bool) -> bool:
    return bool(given.get("use_input_stats", given.get("training", default)))


def _instead(function: str, given: dict[str, Any]) -> str:
    """Return the call that does what torch's does with these arguments."""
    running = given.get("running_mean") is not None
    by_running = running and not _flag(given, function == "instance_norm")
    measures = running and function == "batch_norm" and not by_running
    own = ["x", *(["num_groups"] if "num_groups" in given else [])]
    weight, bias = [given.get(name) is not None for name in ("weight", "bias")]
    by_position = function in ("layer_norm", "rms_norm", "group_norm")
    own += ["weight" if by_position else "weight=weight"] * weight
    own += ["bias" if by_position and weight else "bias=bias"] * bias
    if "normalized_shape" in given:
        own.append(f"axis={_axes(given['normalized_shape'])}")
    if by_running:
        own += ["mean=running_mean", "var=running_var"]
    kept = ["channel_axis"] if by_running else ["channel_axis", "batch_axis"]
    kept += ["eps", "out"] if measures else ["eps", "out", "return_moments"]
    own += [
        f"{name}={name}" for name in kept if given.get(name) is not None or (name == "batch_axis" and name in given)
    ]
    own += ["return_moments=True"] * measures
    call = f"anynorm.{'batch_norm' if by_running else function}({', '.join(own)})"
    if not measures:
        return f"{call}."
    momentum = ", momentum=momentum" if given.get("momentum") is not None else ""
    return (
        f"y, batch = {call}; "
        f"running_mean, running_var = anynorm.update_running(running_mean, running_var, batch{momentum})."
    )


def reject_shape(function: str, shape: object, bias: object, eps: object, out: object) -> NoReturn:
    """Raise the TypeError for integers in the place of weight; torch's weight may then have come as `bias`."""
    options = [
        f"{name}={name}" for name, value in (("eps", eps), ("out", out)) if not _is_default(function, name, value)
    ]
    ending = ", ".join([f"axis={_axes(shape)}", *options])
    calls = [f"the call is anynorm.{function}(x, {'weight, ' * (bias is not None)}{ending})."]
    if function == "layer_norm" and bias is not None:
        calls.append(f"With bias=bias after it, the call is anynorm.{function}(x, bias=bias, {ending}).")
    note = _EPS_OF_RMS if function == "rms_norm" and _is_default(function, "eps", eps) else ""
    msg = (
        f"{function}: weight must be an array of a library that follows the array API standard, got "
        f"{type(shape).__name__}. As a weight, convert it first, e.g. numpy.asarray(weight, dtype='float32'); axes and "
        f"eps go by keyword: axis=..., eps=.... {note}If it is torch's normalized_shape, {' '.join(calls)}"
    )
    raise TypeError(msg)


def is_shape(value: object) -> bool:
    lengths = value if isinstance(value, tuple | list) else [value]
    return bool(lengths) and all(isinstance(length, int) for length in lengths)


def _axes(shape: object) -> str:
    """Return the axes that torch's normalized_shape stands for, as they are written."""
    count = len(shape) if isinstance(shape, Sequence) else 1
    return "-1" if count == 1 else repr((*range(-count, 0),))


def for_no_array(function: str, argument: str, value: object) -> str:
    """Return what to do with what is no array that anynorm can take."""
    if argument == "out":
        return "Allocate it with xp.empty_like(x)."
    if argument in ("weight", "bias", "mean", "var") and isinstance(value, int | float | list | tuple):
        return _for_parameter(function, argument, value)
    names = {cls.__name__ for cls in type(value).__mro__}
    roots = {cls.__module__.partition(".")[0] for cls in type(value).__mro__}
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
    if hasattr(value, "todense"):  # BCOO of jax.experimental.sparse, whose module is that of all of JAX
        zeros = "If its missing elements are meant as zeros, as which they enter the statistics"
        return f"{zeros}, pass {argument}.todense()."
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


_IN_A_FILE = (
    "It lies in a file. Read the part that is needed first, e.g. {0}[...] for all of it; or dask.array.from_array({0}) "
    "reads it in chunks."
)
_LABELLED = "Pass its values, e.g. {0}.to_numpy().astype('float32'), in which missing ones are NaN."
_BY_MODULE = {
    "scipy": "If its missing elements are meant as zeros, as which they enter the statistics, pass {0}.toarray().",
    "cupyx": "If its missing elements are meant as zeros, as which they enter the statistics, pass {0}.toarray().",
    "pint": "Pass its numbers, {0}.magnitude: what is normalized has no unit.",
    "h5py": _IN_A_FILE,
    "zarr": _IN_A_FILE,
    "netCDF4": _IN_A_FILE + " After {0}.set_auto_mask(False) what is read has no mask.",
    "xarray": "Pass the array in it, {0}.data; {0}.copy(data=y) puts a result of the same shape beside its labels.",
    "pandas": _LABELLED,
    "polars": _LABELLED,
    "tensorflow": "Convert it first, e.g. {0}.numpy(), through which TensorFlow takes no gradient.",
}


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
    if hasattr(value, "m2") and hasattr(value, "_asdict"):
        return (
            f'Store its fields, {{"n": numpy.asarray({place}.n), "mean": {place}.mean, "m2": {place}.m2}}; of what is '
            "read anynorm.Moments(n, mean, m2) makes it again, without the digits in its rest."
        )
    if hasattr(value, "state_dict"):
        return f"Store what it holds, {place}.state_dict()."
    if hasattr(value, "nnz") or hasattr(value, "todense"):
        dense = "toarray" if hasattr(value, "toarray") else "todense"
        return f"Store it with its zeros, {place}.{dense}()."
    if hasattr(value, "to_numpy"):
        return f"Store its values, {place}.to_numpy()."
    if hasattr(value, "magnitude"):
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
