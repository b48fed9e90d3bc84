"""What a wrong call of `anynorm.vjp`, or of a pullback, says: the same class and words on every library.

Here are calls that must fail; those of the functions themselves are in test_errors.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from libraries import LIBRARIES, ONE_OF_EACH, ArrayLibrary, each_library

import anynorm

an: Any = anynorm  # called here with what its annotations forbid

SHAPE = (4, 6, 5)
FUNCTIONS = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm")
each_function = pytest.mark.parametrize("function", FUNCTIONS)

# An imperative after the rule: what to do.
ADVICE = re.compile(r"[.,:;] (?:Cast|Convert|Fill|Leave|Move|Pass)\b", re.IGNORECASE)


def _groups(function: str) -> tuple[int, ...]:
    return (2,) if function == "group_norm" else ()


def _zeros(library: ArrayLibrary, shape: tuple[int, ...] = SHAPE, dtype: str = "float32") -> Any:
    return library.make(np.zeros(shape, dtype))


def _pullback(function: str, x: Any) -> Callable[[Any], Any]:
    _, pullback = an.vjp(getattr(an, function), x, *_groups(function))
    return pullback  # type: ignore[no-any-return]


def _computing_nothing(library: ArrayLibrary) -> AbstractContextManager[Any]:
    """Return a context in which Dask may build graphs but not compute them."""
    if library.family != "dask":
        return nullcontext()
    import dask

    def scheduler(*_: object, **__: object) -> None:
        raise AssertionError

    return dask.config.set(scheduler=scheduler)


def _refused(function: str, dy: Any, library: ArrayLibrary, error: type[Exception]) -> str:
    """Return what a pullback says of a dy that it must refuse, after which it must work as before."""
    x = _zeros(library)
    pullback = _pullback(function, x)
    with _computing_nothing(library), pytest.raises(error) as caught:
        pullback(dy)
    assert type(caught.value) is error
    message = str(caught.value)
    assert function in message.partition(": ")[0]
    assert message.partition(": ")[2].startswith(("dy ", "x "))
    assert ADVICE.search(message)
    assert pullback(x).x.shape == x.shape
    return message


@pytest.mark.parametrize(
    "shape", [(), (5,), (6, 5), (1, 6, 5), (4, 6, 1), (4, 6, 6), (6, 4, 5), (1, 4, 6, 5), (0, 6, 5)]
)
@each_library(ONE_OF_EACH)
def test_dy_of_another_shape(library: ArrayLibrary, shape: tuple[int, ...]) -> None:
    """A dy without x's shape is a ValueError that names both, even if it would broadcast."""
    for function in FUNCTIONS if library.name == "numpy" else FUNCTIONS[:1]:
        message = _refused(function, _zeros(library, shape), library, ValueError)
        assert f"dy has shape {shape}" in message
        assert str(SHAPE) in message


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "uint8"])
@each_library(ONE_OF_EACH)
def test_dy_of_another_kind_of_number(library: ArrayLibrary, dtype: str) -> None:
    """Integers, bools and complex numbers are a TypeError: a gradient of them would be nonsense."""
    for function in FUNCTIONS if library.name == "numpy" else FUNCTIONS[:1]:
        message = _refused(function, _zeros(library, dtype=dtype), library, TypeError)
        assert "dy must have a real floating dtype (float16, bfloat16, float32 or float64)" in message
        assert f"{dtype}. {'A cast would drop' if dtype == 'complex64' else 'Cast it'}" in message


@pytest.mark.parametrize("dy", [[[1.0]], 1.0, None, "dy", (1.0,)], ids=str)
@each_library(ONE_OF_EACH)
def test_dy_that_is_no_array(library: ArrayLibrary, dy: Any) -> None:
    """A list, a number or None is a TypeError: nothing is converted, and no gradient of 1 is assumed."""
    message = _refused("layer_norm", dy, library, TypeError)
    assert "dy must be an array of a library that follows the array API standard" in message
    assert f"got {type(dy).__name__}" in message


@pytest.mark.parametrize("dtype", ["longdouble", "O", ">i4"])
def test_dy_of_numpys_own_dtypes(dtype: str) -> None:
    """What NumPy has beside the real floating dtypes of the contract is a TypeError as dy, too."""
    assert "dy must have a real floating dtype" in _refused(
        "rms_norm", np.zeros(SHAPE, dtype), LIBRARIES["numpy"], TypeError
    )


def test_dy_that_means_something_else() -> None:
    """A masked array is a TypeError: its mask would be ignored."""
    message = _refused("rms_norm", np.ma.MaskedArray(np.zeros(SHAPE)), LIBRARIES["numpy"], TypeError)
    assert "mask would be ignored" in message


@each_library(["torch"])
def test_sparse_dy(library: ArrayLibrary) -> None:
    """A sparse dy is a TypeError: a norm's gradient is dense."""
    assert "dy " in _refused("layer_norm", _zeros(library).to_sparse(), library, TypeError)


def _present(name: str) -> ArrayLibrary:
    library = LIBRARIES[name]
    reason = library.missing()
    if reason is not None:
        pytest.skip(reason)
    return library


@pytest.mark.parametrize(("here", "there"), list(permutations(ONE_OF_EACH, 2)))
def test_dy_of_another_library(here: str, there: str) -> None:
    """A dy of another library than x is a TypeError that says which is whose."""
    ours, theirs = _present(here), _present(there)
    names = [library.family.removesuffix("_cuda") for library in (ours, theirs)]
    if names[0] == names[1]:
        pytest.skip("one library on two devices is no mixture")
    message = _refused("layer_norm", _zeros(theirs), ours, TypeError)
    assert f"x is an array of {names[0]} but dy is one of {names[1]}" in message
    assert f"convert dy to {names[0]} first" in message


@pytest.mark.parametrize("name", ["torch", "array_api_strict"])
def test_dy_on_another_device(name: str) -> None:
    """A dy on another device than x is a ValueError that says what lies where."""
    xp = pytest.importorskip(name)
    here, there = ("cpu", "meta") if name == "torch" else (xp.Device("CPU_DEVICE"), xp.Device("device1"))
    x, dy = [xp.ones(SHAPE, device=device) for device in (here, there)]
    with pytest.raises(ValueError, match="dy is on device") as caught:
        _pullback("layer_norm", x)(dy)
    message = str(caught.value)
    assert f"x is on device {x.device} but dy is on device {dy.device}" in message
    assert f"move dy to {x.device} first" in message


def test_dy_of_unknown_length() -> None:
    """A Dask dy whose length is not known is no dy of an x whose length is: a ValueError, and nothing is computed."""
    da: Any = pytest.importorskip("dask.array")
    x = da.zeros((8, 6), chunks=4)
    pullback = _pullback("layer_norm", x)
    dy = x[da.from_array(np.arange(8) % 2 == 0, chunks=4)]
    with _computing_nothing(LIBRARIES["dask"]), pytest.raises(ValueError, match=r"dy has shape \(\?, 6\)"):
        pullback(dy)


@each_function
@each_library(ONE_OF_EACH)
def test_out_is_refused(library: ArrayLibrary, function: str) -> None:
    """vjp takes no out=: a TypeError that says so, and nothing is written; out=None is none."""
    x, out = _zeros(library), library.make(np.full(SHAPE, 7, "float32"))
    with pytest.raises(TypeError, match=r"^\w+: .*\bout\b") as caught:
        an.vjp(getattr(an, function), x, *_groups(function), out=out)
    assert ADVICE.search(str(caught.value)) or "Use the returned" in str(caught.value)
    assert (library.to_numpy(out) == 7).all()
    an.vjp(getattr(an, function), x, *_groups(function), out=None)


@each_library(["numpy", "torch", "strict_CPU_DEVICE"])
def test_out_is_refused_by_vjp(library: ArrayLibrary) -> None:
    """Where arrays can be written to, it is vjp that says why out= cannot be used."""
    x = _zeros(library)
    for out in (x, _zeros(library)):
        with pytest.raises(TypeError, match=r"^vjp: .*\bout\b.*layer_norm.* Leave"):
            an.vjp(an.layer_norm, x, out=out)


@pytest.mark.parametrize(
    "function",
    [np.mean, anynorm.moments, anynorm.update_running, anynorm.vjp, "layer_norm", None, np.ones(3), lambda x: x],
    ids=lambda tensor: getattr(tensor, "__name__", str(tensor)),
)
def test_foreign_function(function: Any) -> None:
    """What is none of the five functions, an array too, is a TypeError that names the five, and no other."""
    said = r"^vjp: function must be one of .*layer_norm, rms_norm, group_norm, instance_norm, batch_norm; got "
    with pytest.raises(TypeError, match=said) as caught:
        an.vjp(function, np.ones((2, 3)))
    assert "moments" not in str(caught.value).partition("; got ")[0]


def test_layer_instead_of_function() -> None:
    """A layer is told from an array, and the call that its owner looks for is named."""
    with pytest.raises(TypeError, match=r"got .*LayerNorm.*\. Pass the function .*; layer\.vjp\(x\)") as error:
        an.vjp(an.LayerNorm(3), np.ones((2, 3)))
    assert "array of" not in str(error.value)


# A wrong call of each kind: the function, arguments after x, options. A tuple stands for zeros of that shape.
WRONG: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("layer_norm", (), {"axis": 3}),
    ("layer_norm", (), {"axis": 1.0}),
    ("layer_norm", (), {"eps": -1e-5}),
    ("layer_norm", (), {"eps": "small"}),
    ("layer_norm", ([1.0] * 5,), {}),
    ("layer_norm", ((7,),), {}),
    ("layer_norm", (), {"epsilon": 1e-5}),
    ("layer_norm", ((5,), (5,), -1), {}),
    ("rms_norm", (), {"axis": ()}),
    ("rms_norm", (), {"bias": (7,)}),
    ("group_norm", (4,), {}),
    ("group_norm", (), {}),
    ("group_norm", (2,), {"batch_axis": 1}),
    ("instance_norm", (), {"channel_axis": 3}),
    ("instance_norm", ((6,),), {}),
    ("batch_norm", (), {"mean": (6,)}),
    ("batch_norm", (), {"mean": (6,), "var": (6,), "return_moments": True}),
    ("batch_norm", (), {"momentum": 0.1}),
)


def _made(value: Any, library: ArrayLibrary) -> Any:
    return _zeros(library, value) if isinstance(value, tuple) and value else value


@pytest.mark.parametrize(("function", "args", "options"), WRONG, ids=[f"{one[0]}{one[1]}{one[2]}" for one in WRONG])
@each_library(ONE_OF_EACH)
def test_wrong_arguments(library: ArrayLibrary, function: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """What the function itself refuses, vjp refuses with the same class and the same words."""
    array = getattr(an, function)
    made = _zeros(library), *[_made(value, library) for value in args]
    named = {name: _made(value, library) for name, value in options.items()}
    with _computing_nothing(library):
        with pytest.raises((TypeError, ValueError)) as own:
            array(*made, **named)
        with pytest.raises((TypeError, ValueError)) as through:
            an.vjp(array, *made, **named)
    assert type(through.value) is type(own.value)
    # Python's own words, for arguments that do not exist, name the half of a function that was called.
    own_words, words = [str(caught.value).replace("_call()", "()") for caught in (own, through)]
    assert words == own_words


@pytest.mark.parametrize("x", [[[1.0]], None, 1.0, np.zeros((2, 3), "int32"), np.zeros(())], ids=str)
@each_function
def test_wrong_x(function: str, x: Any) -> None:
    """An x that the function refuses, or none at all, is refused with the function's words."""
    array = getattr(an, function)
    with pytest.raises((TypeError, ValueError)) as own:
        array(x, *_groups(function))
    with pytest.raises((TypeError, ValueError)) as through:
        an.vjp(array, x, *_groups(function))
    assert (type(through.value), str(through.value)) == (type(own.value), str(own.value))


def test_one_value_per_channel() -> None:
    """batch_norm's own refusal of a batch of one value per channel holds for its vjp."""
    with pytest.raises(ValueError, match=r"^batch_norm: x of shape \(1, 6\) has one value per channel"):
        an.vjp(an.batch_norm, np.ones((1, 6)))


@pytest.mark.parametrize("args", [(), (anynorm.layer_norm,)], ids=["nothing", "function-alone"])
def test_missing_arguments(args: tuple[Any, ...]) -> None:
    """Without a function, or without an x, the call is Python's own TypeError."""
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        an.vjp(*args)


@pytest.mark.parametrize("args", [(), (np.zeros(SHAPE), 1)], ids=["none", "two"])
def test_pullback_takes_one_argument(args: tuple[Any, ...]) -> None:
    """A pullback takes dy and nothing else."""
    pullback: Any = _pullback("layer_norm", np.ones(SHAPE))
    with pytest.raises(TypeError, match="positional argument"):
        pullback(*args)


def test_an_x_that_was_resized_since() -> None:
    """dx is made like x, so an x of another shape than the forward pass saw is refused, in known calls as well."""
    x, dy = np.ones((60, 80), np.float32), np.ones((60, 80), np.float32)
    _, pullback = an.vjp(an.layer_norm, x)
    pullback(dy)
    pullback(dy, out=np.empty_like(x))
    out = np.empty((1, 80), np.float32)
    x.resize((1, 80), refcheck=False)
    for options in ({}, {"out": out}):
        with pytest.raises(ValueError, match=r"dy has shape \(60, 80\), x has \(1, 80\)"):
            pullback(dy, **options)


@pytest.mark.parametrize("shape", [(60, 2), (600, 80), (80, 60)])
def test_an_x_and_a_dy_of_another_shape_since(shape: tuple[int, int]) -> None:
    """A dy that fits the new shape of an x that was resized is refused too: the residuals describe the old one."""
    x = np.ones((60, 80), np.float32)
    _, pullback = an.vjp(an.layer_norm, x)
    x.resize(shape, refcheck=False)
    with pytest.raises(ValueError, match=r"x has shape \(\d+, \d+\), and had \(60, 80\) when layer_norm ran"):
        pullback(np.ones(shape, np.float32))


def test_a_weight_that_was_resized_since() -> None:
    """A weight of another shape than the forward pass saw is refused, in known calls as well: it is read by address."""
    x, weight = np.ones((60, 80), np.float32), np.ones(80, np.float32)
    _, pullback = an.vjp(an.layer_norm, x, weight)
    pullback(x)
    weight.resize((4,), refcheck=False)
    with pytest.raises(ValueError, match=r"weight has shape \(4,\), and had another when layer_norm ran"):
        pullback(x)


def test_a_dtype_that_was_changed_since() -> None:
    """An x that was made integers in place is refused, in known calls as well."""
    x, dy = np.ones((6, 8), np.float32), np.ones((6, 8), np.float32)
    _, pullback = an.vjp(an.layer_norm, x)
    pullback(dy)
    x.dtype = np.int32  # type: ignore[assignment,misc]
    with pytest.raises(TypeError, match="dtype"):
        pullback(dy)
