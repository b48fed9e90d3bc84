"""What to do instead, in the words of errors: for what is no array, for dtypes, for torch's order of arguments.

Each piece of code in here is right when it is followed; tests follow it. Knows types by name and imports no library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper
from numbers import Real
from typing import Any, NoReturn, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

# What torch.nn.functional's function of the same name takes after x.
_TORCH = {
    "layer_norm": ("normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("normalized_shape", "weight", "eps"),
    "group_norm": ("num_groups", "weight", "bias", "eps"),
    "instance_norm": ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    "batch_norm": ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}
_OWN = {
    "layer_norm": "x, weight and bias",
    "rms_norm": "x, weight and bias",
    "group_norm": "x, num_groups, weight and bias",
    "instance_norm": "x",
    "batch_norm": "x",
}


def runs_as(body: Callable[..., Any]) -> Callable[[F], F]:
    """Let a function run as `body`, which takes what it takes and surplus arguments as well, to say what is wrong.

    In the function's own signature they would be part of its type, and of what inspect and help show. A call of one by
    the other would take as long as the checks of a small array.
    """

    def with_body(function: F) -> F:
        return cast("F", update_wrapper(body, function))

    return with_body


def reject_positional(function: str, *given: Any) -> NoReturn:
    """Raise the TypeError for more arguments by position than a function takes; `given` are those after x."""
    msg = f"{function}: only {_OWN[function]} can be given by position, got {len(given) + 1} arguments so. "
    order = _TORCH[function]
    if len(given) > len(order) or (order[0] == "normalized_shape" and not _is_shape(given[0])):
        msg += f"Give the others by keyword, e.g. eps=..., as help(anynorm.{function}) shows them."
        raise TypeError(msg)
    if order[0] == "running_mean" and len(given) <= 2:
        msg += "Give weight=..., bias=... by keyword. "
    code = _instead(function, dict(zip(order, given, strict=False)))
    msg += f"In torch's order, (x, {', '.join(order[: len(given)])}), the same call is {code}"
    raise TypeError(msg)


def _instead(function: str, given: dict[str, Any]) -> str:
    """Return the call that does what torch's does with these arguments."""
    own = ["x", *(["num_groups"] if "num_groups" in given else [])]
    weight, bias = [given.get(name) is not None for name in ("weight", "bias")]
    by_position = "running_mean" not in given
    own += ["weight" if by_position else "weight=weight"] * weight
    own += ["bias" if by_position and weight else "bias=bias"] * bias
    if "normalized_shape" in given:
        own.append(f"axis={_axes(given['normalized_shape'])}")
    own += ["eps=eps"] * ("eps" in given)
    call = f"anynorm.{function}({', '.join(own)}"
    if given.get("running_mean") is None:
        return f"{call})."
    if function == "instance_norm":
        return f"{call}), with each instance's own statistics; given ones are batch_norm's mean= and var=."
    if not given.get("training"):
        return f"{call}, mean=running_mean, var=running_var)."
    momentum = ", momentum=momentum" if "momentum" in given else ""
    return (
        f"y, batch = {call}, return_moments=True); "
        f"running_mean, running_var = anynorm.update_running(running_mean, running_var, batch{momentum})."
    )


def _is_shape(value: object) -> bool:
    lengths = value if isinstance(value, tuple | list) else [value]
    return bool(lengths) and all(isinstance(length, int) for length in lengths)


def _axes(shape: Any) -> str:
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


def _for_parameter(function: str, argument: str, value: Any) -> str:
    """Return what to do with a number, a list or a tuple in the place of weight or bias."""
    along = "-1:" if function in ("layer_norm", "rms_norm") else "1:2"
    if isinstance(value, int | float):
        convert = f"Pass one number for each place, e.g. numpy.full(x.shape[{along}], {value!r}, dtype='float32')."
    elif argument == "weight" and along == "-1:" and _is_shape(value):
        # In torch the second argument is the shape of what is normalized.
        return f"If it is torch's normalized_shape, the call is anynorm.{function}(x, axis={_axes(value)})."
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


def _cast(argument: str, dtype: str, library: str) -> str:
    if library == "torch":
        return f"{argument}.to(torch.{dtype})"
    if library in ("numpy", "cupy", "jax", "dask"):
        return f"{argument}.astype('{dtype}')"
    return f"xp.astype({argument}, xp.{dtype})"


def _part(argument: str, part: str, library: str) -> str:
    return f"{argument}.{part}" if library in ("numpy", "cupy", "jax", "dask", "torch") else f"xp.{part}({argument})"
