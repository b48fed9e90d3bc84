"""What the CPU engine takes and what it leaves to NumPy alone, by how x, dy, y and the parameters lie in memory.

That layouts it takes do not change bits is in test_determinism.py, and for gradients here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_forms import FORMS, Form
from engine_runs import SERVED, both_passes, judge, laid_alike, path_of, runs_of, watched
from gradients import cotangent, exact_gradients, verify_gradients
from inputs import NORMS, Case, Norm, make_case, verify
from layouts import LAYOUTS
from libraries import ALL_DTYPES, NumPyArray, numpy_dtype, without_engine

import anynorm as an

pytest.importorskip("numba", reason="numba is not installed")

each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def _turned(x: NumPyArray) -> NumPyArray:
    return x.astype(x.dtype.newbyteorder())


def _repeated(x: NumPyArray) -> NumPyArray:
    return np.broadcast_to(x[:1], x.shape)


def _ones(*shape: int) -> NumPyArray:
    return np.random.default_rng(6).uniform(0.5, 2, size=shape).astype("float32")


def _case(function: str, x: NumPyArray, weight: NumPyArray | None = None, **options: Any) -> Case:
    arrays = {"x": x} if weight is None else {"x": x, "weight": weight}
    return Case(Norm(function, function, options), arrays)


X = np.random.default_rng(5).normal(3, 2, size=(3, 6, 5, 8)).astype("float32")
APART = "the order of x's axes in memory, outermost first, is "
BESIDE = "neighbours in x's innermost axis do not lie side by side in memory"
BACKWARDS = "x runs backwards along an axis that is reduced"
REPEATS = "x repeats its elements along an axis, with a stride of 0"
OTHERWISE = "an array is not aligned, or of another byte order"
ALONG = "weight or bias does not lie along x's innermost axis as x does"
SIDES = "weight or bias varies along axes on both sides of one along which it does not"

UNFIT: dict[str, tuple[Case, str]] = {
    "backwards": (_case("layer_norm", LAYOUTS["reversed"](X)), BACKWARDS),
    "repeated": (_case("layer_norm", _repeated(X)), REPEATS),
    "overlapping": (
        _case("layer_norm", np.lib.stride_tricks.sliding_window_view(X.reshape(-1), 9)),
        "axes of x overlap in memory",
    ),
    "every-second": (_case("layer_norm", LAYOUTS["sliced"](X)), BESIDE),
    "every-second-column": (_case("batch_norm", LAYOUTS["sliced"](X)), BESIDE),
    "unaligned": (_case("layer_norm", LAYOUTS["unaligned"](X)), OTHERWISE),
    "byte-order": (_case("layer_norm", _turned(X)), OTHERWISE),
    "apart": (_case("layer_norm", X, axis=(0, 2)), APART),
    "row-and-column": (_case("layer_norm", X[0, 0], _ones(5, 8), axis=0), SIDES),
    "one-bias": (Case(Norm("", "layer_norm"), {"x": X, "weight": _ones(8), "bias": _ones(1, 1, 1, 1)}), ALONG),
}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", UNFIT)
def test_what_does_not_fit(kind: str) -> None:
    """A view that the engine cannot take goes to NumPy alone, both passes, within the bounds; `explain` says why."""
    case, reason = UNFIT[kind]
    others = {name: array for name, array in case.arrays.items() if name != "x"}
    function = getattr(an, case.norm.function)
    explained = an.explain(function, case.arrays["x"], **others, **case.norm.options)
    assert explained.path == "anynorm_numpy"
    assert explained.reason is not None
    assert explained.reason.startswith(reason)
    assert str(explained) == f"anynorm_numpy ({explained.reason})"
    native = Case(case.norm, {name: value.astype(value.dtype.newbyteorder("=")) for name, value in case.arrays.items()})
    y, found, jobs = both_passes(case, cotangent(native))
    assert jobs == []
    verify(y.astype(native.arrays["x"].dtype), native.arrays["x"], native.reference())
    gradients = [None if result is None else result.astype(result.dtype.newbyteorder("=")) for result in found]
    verify_gradients(an.Gradients(*gradients), native, exact_gradients(native, cotangent(native)))


def test_without_the_engine() -> None:
    """Where there is no engine, `explain` says so, and it runs nothing."""
    case = make_case(NORMS[0], "float32")
    assert path_of(case) == SERVED
    with without_engine():
        explained = an.explain(an.layer_norm, case.arrays["x"])
        _, _, jobs = both_passes(case)
    assert explained == ("anynorm_numpy", "a test does without it")
    assert jobs == []
    assert len(both_passes(case)[2]) == 2


@each_dtype
def test_gradient_of_a_weight_of_each_sample(dtype: str) -> None:
    """A weight that differs between samples and along a run goes forward by the engine, backward by NumPy alone."""
    random = np.random.default_rng(7)
    arrays = {name: random.normal(size=(5, 40)).astype(numpy_dtype(dtype)) for name in ("x", "weight", "bias")}
    case = Case(Norm("", "layer_norm"), arrays)
    y, found, jobs = both_passes(case)
    assert [len(job.view.strides) for job in jobs] == [2]
    verify(y, arrays["x"], case.reference())
    verify_gradients(found, case, exact_gradients(case, cotangent(case)))


@pytest.mark.parametrize("name", ["wider", "narrower"])
@each_form
def test_dy_of_another_dtype(form: Form, name: str) -> None:
    """A dy of another dtype than x goes to NumPy alone, from what the engine learned of the statistics."""
    dtype, other = ("float32", "float64") if name == "wider" else ("float32", "float16")
    case = form.case(dtype, 4, 70)
    dy = cotangent(case, other)
    _, found, jobs = both_passes(case, dy)
    assert [len(job.view.strides) for job in jobs] == [2]
    verify_gradients(found, case, exact_gradients(case, dy))


def _one_for_all(dy: NumPyArray) -> NumPyArray:
    return np.broadcast_to(dy.reshape(-1)[:1].reshape((1,) * dy.ndim), dy.shape)


DY: dict[str, Callable[[NumPyArray], NumPyArray]] = {
    "one-number": _one_for_all,
    "one-sample": _repeated,
    "fortran": LAYOUTS["fortran"],
    "sliced": LAYOUTS["sliced"],
    "cropped": LAYOUTS["cropped"],
    "reversed": LAYOUTS["reversed"],
    "unaligned": LAYOUTS["unaligned"],
    "read-only": LAYOUTS["read_only"],
}


@pytest.mark.parametrize("layout", DY)
@each_form
@each_dtype
def test_dy_of_another_layout(form: Form, layout: str, dtype: str) -> None:
    """However dy lies, repeated or backwards too, the engine serves both passes, and dx lies as x does."""
    case = form.case(dtype, 4, 70)
    dy = DY[layout](cotangent(case))
    judge(case, dy)
    _, found, _ = both_passes(case, dy)
    assert found.x.strides == case.arrays["x"].strides


@pytest.mark.parametrize("view", [slice(None, None, 2), slice(None, None, -2)], ids=["every-second", "backwards"])
def test_weight_with_gaps(view: slice) -> None:
    """A weight that has gaps, or is reversed, is copied: the engine serves the call, both passes."""
    weight = np.linspace(-1, 2, 2 * X.shape[-1], dtype="float32")[view]
    judge(_case("layer_norm", X, weight))


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
@each_dtype
def test_dx_does_not_feel_the_layout(norm: Norm, dtype: str) -> None:
    """dx has the same bits in all layouts of x that the engine serves with one order of a set's elements, and of dy."""
    case = make_case(norm, dtype)
    dy = cotangent(case)
    for (path, *_), names in laid_alike(case).items():
        if path != SERVED:
            continue
        found: dict[Any, dict[Any, bytes]] = {}
        for name in names:
            for other, lay in (DY | {"alike": LAYOUTS[name], "dense": np.ascontiguousarray}).items():
                again = np.ascontiguousarray(lay(dy)).tobytes() == dy.tobytes()
                if again:  # repeated numbers are others
                    _, gradients, jobs = both_passes(case.with_x(LAYOUTS[name](case.arrays["x"])), lay(dy))
                    assert len(jobs) == 2
                    found.setdefault(runs_of(jobs[1]), {})[name, other] = gradients.x.tobytes()
        for alike in found.values():
            expected = next(iter(alike.values()))
            assert {value for value, bits in alike.items() if bits != expected} == set()


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
@each_dtype
def test_gradients_of_parameters_do_not_feel_the_address(norm: Norm, dtype: str) -> None:
    """Read-only or in a file, wherever it begins in memory, an x of the same strides has the same bits of gradients."""
    case = make_case(norm, dtype)
    dy = cotangent(case)
    shifted = np.empty(dy.size + 1, dy.dtype)[1:].reshape(dy.shape)
    shifted[...] = case.arrays["x"]
    _, expected, _ = both_passes(case, dy)
    for x in (shifted, LAYOUTS["read_only"](case.arrays["x"]), LAYOUTS["memmap"](case.arrays["x"])):
        _, found, _ = both_passes(case.with_x(x), dy)
        for one, other in zip(found, expected, strict=True):
            assert one is other is None or one.tobytes() == other.tobytes()


@pytest.mark.parametrize("length", [9, 70, 9000])
@each_form
@each_dtype
def test_in_place(form: Form, length: int, dtype: str) -> None:
    """With out=x the engine overwrites x with the bits of y."""
    case = form.case(dtype, 4, length)
    others = {name: array for name, array in case.arrays.items() if name != "x"}
    function, x = getattr(an, case.norm.function), case.arrays["x"].copy()
    expected = function(case.arrays["x"], *case.norm.groups, **others, **case.norm.options)
    with watched() as jobs:
        assert function(x, *case.norm.groups, **others, **case.norm.options, out=x) is x
    assert len(jobs) == 1
    assert x.tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", ["fortran", "cropped", "sliced", "reversed"])
@each_form
def test_out_of_another_layout(form: Form, layout: str) -> None:
    """An `out` of another layout than x's is written within the bounds, by whoever can."""
    case = form.case("float32", 4, 70)
    out = LAYOUTS[layout](np.zeros_like(case.arrays["x"]))
    case.function(out=out)(case.arrays)
    verify(np.ascontiguousarray(out), case.arrays["x"], case.reference())


@pytest.mark.parametrize(
    ("form", "layout"),
    [
        pytest.param(form, layout, id=f"{name}-{layout}")
        for name, form in FORMS.items()
        for layout in ("reversed", "sliced", "unaligned", "read_only")
        if layout != "sliced" or name not in ("rows", "rms")  # along runs they lie as x does: see UNFIT
    ],
)
def test_parameters_of_another_layout(form: Form, layout: str) -> None:
    """Weight and bias may lie as they like, and have another dtype: the engine reads numbers of C."""
    case = form.case("float32", 4, 70)
    laid = {name: LAYOUTS[layout](array) for name, array in case.arrays.items() if name != "x"}
    judge(Case(case.norm, case.arrays | laid))
    halves = {name: value.astype("float16") for name, value in laid.items()}
    judge(Case(case.norm, case.arrays | halves))
