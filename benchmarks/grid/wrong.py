"""Calls that are refused, on several libraries. Their lines hold the type and the message of the error."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import anynorm as an
from benchmarks.grid.case import Case

Make = Callable[[Any], Any]


def _makers() -> dict[str, Make]:
    torch, strict = importlib.import_module("torch"), importlib.import_module("array_api_strict")
    jax, dask = importlib.import_module("jax"), importlib.import_module("dask.array")
    return {
        "numpy": lambda array: array,
        "torch": torch.from_numpy,
        "strict": strict.asarray,
        "jax": jax.device_put,
        "dask": lambda array: dask.from_array(array, chunks=3),
    }


def _zeros(*shape: int, dtype: str = "float32") -> Any:
    return np.zeros(shape, dtype)


def _of(make: Make, value: Any) -> Any:
    return make(value) if isinstance(value, np.ndarray) else value


def _wrong_everywhere() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Yield functions, positional and keyword arguments; x has six channels."""
    x, six, five = _zeros(4, 6, 5), _zeros(6), _zeros(5)
    for function in ("layer_norm", "batch_norm", "moments", "group_norm"):
        more = (2,) if function == "group_norm" else ()
        for wrong in (_zeros(4, 6, 5, dtype="int32"), _zeros(4, 6, 5, dtype="bool"), _zeros(4, 6, dtype="complex64")):
            yield function, (wrong, *more), {}
        for none in ([[1.0]], 1.0, None, "x", _zeros()):
            yield function, (none, *more), {}
    for value in (_zeros(5, dtype="int32"), [1.0] * 5, 1.0, "ones", _zeros(7), _zeros(), _zeros(4, 6, 7), _zeros(1, 5)):
        yield "layer_norm", (x, value), {}
        yield "layer_norm", (x,), {"bias": value}
        yield "instance_norm", (x,), {"weight": value}
    for axis in (3, -4, (0, 7), (1, -2), (), 1.0, True, "1", [1]):
        yield "layer_norm", (x,), {"axis": axis}
        yield "rms_norm", (x,), {"axis": axis}
        yield "moments", (x,), {"axis": axis}
    for eps in (math.nan, -1e-5, math.inf, 1e-50, 10**400, "1e-5", None, True, [1e-5]):
        yield "layer_norm", (x,), {"eps": eps}
        yield "batch_norm", (x,), {"eps": eps}
    for channel in (3, -4, 1.0, True, None, (1,)):
        yield "batch_norm", (x,), {"channel_axis": channel}
        yield "group_norm", (x, 2), {"channel_axis": channel}
    for options in ({"batch_axis": 3}, {"batch_axis": (0, -3)}, {"batch_axis": 1}, {"batch_axis": 0.0}):
        yield "instance_norm", (x,), options
    for groups in (0, -1, 4, 12, 2.0, True, None, "2"):
        yield "group_norm", (x, groups), {}
    yield from _of_statistics(x, six, five)
    yield "layer_norm", (), {}
    yield "layer_norm", (x, five, five, five), {}
    yield "layer_norm", (x,), {"axes": 1}
    yield "layer_norm", (x,), {"normalized_shape": (5,)}
    yield "group_norm", (x,), {}
    yield "batch_norm", (x, six, six), {}
    yield "instance_norm", (x, six), {}
    yield "layer_norm", (x,), {"weight": _zeros(6), "axis": -1}
    yield "layer_norm", (_zeros(4, 6, 1), _zeros(4, 6, 5)), {}


def _of_statistics(x: Any, six: Any, five: Any) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    one = an.Moments(8, six, six)
    for options in ({"mean": six}, {"var": six}, {"mean": five, "var": six}, {"mean": six, "var": 1.0}):
        yield "batch_norm", (x,), options
    yield "batch_norm", (x,), {"mean": six, "var": six, "return_moments": True}
    yield "batch_norm", (_zeros(1, 6),), {}
    yield "update_running", (six, six, (8, six, six)), {}
    yield "update_running", (five, six, one), {}
    yield "update_running", (six, [0.0] * 6, one), {}
    for options in (
        {"momentum": -0.1},
        {"momentum": "0.1"},
        {"momentum": None},
        {"correction": -1},
        {"correction": 1.0},
    ):
        yield "update_running", (six, six, one), options


def _made(make: Make, function: str, args: tuple[Any, ...], options: dict[str, Any], explaining: bool) -> Any:
    def of(value: Any) -> Any:
        if isinstance(value, an.Moments):
            return an.Moments(*[_of(make, part) for part in value])
        return _of(make, value)

    called = getattr(an, function)
    args, options = tuple([of(value) for value in args]), {name: of(value) for name, value in options.items()}
    return an.explain(called, *args, **options) if explaining else called(*args, **options)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}"
    if isinstance(value, an.Moments):
        return "Moments"
    return f"{value!r:.30}"


def _arguments() -> Iterator[Case]:
    for library, make in _makers().items():
        for function, args, options in _wrong_everywhere():
            given = [*map(_described, args), *[f"{name}={_described(value)}" for name, value in options.items()]]
            for explaining in (False, True) if function != "update_running" else (False,):
                name = f"errors {library} {'explain ' * explaining}{function}({', '.join(given)})"
                yield Case(name, partial(_made, make, function, args, options, explaining))


def _out(make: Make, which: str) -> Any:
    x = make(_zeros(4, 5))
    wrong = {
        "shape": _zeros(4, 6),
        "dtype": _zeros(4, 5, dtype="float64"),
        "list": [1.0],
        "0-d": _zeros(),
    }[which]
    return an.layer_norm(x, out=_of(make, wrong))


def _pullback(make: Make, which: str, as_out: bool) -> Any:
    _, pullback = an.vjp(an.layer_norm, make(_zeros(4, 5)))
    wrong = {"shape": _zeros(4, 6), "dtype": _zeros(4, 5, dtype="int32"), "list": [1.0], "none": None}[which]
    wrong = _of(make, wrong)
    return pullback(make(_zeros(4, 5)), out=wrong) if as_out else pullback(wrong)


def _mixed(one: Make, other: Make, which: str) -> Any:
    x, five, six = _zeros(4, 6, 5), _zeros(5), _zeros(6)
    if which == "weight":
        return an.layer_norm(one(x), other(five))
    if which == "mean":
        return an.batch_norm(one(x), mean=other(six), var=one(six))
    if which == "out":
        return an.layer_norm(one(x), out=other(x))
    _, pullback = an.vjp(an.layer_norm, one(x))
    return pullback(other(x))


def _special() -> Iterator[Case]:
    makers = _makers()
    for library, make in makers.items():
        for which in ("shape", "dtype", "list", "0-d"):
            yield Case(f"errors {library} out of another {which}", partial(_out, make, which))
        for which in ("shape", "dtype", "list", "none"):
            for as_out in (False, True):
                name = f"errors {library} pullback {'out ' * as_out}of another {which}"
                yield Case(name, partial(_pullback, make, which, as_out))
        x = make(_zeros(2))
        yield Case(f"errors {library} vjp with out", partial(an.vjp, an.rms_norm, x, out=x))
        yield Case(f"errors {library} vjp of moments", partial(an.vjp, an.moments, x))
        for other, foreign in makers.items():
            if other != library:
                for which in ("weight", "mean", "out", "dy"):
                    yield Case(f"errors {library} {which} of {other}", partial(_mixed, make, foreign, which))


def _numpys() -> Iterator[Case]:
    x = _zeros(4, 5)
    sparse = importlib.import_module("torch").zeros(4, 5).to_sparse()
    meaning = {"masked": np.ma.masked_array(x), "matrix": np.asmatrix(x), "object": x.astype(object), "sparse": sparse}
    for name, array in meaning.items():
        yield Case(f"errors {name}", partial(an.layer_norm, array))
        yield Case(f"errors {name} as weight", partial(an.layer_norm, x, array))
    whole = np.zeros((5, 5), np.float32)
    yield Case("errors overlapping out", partial(an.layer_norm, whole[1:], out=whole[:-1]))
    yield Case("errors out is weight", partial(an.layer_norm, x, whole[0], out=np.broadcast_to(whole[0], (4, 5))))
    frozen = _zeros(4, 5)
    frozen.flags.writeable = False
    yield Case("errors read-only out", partial(an.layer_norm, x, out=frozen))


def _torchs() -> Iterator[Case]:
    torch = importlib.import_module("torch")
    x = torch.zeros(4, 5)
    asking = torch.zeros(4, 5, requires_grad=True)
    yield Case("errors torch out where x requires grad", partial(an.layer_norm, asking, out=x))
    yield Case("errors torch out requires grad", partial(an.layer_norm, x, out=asking))
    yield Case("errors torch meta weight", partial(an.layer_norm, x, torch.zeros(5, device="meta")))
    yield Case("errors torch meta x", partial(an.layer_norm, torch.zeros(4, 5, device="meta")))
    for dtype in (torch.float8_e4m3fn, torch.int8):
        yield Case(f"errors {dtype}", partial(an.layer_norm, x.to(dtype)))


def _layers() -> Iterator[Case]:
    made: dict[str, Callable[[], Any]] = {
        "LayerNorm(0.5)": lambda: an.LayerNorm(0.5),  # type: ignore[arg-type]
        "GroupNorm(4, 6)": lambda: an.GroupNorm(4, 6),
        "BatchNorm(6, momentum=2)": lambda: an.BatchNorm(6, momentum=2),
        "BatchNorm(6)(5 channels)": lambda: an.BatchNorm(6)(_zeros(4, 5)),
        "BatchNorm(6)(torch)": lambda: an.BatchNorm(6)(importlib.import_module("torch").zeros(4, 6)),
        "BatchNorm(6).load_state_dict({})": lambda: an.BatchNorm(6).load_state_dict({}),
        "LayerNorm(6, xp=1)": lambda: an.LayerNorm(6, xp=1),  # type: ignore[arg-type]
    }
    for name, run in made.items():
        yield Case(f"errors {name}", run)


def cases() -> Iterator[Case]:
    """Yield all calls that are refused."""
    for some in (_arguments, _special, _numpys, _torchs, _layers):
        yield from some()
