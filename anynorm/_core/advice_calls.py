"""What to do instead of a call in another library's words: its order of arguments, its keywords, its flags.

Each call in here is right when it is made; tests make it. Knows words, no array and no library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

# What torch.nn.functional's function of the same name takes after x.
_TORCH = {
    "layer_norm": ("normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("normalized_shape", "weight", "eps"),
    "group_norm": ("num_groups", "weight", "bias", "eps"),
    "instance_norm": ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    "batch_norm": ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}

# Our word for other libraries' keywords; where we have no axis, but channel_axis, it is that.
_OWN_WORD = {
    **dict.fromkeys(["input", "inputs"], "x"),
    **dict.fromkeys(["gamma", "scale", "use_scale"], "weight"),
    **dict.fromkeys(["beta", "offset", "center", "use_bias"], "bias"),
    **dict.fromkeys(["epsilon", "variance_epsilon"], "eps"),
    **dict.fromkeys(["axis", "axes", "channel_axis", "dim", "dims", "reduction_axes"], "axis"),
    **dict.fromkeys(["groups", "group_count"], "num_groups"),
    **dict.fromkeys(["running_mean", "moving_mean"], "mean"),
    **dict.fromkeys(["running_var", "moving_var", "moving_variance", "variance"], "var"),
    **dict.fromkeys(["keepdim", "keep_dims"], "keepdims"),
    **dict.fromkeys(["normalized_shape"], "shape"),
}
_BOTH = ("affine", "elementwise_affine")  # torch's layers have weight and bias both or neither
_MEANING = {"axis": ", the axes that are reduced", "channel_axis": ", the one axis of the channels"}

# Flags that say whether the batch is measured, by which of their values does.
_FLAGS = {
    **dict.fromkeys(["training", "train", "is_training", "use_input_stats"], True),
    **dict.fromkeys(["use_running_average", "use_global_stats"], False),
}


class _Words(NamedTuple):
    """The names of a function's arguments."""

    required: list[str]  # by position alone
    by_position: list[str]
    by_keyword: list[str]


def advice_on_binding(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], error: TypeError
) -> TypeError:
    """Return the error to raise where binding the arguments of a function, or layer, of this name raised one.

    Where they do not fit its signature, it names our words for another library's, or the call that does what torch's
    does; else it is the error itself.
    """
    from inspect import signature  # here, because importing it takes long

    parameters = signature(function).parameters.values()
    words = _Words(
        [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY],
        [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY],
        [parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY],
    )
    order = _TORCH.get(name, ())
    in_torchs_order = len(args) > 1 and "normalized_shape" in order and is_shape(args[1])
    twice = any(word in options for word in words.by_position[len(words.required) : len(args)])
    if twice and not in_torchs_order:
        return error  # Python has said so
    fits = len(words.required) <= len(args) <= len(words.by_position)
    if fits and not twice and options.keys() <= set(words.by_keyword):
        return error
    taken = words.by_position[: 1 if in_torchs_order else len(args)]
    said, args, options = _in_own_words(words, args, options, taken, but=order)
    msg = said + _on_call(name, words, args, options, taken)
    return TypeError(f"{name}: {msg.rstrip()}") if args or not words.required else error


def _in_own_words(
    words: _Words, args: tuple[Any, ...], options: dict[str, Any], taken: list[str], but: Sequence[str] = ()
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return which keywords are other libraries' names for ours, and the arguments by our names.

    `taken` are our names that are given by position, `but` names that are left as they are.
    """
    said, options = "", dict(options)
    for name in [name for name in options if name not in (*words.by_keyword, *but)]:
        word = _OWN_WORD.get(name)
        word = "channel_axis" if word == "axis" and "axis" not in words.by_keyword else word
        value, of_layer = options[name], "xp" in words.by_keyword
        if of_layer and name in _BOTH:
            said += f"{name}={value} is weight={value}, bias={value} here. "
            del options[name]
        flag = word in ("weight", "bias") and isinstance(value, bool)  # whether a layer is to have one
        if word is None or word not in (*words.required, *words.by_keyword) or (flag and not of_layer):
            continue
        meaning = _MEANING.get(word, "")
        del options[name]
        if word in options or word in taken:
            meaning += ", and given as well: leave out one"
        elif word not in words.required:
            options[word] = value
        else:
            meaning += ", which goes by position"
            args = (*args, value) if words.required[len(args)] == word else args
        said += f"{name} is {word} here{meaning}. "
    return said, args, options


def _on_call(function: str, words: _Words, args: tuple[Any, ...], options: dict[str, Any], taken: list[str]) -> str:
    """Return what to do about arguments by position that are too many, or keywords that a function does not know."""
    excess = len(args) > len(words.by_position)
    twice = [word for word in words.by_position[len(words.required) : len(args)] if word in options]
    unknown = {name: value for name, value in options.items() if name not in words.by_keyword}
    msg = ""
    if excess:
        *others, last = words.by_position
        can_be = f"{', '.join(others)} and {last}" if others else last
        msg += f"only {can_be} can be given by position, got {len(args)} arguments so. "
    elif twice:
        msg += f"{twice[0]} is given by keyword, and by position unless that is torch's order. "
    if unknown:
        msg += f"unknown keyword{'s' * (len(unknown) > 1)} {' and '.join(unknown)}. "
    elif len(args) < len(words.required):
        return f"{words.required[len(args)]} is missing. Give it by position, e.g. anynorm.group_norm(x, 1)."
    elif not (excess or twice):
        return ""
    in_torchs = _in_torchs_words(function, words, args, options, excess or bool(twice))
    if in_torchs is not None:
        return msg + in_torchs
    if excess:
        example = next(name for name in words.by_keyword if name not in words.by_position)
        msg += f"Give the others by keyword, e.g. {example}=..., as help(anynorm.{function}) shows them. "
    said, _, options = _in_own_words(words, args, options, taken)
    left = [name for name in options if name not in words.by_keyword]
    flags = [name for name in left if name in _FLAGS and function.endswith(("batch_norm", "instance_norm", "Norm"))]
    for name in flags:
        said += _on_flag(function, name, options[name], given=options.get("mean") is not None)
    if left and left != flags:
        needless = " and ".join([name for name in left if name not in flags])
        said += f"Leave out {needless}, or give what there is: {', '.join(words.by_keyword)}. "
    return msg + said


def _on_flag(function: str, name: str, value: object, *, given: bool) -> str:
    """Return what to do about a flag that says whether the batch is measured; `given` says whether mean and var are."""
    if function.endswith("Norm"):
        return f"A new layer trains, and eval() lets it evaluate: leave out {name}. "
    if function == "instance_norm":
        by_statistics = "anynorm.batch_norm(x, mean=..., var=...) to normalize by statistics"
        return f"It always measures x: leave out {name}, or call {by_statistics}. "
    measures = bool(value) == _FLAGS[name] if _is_flag(value) else given
    also = ""
    if measures and given:
        also = ", mean and var, for it to measure x"
    elif not (measures or given):
        also = ", and give mean= and var=, the running statistics"
    return f"x is normalized by mean and var where they are given, else by its own: leave out {name}{also}. "


def _in_torchs_words(
    function: str, words: _Words, args: tuple[Any, ...], options: dict[str, Any], by_order: bool
) -> str | None:
    """Return the call that does what torch's does with these arguments, or None where they are none of torch's.

    `by_order` says that those by position are in torch's order.
    """
    order, given = _TORCH.get(function, ()), args[1:] if by_order else ()
    if not order or len(given) > len(order):
        return None
    named = dict(zip(order, given, strict=False))
    unknown = {name: value for name, value in options.items() if name not in words.by_keyword}
    own = {name: value for name, value in options.items() if name in words.by_keyword}
    own |= {} if by_order else dict(zip(words.by_position[1:], args[1:], strict=False))
    known = {name: value for name, value in own.items() if not _is_default(function, name, value)}
    overlap = named.keys() & (unknown.keys() | known.keys()) or unknown.keys() & known.keys()
    every = named | unknown | known
    if overlap or not _is_torchs(function, every, {*order, *words.by_keyword}):
        return None
    msg = ""
    if order[0] == "running_mean" and 0 < len(given) <= 2:
        msg += "Give weight=..., bias=... by keyword. "
    if function == "instance_norm" and every.get("running_mean") is not None and _flag(every, True):
        msg += "Each instance has its own statistics here; running_mean and running_var do not enter. "
    if function == "rms_norm" and every.get("eps") is None:
        msg += _EPS_OF_RMS
    order_given = ", ".join([*order[: len(given)], *[f"{name}=..." for name in unknown]])
    msg += f"In torch's {'order' if given else 'words'}, (x, {order_given}), the same call is "
    return msg + _instead(function, every)


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
    if not _is_flag(flag) or "mean" in given or "var" in given:
        return False
    by_running = not _flag(given, function == "instance_norm")
    return not (by_running and (given.get("running_mean") is None or "return_moments" in given))


def _is_flag(value: object) -> bool:
    return type(value).__name__ in ("bool", "bool_", "int")


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
