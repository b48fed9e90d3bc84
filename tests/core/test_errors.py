"""What a wrong call says: the same class and the same words on every library, before any work.

Here are calls that must fail. What a right call computes belongs elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from libraries import LIBRARIES, ONE_OF_EACH, ArrayLibrary, each_library
from wrong_calls import CASES, NUMPY, Case, Of, an, computing_nothing, words

import anynorm

NORMS = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm")

# An imperative after the rule: what to do.
ADVICE = re.compile(
    r"[.,:;] (?:Allocate|Call|Cast|Choose|Convert|Fill|Give|Leave|Move|Name|Pass|Reshape|Use)\b|must have shape \(",
    re.IGNORECASE,
)


@each_library(ONE_OF_EACH)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_message(case: Case, library: ArrayLibrary) -> None:
    """A wrong call names function, argument, rule, what came and what to do, in the same words on every library."""
    with computing_nothing(library):
        message = words(case.call(library))

    assert message.startswith(f"{case.function}: ")
    for part in case.said:
        assert part in message
    assert message == words(case.call(NUMPY))


@pytest.mark.quick
@pytest.mark.parametrize("case", CASES, ids=str)
def test_message_says_what_to_do(case: Case) -> None:
    """Every message ends with what to do."""
    assert ADVICE.search(case.call(NUMPY))


@each_library([name for name in ONE_OF_EACH if name != "dask"])
@pytest.mark.parametrize("case", [case for case in CASES if case.x == Of()], ids=str)
def test_before_any_work(case: Case, library: ArrayLibrary) -> None:
    """A wrong call is refused without computing or allocating: also with an x on which neither would succeed."""
    assert case.call(library, usable=False).startswith(f"{case.function}: ")


@each_library(ONE_OF_EACH)
@pytest.mark.parametrize("norm", NORMS)
def test_right_call_is_not_refused(norm: str, library: ArrayLibrary) -> None:
    """Integers and numbers of other types than Python's own are integers and numbers."""
    options: dict[str, Any] = {"channel_axis": np.int64(1)}
    if norm in ("layer_norm", "rms_norm"):
        options = {"axis": (np.int64(1), np.int32(-1))}
    elif norm != "batch_norm":
        options["batch_axis"] = (np.int8(0),)
    args = (np.int64(3),) if norm == "group_norm" else ()

    for eps in (0, 1, np.float32(1e-5), np.float64(1e-5)):
        assert getattr(an, norm)(Of().make(library), *args, eps=eps, **options).shape == (4, 6, 5)


@each_library(ONE_OF_EACH)
@pytest.mark.parametrize(("right", "like_it"), [(1, 1.0), (1, True), (0, 0.0), (0, False)])
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda x, axis: an.layer_norm(x, axis=axis), id="axis"),
        pytest.param(lambda x, axis: an.rms_norm(x, axis=(axis, 2)), id="axes"),
        pytest.param(lambda x, axis: an.moments(x, axis=axis), id="moments"),
        pytest.param(lambda x, axis: an.batch_norm(x, channel_axis=axis), id="batch_norm"),
        pytest.param(lambda x, axis: an.group_norm(x, 1, channel_axis=axis, batch_axis=2), id="group_norm"),
        pytest.param(lambda x, axis: an.instance_norm(x, channel_axis=2, batch_axis=axis), id="instance_norm"),
    ],
)
def test_caches_do_not_confuse_types(
    call: Callable[[Any, Any], Any], right: int, like_it: Any, library: ArrayLibrary
) -> None:
    """1.0 and True are refused, also right after the 1 that they are equal to was used."""
    x = Of((4, 6, 5)).make(library)
    call(x, right)

    with pytest.raises(TypeError, match="must be an integer"):
        call(x, like_it)


@pytest.mark.parametrize("like_it", [2.0, np.float64(2)])
def test_caches_do_not_confuse_groups(like_it: Any) -> None:
    """2.0 groups are refused, also right after 2 were used."""
    x = Of().make(NUMPY)
    an.group_norm(x, 2)

    with pytest.raises(TypeError, match="num_groups must be an integer"):
        an.group_norm(x, like_it)


def test_axis_error() -> None:
    """An axis that is not there is caught as ValueError and as IndexError, as NumPy's is."""
    for caught in (ValueError, IndexError):
        with pytest.raises(caught, match="axis=2 is out of range"):
            an.layer_norm(np.ones((2, 3)), axis=2)


@pytest.mark.quick
@each_library(ONE_OF_EACH)
@pytest.mark.parametrize("function", ["batch_norm", "instance_norm"])
def test_torch_positional_order(function: str, library: ArrayLibrary) -> None:
    """The order of torch, running mean and variance second and third, fails instead of computing something else."""
    x, one = Of().make(library), Of((6,)).make(library)
    for args in ((one,), (one, one), (one, one, one, one, True, 0.1, 1e-5)):
        with pytest.raises(TypeError, match=rf"^{function}: only x can be given by position, got {len(args) + 1} "):
            getattr(an, function)(x, *args)


@pytest.mark.parametrize(
    "function",
    [np.mean, anynorm.update_running, "layer_norm", None, np.ones(3)],
    ids=lambda tensor: getattr(tensor, "__name__", str(tensor)),
)
def test_explain_of_a_foreign_function(function: Any) -> None:
    """What is none of the functions explain knows, an array passed by mistake too, is a TypeError that names them."""
    with pytest.raises(TypeError, match=r"^explain: function must be one of .*layer_norm, rms_norm, group_norm"):
        an.explain(function, np.ones((2, 3)))


@pytest.mark.parametrize("argument", ["x", "weight", "out"])
@pytest.mark.parametrize(
    ("kind", "advice"),
    [("ma.MaskedArray", r"mask would be ignored, .*\.compressed\(\)"), ("matrix", r"numpy\.asarray\(")],
)
@pytest.mark.filterwarnings("ignore:the matrix subclass is not the recommended way:PendingDeprecationWarning")
def test_arrays_that_mean_something_else(kind: str, advice: str, argument: str) -> None:
    """A masked array and a matrix are no arrays to anynorm: it would drop the mask, and `*` would multiply matrices."""
    plain = np.zeros((4, 6))
    special = np.ma.MaskedArray(plain, plain == 0) if kind == "ma.MaskedArray" else plain.view(np.matrix)
    if argument == "weight" and kind == "ma.MaskedArray":
        advice = r"Pass weight\.filled\(1\), or weight\.data"  # nothing in it enters a statistic
    said = "Allocate it" if argument == "out" else f".*{advice}"

    with pytest.raises(TypeError, match=rf"^layer_norm: {argument} must be an array .* got numpy\.{kind}\. {said}"):
        an.layer_norm(special) if argument == "x" else an.layer_norm(plain, **{argument: special})


@pytest.mark.parametrize(
    "dtype", ["longdouble", "O", "U1", "M8[s]", "m8[s]", "clongdouble", [("r", "f4")], "uint8"], ids=str
)
def test_numpy_dtypes(dtype: Any) -> None:
    """What NumPy has beside the four real floating dtypes is a TypeError, as x and as a weight."""
    special, x = np.zeros((2, 3), dtype), np.zeros((2, 3))

    for argument, args in (("x", (special,)), ("weight", (x, special))):
        with pytest.raises(TypeError, match=f"^layer_norm: {argument} must have a real floating dtype") as caught:
            an.layer_norm(*args)
        assert re.search(rf"got {re.escape(str(special.dtype))}\. .*[Cc]ast", str(caught.value))


@each_library(["numpy", "torch", "jax"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bits(dtype: str, library: ArrayLibrary) -> None:
    """Floats of eight bits are a TypeError."""
    name = "ml_dtypes" if library.family == "numpy" else {"jax": "jax.numpy"}.get(library.family, library.family)
    eight_bits = getattr(pytest.importorskip(name), dtype)
    x = Of().make(library)
    x = x.to(eight_bits) if library.family == "torch" else x.astype(eight_bits)

    with pytest.raises(TypeError, match=f"^rms_norm: x must have a real floating dtype .*{dtype}"):
        an.rms_norm(x)


def test_unknown_lengths() -> None:
    """Dask lengths that must be known and are not: a ValueError that names the axis and what makes them known."""
    da: Any = pytest.importorskip("dask.array")
    x = da.zeros((8, 6), chunks=4)
    rows = x[da.from_array(np.arange(8) % 2 == 0, chunks=4)]  # shape (?, 6)

    with computing_nothing(LIBRARIES["dask"]):
        calls: list[Callable[[], Any]] = [
            lambda: an.layer_norm(rows, axis=0),
            lambda: an.rms_norm(rows, axis=None),
            lambda: an.batch_norm(rows),
            lambda: an.moments(rows, axis=0),
            lambda: an.instance_norm(rows.T, batch_axis=None, channel_axis=0),
            lambda: an.group_norm(rows.T, 2, batch_axis=0),
        ]
        said = r"axis [01].* is not known.*\?.* Make it known first, on Dask with x\.compute_chunk_sizes\(\)"
        for call in calls:
            with pytest.raises(ValueError, match=said):
                call()
