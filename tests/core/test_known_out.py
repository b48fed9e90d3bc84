"""Calls with `out` or given statistics, of a kind that was met before: what may change from call to call is looked at.

Each test makes a call until it is known, and then one that differs in what the memory must not overlook.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_runs import watched
from libraries import ArrayLibrary, NumPyArray, each_library, without_engine

import anynorm as an
from anynorm._core import dispatch
from anynorm.backend import may_be_written

pytest.importorskip("numba")

X = np.random.default_rng(5).standard_normal((6, 8, 5)).astype(np.float32)
ROWS = np.random.default_rng(6).standard_normal((2, 5)).astype(np.float32)
COLUMNS = np.random.default_rng(7).standard_normal((4, 8)).astype(np.float32)
MEAN, VAR = COLUMNS[0], COLUMNS[1] ** 2 + np.float32(0.5)


def _known(monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Make a call three times, the last without the checks, and return its result."""
    for _ in range(2):
        call(*args, **options)
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "checked_plan", None)
        return call(*args, **options)


@each_library(["numpy", "torch"])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0)], ids=str)
def test_results_go_to_out(library: ArrayLibrary, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A known call writes to `out`, or to x, the bits that it returns without `out`, wherever both lie."""
    back = tuple(np.argsort(order))
    dense = np.ascontiguousarray(X.transpose(order)).transpose(back)
    x, weight, bias = library.make(dense), library.make(ROWS[0]), library.make(ROWS[1])
    y = library.to_numpy(an.layer_norm(x, weight, bias)).copy()
    for _ in range(2):
        out = library.make(np.full_like(dense, 7))
        with watched() as jobs:
            assert _known(monkeypatch, an.layer_norm, x, weight, bias, out=out) is out
        assert jobs
        np.testing.assert_array_equal(library.to_numpy(out), y)
    elsewhere = library.make(np.full((8, 5, 6), np.float32(7)).transpose(2, 0, 1))
    for _ in range(3):
        assert an.layer_norm(x, weight, bias, out=elsewhere) is elsewhere
        np.testing.assert_allclose(library.to_numpy(elsewhere), y, rtol=1e-5, atol=1e-6)
    for _ in range(3):
        x = library.make(dense.copy(order="K"))
        assert an.layer_norm(x, weight, bias, out=x) is x
        np.testing.assert_array_equal(library.to_numpy(x), y)


@each_library(["numpy", "torch"])
def test_out_that_overlaps(library: ArrayLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether `out` overlaps an argument depends on the call: each is looked at, the one array given twice too."""
    room = library.make(np.zeros(1000, np.float32))

    def take(first: int, shape: tuple[int, ...]) -> Any:
        return room[first : first + int(np.prod(shape))].reshape(shape)

    x, out = take(0, (6, 8, 5)), take(240, (6, 8, 5))
    weight, bias, mean, var = [take(480 + 8 * place, (8,)) for place in range(4)]
    var[:] = 1
    options = {"weight": weight, "bias": bias, "mean": mean, "var": var}
    _known(monkeypatch, an.batch_norm, x, **options, out=out)
    inside = take(244, (8,))
    for name, changed in (
        ("x", take(1, (6, 8, 5))),
        ("x", take(239, (6, 8, 5))),
        *[(name, inside) for name in options],
    ):
        first, others = (changed, options) if name == "x" else (x, options | {name: changed})
        with pytest.raises(ValueError, match=f"out overlaps {name} in memory"):
            an.batch_norm(first, **others, out=out)
    _known(monkeypatch, an.layer_norm, x, take(600, (6, 8, 5)), out=out)
    for known in (x, out):
        _known(monkeypatch, an.layer_norm, x, take(600, (6, 8, 5)), out=known)
        with pytest.raises(ValueError, match="out overlaps weight in memory"):
            an.layer_norm(x, known, out=known)
    _known(monkeypatch, an.batch_norm, x, **options, out=x)
    with pytest.raises(ValueError, match="out overlaps weight in memory"):
        an.batch_norm(x, **options | {"weight": take(8, (8,))}, out=x)


@each_library(["numpy", "torch"])
def test_out_beside_arrays_with_gaps(library: ArrayLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """`out` may lie between the elements of x, or be an x that has gaps, or a view of it; such calls are known, too."""
    room, parameters = library.make(np.zeros((6, 16), np.float32)), library.make(np.ones(16, np.float32))
    x, out, weight = room[:, :8], room[:, 8:], parameters[::2]
    x[:] = library.make(X[:, :, 0].copy())
    y = library.to_numpy([an.layer_norm(x, weight) for _ in range(3)][-1])
    for _ in range(3):
        assert an.layer_norm(x, weight, out=out) is out
        np.testing.assert_array_equal(library.to_numpy(out), y)
    for _ in range(3):
        x[:] = library.make(X[:, :, 0].copy())
        assert an.layer_norm(x, weight, out=x) is x
        np.testing.assert_array_equal(library.to_numpy(x), y)
    _known(monkeypatch, an.layer_norm, x, weight, out=out)
    _known(monkeypatch, an.layer_norm, x, weight, out=x[:])
    x[:] = library.make(X[:, :, 0].copy())
    an.layer_norm(x, weight, out=x[:])
    np.testing.assert_array_equal(library.to_numpy(x), y)
    with pytest.raises(ValueError, match="out overlaps weight in memory"):
        an.layer_norm(x, x[0], out=x[:])
    with pytest.raises(ValueError, match="out overlaps x in memory"):
        an.layer_norm(x, weight, out=room[:, 4:12])
    _, pullback = an.vjp(an.layer_norm, x, weight)
    with monkeypatch.context() as patched:
        for _ in range(2):
            pullback(x, out=out)
        patched.setattr(dispatch, "check_gradient", None)
        pullback(x, out=out)
    with pytest.raises(ValueError, match=r"out overlaps (x|dy) in memory"):
        pullback(x, out=x[:])


@each_library(["numpy", "torch"])
def test_out_behind_the_number_of_elements(library: ArrayLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays with gaps reach further than they have elements: there too `out` overlaps them."""
    room = library.make(np.zeros(2000, np.float32))

    def rows(first: int) -> Any:
        return room[first : first + 96].reshape(12, 8)[::2]

    x, weight, out = rows(0), rows(200), room[400:448].reshape(6, 8)
    _known(monkeypatch, an.layer_norm, x, weight, out=out)
    for inside in (48, 80, 248, 280):
        with pytest.raises(ValueError, match=r"out overlaps (x|weight) in memory"):
            an.layer_norm(x, weight, out=room[inside : inside + 48].reshape(6, 8))
    for beside in (96, 296):
        _known(monkeypatch, an.layer_norm, x, weight, out=room[beside : beside + 48].reshape(6, 8))


@each_library(["numpy", "torch"])
def test_out_that_does_not_fit(library: ArrayLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another shape, dtype or library, and what is no array, are refused after calls that were right."""
    x = library.make(X)
    _known(monkeypatch, an.layer_norm, x, out=library.make(np.empty_like(X)))
    for bad, error, words in (
        (library.make(np.empty((6, 8, 4), np.float32)), ValueError, "out must have x's shape"),
        (library.make(np.empty((6, 8, 5), np.float64)), TypeError, "out must have x's dtype"),
        ([0.0], TypeError, "out must be an array"),
        (np.ma.masked_array(X), TypeError, r"MaskedArray\. Allocate it"),
    ):
        with pytest.raises(error, match=words):
            an.layer_norm(x, out=bad)


def test_out_of_numpy_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array is asked each time whether it may be written to; an unaligned one is written without the engine."""
    out = np.empty_like(X)
    y = _known(monkeypatch, an.layer_norm, X, out=out).copy()
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        an.layer_norm(X, out=out)
    with pytest.raises(ValueError, match="several elements of out share one place"):
        an.layer_norm(X, out=np.lib.stride_tricks.as_strided(np.empty(5, np.float32), X.shape, (0, 0, 4)))
    unaligned = np.empty(X.nbytes + 1, np.uint8)[1:].view(X.dtype).reshape(X.shape)
    for _ in range(3):
        with watched() as jobs:
            np.testing.assert_allclose(an.layer_norm(X, out=unaligned), y, rtol=1e-5, atol=1e-6)
        assert not jobs


def test_conversions_are_quiet() -> None:
    """A parameter or statistic that is out of the compute dtype's range becomes infinite or 0, and nothing warns."""
    ones, wide = np.ones(8, np.float32), np.asarray([1e300, 1e-300, *[0.0] * 6])
    with np.errstate(all="raise"):
        for _ in range(3):
            an.batch_norm(X, mean=wide, var=ones)
            an.batch_norm(X, weight=wide, bias=wide)


@each_library(["numpy", "torch"])
def test_given_statistics_are_read_each_time(library: ArrayLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known call takes the values of its own statistics, in any dtype and shape that fit, and says what does not."""
    x, out = library.make(X), library.make(np.empty_like(X))
    _known(monkeypatch, an.batch_norm, x, mean=library.make(MEAN), var=library.make(VAR))
    strided = np.stack([MEAN, VAR], axis=1)
    for mean, var in (
        (MEAN, VAR),
        (MEAN * 3, VAR * 2),
        (MEAN.astype(np.float64), VAR),
        (MEAN, VAR.astype(np.float16)),
        (MEAN.reshape(1, 8, 1), VAR.reshape(1, 8, 1)),
        (strided[:, 0], strided[:, 1]),
    ):
        exact = (X - mean.reshape(-1, 1).astype(np.float64)) / np.sqrt(var.reshape(-1, 1).astype(np.float64) + 1e-5)
        given = {"mean": library.make(mean), "var": library.make(var)}
        found = _known(monkeypatch, an.batch_norm, x, **given)
        np.testing.assert_allclose(library.to_numpy(found), exact, rtol=1e-6, atol=1e-6)
        assert _known(monkeypatch, an.batch_norm, x, **given, out=out) is out
        np.testing.assert_array_equal(library.to_numpy(out), library.to_numpy(found))
    right = library.make(VAR)
    for bad, error in ((library.make(MEAN[:7]), ValueError), ([0.0] * 8, TypeError), (None, ValueError)):
        with pytest.raises(error, match="mean"):
            an.batch_norm(x, mean=bad, var=right)  # type: ignore[arg-type]


@each_library(["numpy", "torch"])
def test_known_calls_without_the_engine(library: ArrayLibrary) -> None:
    """Where the engine is gone a known call is served without it, and puts its result where it belongs."""
    x, mean, var = library.make(X), library.make(MEAN), library.make(VAR)
    y = library.to_numpy([an.batch_norm(x, mean=mean, var=var) for _ in range(3)][-1])
    out = library.make(np.empty_like(X))
    an.batch_norm(x, mean=mean, var=var, out=out)
    with without_engine():
        assert an.batch_norm(x, mean=mean, var=var, out=out) is out
        np.testing.assert_allclose(library.to_numpy(out), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_given_statistics_at_the_limits(dtype: str) -> None:
    """Statistics near the largest and smallest numbers, infinite, NaN and negative ones give what arithmetic gives."""
    wide = np.float64 if dtype == "float64" else np.float32
    high, low = float(np.finfo(wide).max), float(np.finfo(wide).smallest_subnormal)
    mean = np.asarray([high, -high, 0, 0, 0, 1, 2, np.nan, 0, 0, np.inf], wide)
    var = np.asarray([high, high, high, low, 0, 0, 4, 1, np.nan, -1, 1], wide)
    x = np.asarray([[-1] * 11, [1] * 11, [0.5] * 11, [6e4] * 11], dtype)
    # What multiplies equal values is 1/√eps: also where a variance undoes eps.
    undone = np.full(3, -0.25, wide)
    np.testing.assert_array_equal(an.batch_norm(x[:3, :3], mean=undone * 0, var=undone, eps=0.25), x[:3, :3] * 2)
    if dtype != "float16":
        x[3] = np.finfo(dtype).max
    exact_x, exact_mean, exact_var = [tensor.astype(np.longdouble) for tensor in (x, mean, var)]
    for eps in (0.0, 1e-5, float(np.finfo(np.float32).tiny), 0.75 * high):
        with np.errstate(all="ignore"):
            spread = exact_var + np.longdouble(wide(eps))
            r = np.where(spread == 0, 0, 1 / np.sqrt(spread))
            exact = np.where(r == 0, np.where(np.isfinite(exact_mean), 0, np.nan), (exact_x - exact_mean) * r)
            expected = exact.astype(dtype)
        for _ in range(3):
            y = an.batch_norm(x, mean=mean, var=var, eps=eps)
            np.testing.assert_allclose(y, expected, rtol=4 * float(np.finfo(dtype).eps), atol=0)


def test_torch_grad_mode_counts() -> None:
    """A known call is refused where it would hide a gradient, and follows each call's own mode and tensors."""
    torch: Any = pytest.importorskip("torch")
    x, out, weight = torch.from_numpy(X.copy()), torch.empty(6, 8, 5), torch.from_numpy(ROWS[0].copy())
    weight.requires_grad_()
    with torch.no_grad():
        for _ in range(3):
            assert an.layer_norm(x, weight, out=out) is out
    with pytest.raises(ValueError, match=r"out= cannot be used where a gradient is wanted, and weight requires one"):
        an.layer_norm(x, weight, out=out)
    mean, var = torch.from_numpy(MEAN), torch.from_numpy(VAR)
    channels = torch.ones(8, requires_grad=True)
    for _ in range(3):
        y = an.batch_norm(x, weight=channels, mean=mean, var=var)
        assert y.requires_grad
        (found,) = torch.autograd.grad(y.sum(), channels)
        exact = torch.nn.functional.batch_norm(x.double(), mean.double(), var.double()).sum((0, 2))
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        assert not an.batch_norm(x, weight=channels, mean=mean, var=var).requires_grad
        for _ in range(3):
            an.batch_norm(x, mean=mean.requires_grad_(), var=var)
    with watched() as jobs:  # whatever they are to it, only the formula knows what is to be recorded
        an.batch_norm(x, mean=mean, var=var)
    assert not jobs


def test_torch_sees_that_out_has_changed() -> None:
    """What autograd has saved must not be written over unnoticed, nor an inference tensor outside of that mode."""
    torch: Any = pytest.importorskip("torch")
    x, out = torch.from_numpy(X.copy()), torch.ones(6, 8, 5)
    leaf = torch.ones(6, 8, 5, requires_grad=True)
    for _ in range(3):
        product = leaf * out
        an.layer_norm(x, out=out)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()
    with torch.inference_mode():
        inferred = torch.empty(6, 8, 5)
        for _ in range(3):
            assert an.layer_norm(x, out=inferred) is inferred
    for _ in range(2):
        with pytest.raises(ValueError, match="inference tensor"):
            an.layer_norm(x, out=inferred)


@each_library(["numpy", "torch"])
def test_gradients_with_given_statistics(library: ArrayLibrary) -> None:
    """A pullback goes by the statistics that the forward pass took, in the same numbers, by the engine."""
    x, dy = library.make(X), library.make(np.cos(X))
    mean, var, weight = library.make(MEAN), library.make(VAR), library.make(COLUMNS[2])
    bias = library.make(COLUMNS[3])
    r = 1 / np.sqrt(VAR.astype(np.float64) + 1e-5).reshape(-1, 1)
    g = np.cos(X).astype(np.float64)
    for _ in range(3):
        with watched() as jobs:
            y, pullback = an.vjp(an.batch_norm, x, weight=weight, bias=bias, mean=mean, var=var)
            dx, dweight, dbias = [library.to_numpy(value) for value in pullback(dy)]
        assert len(jobs) == 2
        np.testing.assert_array_equal(
            library.to_numpy(y),
            library.to_numpy(an.batch_norm(x, weight=weight, bias=bias, mean=mean, var=var)),
        )
        np.testing.assert_allclose(dx, g * COLUMNS[2].reshape(-1, 1) * r, rtol=1e-6)
        np.testing.assert_allclose(dweight, (g * (X - MEAN.reshape(-1, 1)) * r).sum((0, 2)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dbias, g.sum((0, 2)), rtol=1e-5, atol=1e-5)


def test_limits_of_given_statistics_are_the_formulas() -> None:
    """The kernels, whose cache does not see other packages, have the formula's limits as numbers of their own."""
    from anynorm.backend import FLOAT32, FLOAT64, formula
    from anynorm_numba import _statistics

    found = {FLOAT32: _statistics.GIVEN_FLOAT32, FLOAT64: _statistics.GIVEN_FLOAT64}
    assert found == formula.LARGE


def test_memory_of_numpy_that_is_apart() -> None:
    """Memory that touches is apart; what is not certain is not said to be."""
    from anynorm_numpy._backend import _memory, _span

    def _lies_apart(out: NumPyArray, x: NumPyArray, others: tuple[NumPyArray | None, ...]) -> bool:
        return may_be_written(out, x, others, _span, _memory)

    room: NumPyArray = np.zeros(64, np.float32)
    x, out = room[:16], room[16:32]
    assert _lies_apart(out, x, (room[32:40], None))
    assert _lies_apart(x, x, (out,))
    assert not _lies_apart(out, room[1:17], ())
    assert not _lies_apart(out, x, (room[31:33],))
    assert not _lies_apart(room[::4], x, ())
    assert not _lies_apart(out[::-1], room[1:17], ())
    assert _lies_apart(out[::-2], x[::-2], (room[32:40:3],))
    assert _lies_apart(room[::2], room[1::2], ())
    assert _lies_apart(x[:], x, ())
    assert not _lies_apart(x[::-1], x, ())
    assert not _lies_apart(x[:], x, (x[3:4],))
