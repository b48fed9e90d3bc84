"""The reference itself, against exact rational arithmetic: whoever judges the library must be judged first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from libraries import ALL_DTYPES, NumPyArray, numpy_dtype

from anynorm import _reference

# precision in bits, exponent of the smallest normal number: IEEE 754 and bfloat16, written down once more.
_FORMATS = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126), "float64": (53, -1022)}

# Sets of three rows of four, hostile in one way each; scaled to float16's range where it has to be.
SETS: dict[str, list[list[float]]] = {
    "ordinary": [[1.5, -2.25, 3.0, 0.75], [10, 11, 12, 14], [-1, 1, -1, 1]],
    "offset_1e6": [[1e6, 1e6 + 1, 1e6 - 2, 1e6 + 0.5], [-1e6, -1e6 + 0.125, -1e6, -1e6], [6e4, 6e4 + 32, 6e4, 6e4]],
    "1e30": [[1e30, -2e30, 3e30, 1e29], [1e30, 1e30, 1e30, 1.0000002e30], [3e38, -3e38, 3e38, 1]],
    "1e-30": [[1e-30, -2e-30, 3e-30, 1e-31], [1e-37, 1e-36, 2e-37, 0], [1e-30, 1e-30, 1e-30, 1.0000002e-30]],
    "subnormal": [[2.0**-149, 0, 3 * 2.0**-149, 0], [2.0**-133, 2.0**-133, 0, 0], [2.0**-24, 2.0**-23, 0, 0]],
    "float64_limits": [[1e300, -1e300, 1.7e308, 0], [5e-324, 0, 1e-323, 0], [1e-300, 1e300, 1, -1]],
    "constant": [[0.1] * 4, [1000000.1] * 4, [0.0] * 4],
}


def _sqrt(value: Fraction) -> Fraction:
    """Return the square root to 60 digits."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -9999, 9999
        return Fraction((Decimal(value.numerator) / Decimal(value.denominator)).sqrt())


def _normalized(values: list[Fraction], eps: Fraction, centres: bool) -> list[Fraction]:
    """Return x̂ of one set, by the definition; 0 where variance and eps are 0."""
    mean = sum(values, Fraction(0)) / len(values) if centres else Fraction(0)
    total = sum(((value - mean) ** 2 for value in values), Fraction(0)) / len(values) + eps
    return [(value - mean) / _sqrt(total) if total else Fraction(0) for value in values]


def _ulp(value: Fraction, dtype: str) -> Fraction:
    """Return the distance of numbers of `dtype` around a value."""
    bits, smallest = _FORMATS[dtype]
    if not value:
        return Fraction(2) ** (smallest - bits + 1)
    exponent = math.floor(math.log2(abs(value.numerator)) - math.log2(value.denominator))
    exponent += (abs(value) >= Fraction(2) ** (exponent + 1)) - (abs(value) < Fraction(2) ** exponent)
    return Fraction(2) ** (max(exponent, smallest) - bits + 1)


def _bound(unit: Fraction, weight: Fraction, bias: Fraction, dtype: str) -> tuple[Fraction, Fraction]:
    """Return the contract's bound: ½ ulp(y) + 4·eps(C)·(|x̂·weight| + |weight| + |bias|) + tiny.

    Twice: next to a power of two, where ulp jumps, longdouble may round y to the other side.
    """
    _, smallest = _FORMATS[dtype]
    eps = Fraction(2) ** (1 - (53 if dtype == "float64" else 24))
    scaled = unit * weight
    rest = 4 * eps * (abs(scaled) + abs(weight) + abs(bias)) + Fraction(2) ** smallest
    nudge = Fraction(2) ** -60
    y = scaled + bias
    return _ulp(y * (1 - nudge), dtype) / 2 + rest, _ulp(y * (1 + nudge), dtype) / 2 + rest


def _fraction(value: Any) -> Fraction:
    """Return a longdouble, or any narrower number, without rounding it."""
    mantissa, exponent = np.frexp(np.longdouble(value))
    whole = int(np.ldexp(mantissa, 64))
    return Fraction(whole) * Fraction(2) ** (int(exponent) - 64)


def _compare(reference: _reference.Reference, units: Any, weights: Any, biases: Any, dtype: str) -> None:
    """Raise unless the reference is exact to a thousandth of the bound, and its bound to a millionth of itself."""
    shape = reference.exact.shape
    operands: list[Any] = [
        np.broadcast_to(np.asarray(value, dtype=object), shape) for value in (units, weights, biases)
    ]
    for index in np.ndindex(shape):
        unit, weight, bias = [operand[index] for operand in operands]
        low, high = _bound(unit, weight, bias, dtype)
        assert abs(_fraction(reference.exact[index]) - (unit * weight + bias)) <= low / 1000
        margin = 1 + Fraction(1, 10**6)
        assert low / margin <= _fraction(reference.bound[index]) <= high * margin


def _rows(name: str, dtype: str) -> NumPyArray:
    with np.errstate(over="ignore", under="ignore"):
        rows: NumPyArray = np.asarray(SETS[name]).astype(numpy_dtype(dtype))
    rows = rows[np.isfinite(rows.astype("float64")).all(axis=1)]
    if not len(rows):
        pytest.skip(f"{name} is out of range for {dtype}")
    return rows


def _as_computed(value: float, dtype: str) -> Fraction:
    """Return a parameter as the compute dtype holds it."""
    return Fraction(float(np.float64(value) if dtype == "float64" else np.float32(value)))


@pytest.mark.skipif(not _reference.CHECKS_FLOAT64, reason="longdouble is no wider than double here")
@pytest.mark.parametrize("centres", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("eps", [0.0, 2.0**-126, 1e-5, 1.0])
@pytest.mark.parametrize("name", list(SETS))
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_reference_is_exact_on_hostile_sets(dtype: str, name: str, eps: float, centres: bool) -> None:
    """Result and bound are those of rational arithmetic, with and without weight and bias."""
    rows = _rows(name, dtype)
    weight, bias = np.asarray([1.1, -0.3, 0.0, 7.0]), np.asarray([0.1, 0.0, -2.0, 1e-3])
    function = _reference.layer_norm if centres else _reference.rms_norm
    units = [_normalized([_fraction(value) for value in row], Fraction(eps), centres) for row in rows]
    for given in ((None, None), (weight, None), (weight, bias)):
        w, b = (
            [_as_computed(value, dtype) for value in (default if values is None else values)]
            for values, default in zip(given, ([1] * 4, [0] * 4), strict=True)
        )
        _compare(function(rows, *given, eps=eps), units, w, b, dtype)


def _by_sets(x: NumPyArray, key: Any, eps: Fraction) -> NumPyArray:
    """Return x̂, where elements whose index gives the same key share a statistic."""
    indices = list(itertools.product(*map(range, x.shape)))
    unit = np.empty(x.shape, dtype=object)
    for same in {key(index) for index in indices}:
        members = [index for index in indices if key(index) == same]
        for index, value in zip(members, _normalized([_fraction(x[i]) for i in members], eps, True), strict=True):
            unit[index] = value
    return unit


# For x of shape (2, 4, 3): which elements share a statistic, spelled as a key of their index.
SHARING: dict[str, tuple[Callable[[NumPyArray], _reference.Reference], Callable[[Any], Any]]] = {
    "layer-axes": (lambda x: _reference.layer_norm(x, axis=(0, 2)), lambda i: i[1]),
    "layer-all": (lambda x: _reference.layer_norm(x, axis=None), lambda _: 0),
    "group": (lambda x: _reference.group_norm(x, 2), lambda i: (i[0], i[1] // 2)),
    "group-unbatched": (lambda x: _reference.group_norm(x, 2, batch_axis=None), lambda i: i[1] // 2),
    "group-batches": (lambda x: _reference.group_norm(x, 2, batch_axis=(2, 0)), lambda i: (i[0], i[2], i[1] // 2)),
    "group-first": (lambda x: _reference.group_norm(x, 2, channel_axis=0, batch_axis=-1), lambda i: (i[2], i[0])),
    "instance": (lambda x: _reference.instance_norm(x), lambda i: i[:2]),
    "instance-last": (lambda x: _reference.instance_norm(x, channel_axis=-1), lambda i: (i[0], i[2])),
    "batch": (lambda x: _reference.batch_norm(x), lambda i: i[1]),
    "batch-last": (lambda x: _reference.batch_norm(x, channel_axis=-1), lambda i: i[2]),
}


@pytest.mark.parametrize("name", list(SHARING))
def test_reference_shares_statistics_as_defined(name: str) -> None:
    """Each function's sets are those of its definition, element by element."""
    function, key = SHARING[name]
    x = np.random.default_rng(1).normal(3, 2, size=(2, 4, 3)).astype("float32")
    _compare(function(x), _by_sets(x, key, Fraction(1e-5)), Fraction(1), Fraction(0), "float32")


def test_reference_of_given_statistics() -> None:
    """With mean and var given, each element stands alone; weight and bias lie along the channels."""
    x = np.asarray([[1e6 + 1, 3e38], [-1, -3e38]], "float32")
    given = {"mean": [1e6, -3e38], "var": [2, 1e38], "weight": [3, -1], "bias": [0.5, 4]}
    arrays: dict[str, Any] = {name: np.asarray(values, "float32") for name, values in given.items()}
    m, v, w, b = ([Fraction(float(value)) for value in arrays[name]] for name in given)
    eps = Fraction(1e-3)
    unit = [[(Fraction(float(x[i, j])) - m[j]) / _sqrt(v[j] + eps) for j in range(2)] for i in range(2)]
    _compare(_reference.batch_norm(x, **arrays, eps=1e-3), unit, w, b, "float32")


def test_parameters_lie_where_they_are_said_to() -> None:
    """Weights of the reduced axes' shape, of the channels', and of x's number of axes are laid out differently."""
    x = np.random.default_rng(1).normal(size=(2, 4, 3))
    w = np.arange(1.0, 9)
    plain = _reference.layer_norm(x, axis=(0, 1)).exact
    assert (_reference.layer_norm(x, w.reshape(2, 4), axis=(1, 0)).exact == plain * w.reshape(2, 4, 1)).all()
    assert (_reference.layer_norm(x, w.reshape(2, 4, 1), axis=(0, 1)).exact == plain * w.reshape(2, 4, 1)).all()
    plain = _reference.group_norm(x, 2).exact
    assert (_reference.group_norm(x, 2, w[:4]).exact == plain * w[:4].reshape(4, 1)).all()
    assert (_reference.group_norm(x, 2, None, w[:6].reshape(2, 1, 3)).exact == plain + w[:6].reshape(2, 1, 3)).all()


def test_units_measure_the_error_in_bounds() -> None:
    """The exact value is 0 units off, a value at the bound 1, and NaN or infinity out of place infinitely many."""
    x = np.asarray([[1.0, 2.0, 4.0]])
    reference = _reference.layer_norm(x, np.asarray([0.0, 0.0, 1.0]), np.asarray([1.0, 2.0, 0.0]))
    exact = reference.exact.astype("float64")
    assert reference.units(exact) < 0.2
    off = exact + np.asarray([[0.0, 0.0, 3.0]]) * reference.bound.astype("float64")
    assert reference.units(off) == pytest.approx(3, abs=0.2)
    for wrong in (np.nan, np.inf, -np.inf):
        assert reference.units(np.where([[False, True, False]], wrong, exact)) == np.inf
    with pytest.raises(ValueError, match="shape"):
        reference.units(exact[0])


def test_nan_is_expected_where_the_contract_puts_it() -> None:
    """A NaN spoils its set, and so does an infinity in a centred one; else an infinity is alone, with zeros beside."""
    x = np.asarray([[1.0, np.inf, 2.0], [1.0, np.nan, 2.0], [1.0, 3.0, 2.0]])
    centred, plain = _reference.layer_norm(x), _reference.rms_norm(x)
    assert np.isnan(centred.exact).tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert np.isnan(plain.exact).tolist() == [[False, True, False], [True] * 3, [False] * 3]
    assert plain.exact[0, [0, 2]].tolist() == [0, 0]
    assert centred.units(np.zeros((3, 3))) == np.inf


def test_results_out_of_range_are_not_judged() -> None:
    """Where the exact result is beyond the dtype's largest number, whatever came is accepted; next to it, not."""
    x = np.asarray([[-1.0, 1.0]], "float16")
    reference = _reference.layer_norm(x, np.asarray([1e5, 1.0], "float32"), eps=0.0)
    assert reference.units(np.asarray([[-np.inf, 1.0]], "float16")) <= 1
    assert reference.units(np.asarray([[-np.inf, 2.0]], "float16")) > 1


def test_layout_does_not_matter() -> None:
    """A channel among others has the bits that it has alone: its sums are pairwise, however it lies in memory."""
    x = np.random.default_rng(0).normal(0.5, 0.05, size=(30_000, 3))
    among = _reference.batch_norm(x, channel_axis=-1, eps=1e-12).exact
    for channel in range(3):
        alone = _reference.layer_norm(x[:, channel].copy(), eps=1e-12).exact
        np.testing.assert_array_equal(among[:, channel], alone)
