"""From an integer to a call: which function, arguments, library, dtype, layout and way. No array is made here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

from benchmarks.fuzz import wrong
from benchmarks.fuzz.case import DTYPES, OVER_AXES, Case, Layout, Operand, Shape
from benchmarks.fuzz.memory import FORWARD_ORDERS, ORDERS
from benchmarks.fuzz.values import OF_X

T = TypeVar("T")

# How often each is drawn. JAX compiles every new call, Dask schedules it.
LIBRARIES = {"numpy": 40, "numpy_alone": 12, "torch": 36, "array_api_strict": 6, "dask": 3, "jax": 2}

_ANY = {"call": 30, "again": 8, "moments": 5, "merge": 3, "layer": 4, "vjp": 20, "poison": 3, "threads": 1}
_WRITES = {"alone": 4, "out": 12, "in_place": 6, "overlap": 10, "vjp_out": 8}
WAYS: dict[str, Mapping[str, float]] = {
    "numpy": _ANY | _WRITES | {"files": 0.02},
    "numpy_alone": {way: often for way, often in (_ANY | _WRITES).items() if way != "alone"},
    "array_api_strict": _ANY | {"out": 12, "in_place": 6, "vjp_out": 8},
    "dask": {"call": 30, "vjp": 10, "unknown": 10, "moments": 5, "merge": 3, "layer": 2},
    "jax": {
        "call": 15,
        "vjp": 8,
        "moments": 3,
        "merge": 2,
        "layer": 2,
        "jit": 8,
        "grad": 8,
        "vmap": 4,
        "scan": 2,
        "jax_export": 5,
    },
    "torch": _ANY
    | _WRITES
    | {"backward": 12, "changed": 8, "module": 4, "vmap": 3, "func_vjp": 3, "jvp": 2, "twice": 1}
    | {"compile": 0.12, "make_fx": 0.4, "torch_export": 0.15, "trace": 0.4, "fake": 1},
}

# Ways that need small arrays of easy numbers: what is tried is the way.
SMALL = ("twice", "jvp", "compile", "make_fx", "torch_export", "trace", "fake", "scan", "jax_export", "vmap", "files")
EASY = ("normal", "offset", "pixels", "constant_rows", "zeros")
# Ways in which a wrong call must be refused as everywhere else.
REFUSING = ("call", "vjp", "out", "vjp_out", "moments", "jit", "backward")
GRADIENTS = ("vjp", "vjp_out", "backward", "changed", "func_vjp", "grad", "twice")

_LENGTHS = {1: 8, 2: 10, 3: 10, 4: 6, 5: 6, 7: 10, 8: 8, 11: 4, 13: 4, 16: 6, 17: 4, 32: 5, 33: 3, 64: 4, 65: 3, 127: 2}
_LONG = (128, 257, 480, 1000, 1024, 4099, 16384)


def chosen(random: Random, weights: Mapping[T, float]) -> T:
    """Return one of the keys, each as often as its weight says."""
    return random.choices(list(weights), list(weights.values()))[0]


def draw(seed: int) -> Case:
    """Return the call of an integer, always the same."""
    random = Random(seed)
    library = chosen(random, LIBRARIES)
    way = chosen(random, WAYS[library])
    function = (
        "moments"
        if way in ("moments", "merge")
        else random.choice(("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm"))
    )
    strict = library == "array_api_strict"
    dtype = chosen(
        random, dict(zip(DTYPES, (0 if strict else 20, 0 if strict or library == "dask" else 12, 45, 23), strict=True))
    )
    shape = _shape(random, library, way)
    groups, options, along = (
        _over_axes(random, shape) if function in OVER_AXES else _by_channel(random, function, shape)
    )
    if function != "moments" and random.random() < 0.8:
        options["eps"] = _eps(random, dtype)
    easy = way in SMALL or math.prod(shape) > 1_000_000
    values = chosen(random, {name: often for name, often in OF_X.items() if not easy or name in EASY})
    if (way in GRADIENTS or way in ("poison", "layer", "module")) and values == "poisoned":
        values = "normal"
    operands = {"x": Operand(shape, dtype, values, _layout(random, library, way, "x"))}
    if function != "moments":
        operands |= _parameters(random, function, shape, along, operands["x"], library, way)
    fast = random.random() < 0.85
    case = Case(seed, function, groups, options, operands, library, fast, way)
    if way in REFUSING and random.random() < 0.12:
        case = wrong.spoiled(case, random)
    return case


def _shape(random: Random, library: str, way: str) -> Shape:
    slow = library in ("jax", "dask") or way in SMALL
    limit = 600 if way in SMALL else 2000
    luck = random.random()
    if not slow and luck < 0.004:
        limit = 1_000_000
    elif not slow and luck < 0.05:
        limit = 60_000
    if not slow and way in ("call", "out", "in_place", "vjp_out", "backward") and random.random() < 0.0006:
        return (*random.choice(((9, 128), (32, 64))), 911, 5)  # beyond 32 MiB
    lengths = [chosen(random, _LENGTHS) for _ in range(random.choice((1, 2, 2, 3, 3, 4, 4, 4, 5)))]
    if len(lengths) == 4 and random.random() < 0.3:
        lengths[2:] = [7, 7]
    if limit > 2000 or random.random() < 0.06:
        lengths[random.randrange(len(lengths))] = random.choice(_LONG)
    while math.prod(lengths) > limit:
        longest = lengths.index(max(lengths))
        lengths[longest] = max(1, lengths[longest] // 2)
    if way not in SMALL and random.random() < 0.02:
        lengths[random.randrange(len(lengths))] = 0
    return tuple(lengths)


def _eps(random: Random, dtype: str) -> float:
    smallest = 2.0**-1022 if dtype == "float64" else 2.0**-126
    return random.choice((0.0, 0.0, 1e-12, 1e-6, 1e-5, 1e-5, 1e-3, 1.0, smallest, 1e-30, 2.0**-79))


def _from_either_end(random: Random, axis: int, ndim: int) -> int:
    return axis - ndim if random.random() < 0.4 else axis


def _over_axes(random: Random, shape: Shape) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]:
    """Draw the arguments of layer norm, RMS norm and moments, and the axes along which a parameter lies."""
    ndim = len(shape)
    many = random.randint(1, ndim)
    along = list(range(ndim - many, ndim)) if random.random() < 0.5 else sorted(random.sample(range(ndim), many))
    axes = [_from_either_end(random, axis, ndim) for axis in along]
    random.shuffle(axes)
    axis: Any = tuple(axes)
    if len(axes) == 1 and random.random() < 0.7:
        axis = axes[0]
    if len(axes) == ndim and random.random() < 0.5:
        axis = None
    return (), {"axis": axis}, tuple(along)


def _by_channel(random: Random, function: str, shape: Shape) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]:
    """Draw the arguments of group, instance and batch norm, and the axis along which a parameter lies."""
    ndim = len(shape)
    usual = 1 if ndim > 1 else 0
    channel = random.choice((usual, usual, ndim - 1, random.randrange(ndim)))
    options: dict[str, Any] = {"channel_axis": _from_either_end(random, channel, ndim)}
    if function != "batch_norm":
        others = [axis for axis in range(ndim) if axis != channel]
        batch = others[:1] if random.random() < 0.6 else random.sample(others, random.randint(0, len(others)))
        axes = tuple([_from_either_end(random, axis, ndim) for axis in batch])
        options["batch_axis"] = axes[0] if len(axes) == 1 and random.random() < 0.7 else (axes or None)
    groups = [value for value in range(1, shape[channel] + 1) if shape[channel] % value == 0] or [1, 2]
    return (random.choice(groups),) if function == "group_norm" else (), options, (channel,)


def _parameters(
    random: Random, function: str, shape: Shape, along: Sequence[int], x: Operand, library: str, way: str
) -> dict[str, Operand]:
    """Draw weight, bias and given statistics."""
    drawn: dict[str, Operand] = {}
    laid = tuple([shape[axis] for axis in along])
    strict = library == "array_api_strict"
    dtypes = [dtype for dtype in DTYPES if not strict or dtype in ("float32", "float64")]
    if library == "dask":
        dtypes.remove("bfloat16")

    def operand(name: str, tensor: Shape, values: str) -> None:
        own = x.dtype if random.random() < 0.75 else random.choice(dtypes)
        if values in ("large", "small") and own == "float16":
            values = "ordinary"
        drawn[name] = Operand(tensor, own, values, _layout(random, library, way, name))

    for name in ("weight", "bias"):
        if random.random() < 0.35:
            continue
        tensor = laid if random.random() < 0.75 else tuple([random.choice((1, length)) for length in shape])
        gradient = way in GRADIENTS or way in SMALL
        values = "ordinary" if gradient else chosen(random, {"ordinary": 20, "zeros": 1, "large": 1, "small": 1})
        operand(name, tensor, values)
    alone = math.prod(shape) == shape[along[0]]
    if (
        function == "batch_norm"
        and way not in ("layer", "module", "poison")
        and (random.random() < 0.3 or (alone and random.random() < 0.9))
    ):
        whole = tuple([length if axis in along else 1 for axis, length in enumerate(shape)])
        # Of NaN·0 nothing is said.
        kinds = ("variance",) if x.values == "poisoned" else ("variance", "variance", "variance", "variance_0")
        for name in ("mean", "var"):
            values = "mean" if name == "mean" else random.choice(kinds)
            operand(name, laid if random.random() < 0.8 else whole, values)
    return drawn


def _layout(random: Random, library: str, way: str, name: str) -> Layout:
    """Draw how an array lies, where its library has a say in that."""
    if library in ("jax", "dask", "array_api_strict"):
        return Layout()
    torch = library == "torch"
    order = "C"
    if random.random() < (0.65 if name == "x" else 0.3):
        order = random.choice(FORWARD_ORDERS if torch else ORDERS)
    if way == "in_place" and name == "x" and order in ("repeated", "windows"):
        order = "stepped"
    shift = random.choice((1, 2, 3, 7)) if random.random() < 0.05 else 0
    odd = ""
    if random.random() < 0.1:
        odd = "subclass" if torch else random.choice(("big_endian", "memmap", "read_only", "subclass"))
    if way == "in_place" and name == "x" and odd == "read_only":
        odd = ""
    return Layout(order, shift, odd)


def with_values(case: Case, **values: str) -> Case:
    """Return the same call on other kinds of numbers."""
    operands = {
        name: replace(operand, values=values.get(name, operand.values)) for name, operand in case.operands.items()
    }
    return replace(case, operands=operands)
