"""Faults planted in the library on purpose: `pytest -m quick` must report every one of them.

Each fault is one line of the formula, or one function, replaced by what other implementations do and get wrong. What
must fail then is `test_grid`, which is part of the quick set and runs the matrix's own check.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hostile import ARRANGEMENTS, HOSTILE
from inputs import NORMS, Case, Norm, check, make_case
from libraries import LIBRARIES, nothing_known

import anynorm as an
from anynorm._core import executable, formula, ops

# fault: the formula's line, what stands there instead, and which inputs are enough to notice.
FAULTS = {
    "no_residual_correction": ("e = d - ops.broadcast(correction, plan.shape)", "e = d", "hostile"),
    "mean_of_squares_minus_square": (
        "m2 = ops.sum(e * e, plan.reduced)",
        "m2 = ops.sum(z * z, plan.reduced) - plan.n * mean * mean",
        "ordinary",
    ),
    "eps_outside_the_root": (
        "v = _mean(m2, n, ops.xp) + _by_scale(scale, lambda s: eps * s * s, eps, ops)",
        "v = (ops.xp.sqrt(_mean(m2, n, ops.xp)) + eps) ** 2",
        "ordinary",
    ),
    "no_eps": ("+ _by_scale(scale, lambda s: eps * s * s, eps, ops)", "", "ordinary"),
    "unbiased_variance": (
        "v = _mean(m2, n, ops.xp) + _by_scale",
        "v = _mean(m2, n - 1, ops.xp) + _by_scale",
        "ordinary",
    ),
    "no_scaling": ("[rescue for rescue in RESCUES[_format(a, ops)] if eps < rescue.eps_below]", "[]", "hostile"),
    "hidden_nan": ("zero = v == 0", "zero = ~(v > 0)", "poisoned"),
    "reciprocal_of_n": ("return total / ", "return total * (1 / n) + 0 * ", "hostile"),
    "computed_in_half": (
        "ops.astype(a, ops.compute_dtype(x.dtype))",
        "ops.astype(ops.astype(a, x.dtype), ops.compute_dtype(x.dtype))",
        "mixed",
    ),
    "rounded_before_weight": (
        "xhat, residuals = ops.normalize(normalize, plan, z, eps)\n",
        "xhat, residuals = ops.normalize(normalize, plan, z, eps)\n"
        "        xhat = ops.astype(ops.astype(xhat, x.dtype), z.dtype)\n",
        "mixed",
    ),
    "given_statistics_ignored": ("elif given is None:", "elif True:", "ordinary"),
}


# The same for the NumPy backend: the module, its line, what stands there instead, and the inputs.
NUMPY_FAULTS = {
    "variance_about_a_guess": ("_blocks", "np.maximum(squares - rest * rest, 0)", "squares", "ordinary"),
    "mean_is_a_guess": ("_affine", "offset = None if rest is None else -rest * whole", "offset = None", "ordinary"),
    "squares_may_overflow": ("_blocks", "low, high = _SAFE[compute]", "low, high = 0.0, np.inf", "hostile"),
    "last_chunk_forgotten": (
        "_block",
        "return [*sums, _sum(e[None, whole:])] if whole < length else sums",
        "return sums or [_sum(e[None])]",
        "hostile",
    ),
}


def _inputs(kind: str) -> list[Case]:
    """Return the cases on which a fault of this kind must show."""
    if kind == "ordinary":
        return [make_case(norm, "float32") for norm in NORMS]
    if kind == "mixed":
        return [make_case(norm, "float16", "float32") for norm in NORMS]
    if kind == "poisoned":
        rows = HOSTILE["mean_1e2"].rows("float32")
        rows[1, 3] = np.nan
        return [arranged.case(rows, 1e-5) for arranged in ARRANGEMENTS]
    if kind == "images":
        images = np.random.default_rng(3).integers(256, size=(16, 128, 128, 3)).astype("float32")
        return [Case(Norm("batch", "batch_norm", {"channel_axis": -1}), {"x": images})]
    drawn = [hostile for hostile in HOSTILE.values() if "float32" in hostile.dtypes]
    return [
        arranged.case(array.rows("float32"), array.eps_for("float32")) for arranged in ARRANGEMENTS for array in drawn
    ]


KINDS = ("ordinary", "mixed", "poisoned", "hostile", "images")

# What may serve NumPy's arrays: the engine, NumPy alone, and the formula.
PATHS = ("numpy", "numpy_alone", "formula")

GRID = list(itertools.product(KINDS, PATHS))


@pytest.mark.quick
@pytest.mark.parametrize(("kind", "path"), GRID)
def test_grid(kind: str, path: str) -> None:
    """Every norm is within the contract on every kind of input, whatever serves it."""
    library = LIBRARIES["numpy" if path == "formula" else path]
    with library.context(), an.fast_paths(False) if path == "formula" else nullcontext():
        for case in _inputs(kind):
            check(case, library)


def _quick_set_fails(kind: str, path: str) -> None:
    """Raise unless the quick set has a test of these inputs on this path, and that test fails."""
    marks = [mark.name for mark in test_grid.pytestmark]  # type: ignore[attr-defined]
    assert "quick" in marks
    assert (kind, path) in GRID
    with pytest.raises(AssertionError, match=r"units|^y "):
        test_grid(kind, path)


def _faulty(original: ModuleType, line: str, instead: str) -> ModuleType:
    source = inspect.getsource(original)
    assert source.count(line) == 1, f"{original.__name__} no longer holds {line!r} once: plant the fault anew"
    module = ModuleType(f"{original.__name__}_faulty")
    sys.modules[module.__name__] = module
    exec(compile(source.replace(line, instead), module.__name__, "exec"), module.__dict__)
    return module


@pytest.mark.quick
def test_faults_can_be_planted() -> None:
    """Each line that a fault replaces is there, once: else the fault would be planted nowhere, or in two places."""
    for line, _, _ in FAULTS.values():
        assert inspect.getsource(formula).count(line) == 1, line
    for place, line, _, _ in NUMPY_FAULTS.values():
        assert inspect.getsource(importlib.import_module(f"anynorm_numpy.{place}")).count(line) == 1, line


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_fault_in_the_formula_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one line of the formula replaced, the quick set fails."""
    line, instead, kind = FAULTS[fault]
    monkeypatch.setattr(executable, "formula", _faulty(formula, line, instead))
    with nothing_known():
        _quick_set_fails(kind, "formula")


@pytest.mark.parametrize("fault", list(NUMPY_FAULTS))
def test_fault_in_the_numpy_backend_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one line of the NumPy backend replaced, the quick set fails where the engine does not serve."""
    place, line, instead, kind = NUMPY_FAULTS[fault]
    modules = [importlib.import_module(f"anynorm_numpy.{name}") for name in ("_backend", "_blocks", "_block")]
    original = importlib.import_module(f"anynorm_numpy.{place}")
    faulty = _faulty(original, line, instead)
    for module in modules:
        for name, var in vars(original).items():
            if callable(var) and getattr(module, name, None) is var:
                monkeypatch.setattr(module, name, getattr(faulty, name))
    with nothing_known():
        _quick_set_fails(kind, "numpy_alone")


def _naive_sum(x: Any, axes: tuple[int, ...], *_: Any) -> Any:
    """Sum one element after the other, as NumPy does along every axis but the last."""
    kept = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
    in_front = np.moveaxis(x, axes, range(len(axes))).reshape(-1, int(np.prod(kept)))
    return np.cumsum(in_front, axis=0)[-1].reshape(kept)


def test_naive_sum_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of images shows a sum that adds one element after the other."""
    monkeypatch.setattr(ops, "tree_sum", _naive_sum)
    with nothing_known():
        _quick_set_fails("images", "formula")


def test_interleaved_groups_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of channels i, i + G, ... instead of adjacent ones, as in MLX, are noticed."""
    right = an.group_norm

    def interleaved(x: Any, groups: int, /, weight: Any = None, bias: Any = None, **options: Any) -> Any:
        axis = options.get("channel_axis", 1)
        order = np.arange(x.shape[axis]).reshape(-1, groups).T.reshape(-1)
        y = right(np.take(x, order, axis=axis), groups, **options)
        y = np.take(y, np.argsort(order), axis=axis)
        return (y * weight[:, None, None] + bias[:, None, None]).astype(x.dtype)

    monkeypatch.setattr(an, "group_norm", interleaved)
    for path in PATHS:
        _quick_set_fails("ordinary", path)


@pytest.mark.parametrize("wrong", ["dtype", "shape", "library"])
def test_wrong_kind_of_result_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right numbers in the wrong dtype, shape or library are no right result."""
    right = an.layer_norm
    change = {"dtype": lambda y: y.astype("float64"), "shape": lambda y: y[None], "library": lambda y: y.tolist()}
    monkeypatch.setattr(an, "layer_norm", lambda *args, **options: change[wrong](right(*args, **options)))
    for path in PATHS:
        _quick_set_fails("ordinary", path)
