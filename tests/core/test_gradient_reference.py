"""The gradients' reference itself, against difference quotients in 150 decimal digits: no formula of a derivative."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from libraries import ALL_DTYPES, NumPyArray, numpy_dtype

from anynorm import _reference
from anynorm._reference_gradients import Gradients, gradients

# The rounding of a quotient is 10^-150 of x over the step, its curvature the square of the step.
DIGITS = Context(prec=150, Emin=-(10**6), Emax=10**6)
STEP = Decimal(10) ** -40

# precision in bits, exponent of the smallest normal number: IEEE 754 and bfloat16, written down once more.
FORMATS = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126), "float64": (53, -1022)}

needs_wide_longdouble = pytest.mark.skipif(
    not _reference.CHECKS_FLOAT64, reason="longdouble is no wider than double here"
)

# Which elements share a statistic, and which an element of weight or bias, spelled as keys of an index.
Key = Callable[[tuple[int, ...]], Any]


def _decimal(value: Any) -> Decimal:
    """Return a longdouble, or any narrower number, without rounding it."""
    mantissa, exponent = np.frexp(np.longdouble(value))
    return Decimal(int(np.ldexp(mantissa, 64))) * Decimal(2) ** (int(exponent) - 64)


def _array(values: Any, compute: str) -> Any:
    """Return the values as exact decimals, rounded to the compute dtype first."""
    rounded = np.asarray(values).astype(compute)
    return np.asarray([_decimal(value) for value in rounded.reshape(-1)], object).reshape(rounded.shape)


class Definition:
    """A norm by its definition on exact decimals: sets and parameters are keys of an index, statistics may be given."""

    def __init__(self, same_set: Key, along: Key, eps: float, *, centres: bool = True, given: Any = None) -> None:
        self.same_set, self.along, self.eps = same_set, along, Decimal(eps)
        self.centres, self.given = centres, given

    def statistics(self, x: Any) -> dict[Any, tuple[Decimal, Decimal]]:
        """Return the mean and √(var + eps) of each set."""
        found = {}
        for key in {self.same_set(index) for index in np.ndindex(x.shape)}:
            if self.given is not None:
                mean, var = [array[key] for array in self.given]
            else:
                members = [x[index] for index in np.ndindex(x.shape) if self.same_set(index) == key]
                mean = sum(members) / len(members) if self.centres else Decimal(0)
                var = sum((member - mean) ** 2 for member in members) / len(members)
            found[key] = mean, (var + self.eps).sqrt()
        return found

    def value(self, x: Any, weight: Any, bias: Any, dy: Any) -> Decimal:
        """Return Σ dy·y, of which the gradients are the derivatives."""
        total = Decimal(0)
        statistics = self.statistics(x)
        for index in np.ndindex(x.shape):
            mean, root = statistics[self.same_set(index)]
            own = self.along(index)
            total += dy[index] * ((x[index] - mean) / root * weight[own] + bias[own])
        return total

    def slopes(self, arrays: dict[str, Any], name: str) -> Any:
        """Return the derivative of `value` by every element of one argument."""
        roots = {key: root for key, (_, root) in self.statistics(arrays["x"]).items()}
        slopes = np.empty(arrays[name].shape, object)
        for index in np.ndindex(slopes.shape):
            step = STEP * (roots[self.same_set(index)] if name == "x" else 1)
            at = []
            for sign in (1, -1):
                moved = arrays[name].copy()
                moved[index] += sign * step
                at.append(self.value(**(arrays | {name: moved})))
            slopes[index] = (at[0] - at[1]) / (2 * step)
        return slopes

    def sizes(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Return what stands beside 16·eps(C) in the contract's bound, for each gradient."""
        x, weight, dy = arrays["x"], arrays["weight"], arrays["dy"]
        statistics, every = self.statistics(x), list(np.ndindex(x.shape))
        unit: dict[Any, Decimal] = {}
        for i in every:
            mean, root = statistics[self.same_set(i)]
            unit[i] = abs(x[i] - mean) / root + 1
        g = {i: abs(dy[i] * weight[self.along(i)]) for i in every}
        sizes = {name: np.full(arrays[name].shape, Decimal(0)) for name in ("x", "weight", "bias")}
        for i in every:
            members = [j for j in every if self.same_set(j) == self.same_set(i)]
            mean_g = sum(g[j] for j in members) / len(members)
            mean_gx = sum(g[j] * unit[j] for j in members) / len(members)
            sizes["x"][i] = (g[i] + mean_g + unit[i] * mean_gx) / statistics[self.same_set(i)][1]
            sizes["weight"][self.along(i)] += abs(dy[i]) * unit[i]
            sizes["bias"][self.along(i)] += abs(dy[i])
        return sizes


def _half_ulp(value: Decimal, dtype: str) -> Decimal:
    bits, smallest = FORMATS[dtype]
    exponent = smallest
    if value:
        exact = abs(Fraction(value))
        exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
        exponent -= exact < Fraction(2) ** exponent
    return Decimal(2) ** (max(exponent, smallest) - bits)


def _compare(found: Gradients, definition: Definition, arrays: dict[str, Any], dtypes: dict[str, str]) -> None:
    """Raise unless each gradient is exact to a thousandth of its bound, and the bound to a millionth of itself."""
    compute = "float64" if dtypes["x"] == "float64" else "float32"
    with localcontext(DIGITS):
        exact = {name: _array(array, compute) for name, array in arrays.items()}
        sizes = definition.sizes(exact)
        eps = Decimal(2) ** (1 - FORMATS[compute][0])
        for name in ("x", "weight", "bias"):
            reference = getattr(found, name)
            slopes = definition.slopes(exact, name)
            assert reference.exact.shape == reference.bound.shape == slopes.shape
            for index in np.ndindex(slopes.shape):
                rest = 16 * eps * sizes[name][index] + Decimal(2) ** FORMATS[dtypes[name]][1]
                # Next to a power of two, where an ulp doubles, longdouble may round to the other side.
                nudge = 1 + Decimal(2) ** -60
                low, high = [
                    rest + _half_ulp(value, dtypes[name]) for value in (slopes[index] / nudge, slopes[index] * nudge)
                ]
                assert abs(_decimal(reference.exact[index]) - slopes[index]) <= low / 1000
                assert low / Decimal("1.000001") <= _decimal(reference.bound[index]) <= high * Decimal("1.000001")


# Rows hostile in one way each; scaled to the dtype's range where it has to be. Of five, so that means are rounded.
SETS: dict[str, list[list[float]]] = {
    "ordinary": [[1.5, -2.25, 3.0, 0.75, 0.1], [10, 11, 12, 14, 11], [-1, 1, -1, 1, 1]],
    "offset_1e6": [
        [1e6, 1e6 + 1, 1e6 - 2, 1e6 + 0.5, 1e6],
        [-1e6 + 0.125] + [-1e6] * 4,
        [6e4, 6e4 + 32, 6e4, 6e4, 6e4],
    ],
    "1e30": [[1e30, -2e30, 3e30, 1e29, 0], [1e30, 1e30, 1e30, 1.0000002e30, 1e30], [3e38, -3e38, 3e38, 1, 0]],
    "1e-30": [[1e-30, -2e-30, 3e-30, 1e-31, 0], [1e-37, 1e-36, 2e-37, 0, 0], [1e-30, 1e-30, 1e-30, 1.0000002e-30, 0]],
    "float64_limits": [[1e300, -1e300, 1.7e308, 0, 0], [5e-324, 0, 1e-323, 0, 0], [1e-300, 1e300, 1, -1, 0]],
    "constant": [[0.1] * 5, [1000000.1] * 5, [0.0] * 5],
}


def _rows(name: str, dtype: str, varied: bool) -> NumPyArray:
    """Return the rows that the dtype can hold; only those with two values or more, where asked."""
    with np.errstate(over="ignore", under="ignore"):
        rows: NumPyArray = np.asarray(SETS[name]).astype(numpy_dtype(dtype))
    rows = rows[np.isfinite(rows.astype("float64")).all(axis=1)]
    if varied:
        rows = rows[rows.min(axis=1) < rows.max(axis=1)]
    if not len(rows):
        pytest.skip(f"no row of {name} can be had in {dtype}, or has a slope at eps=0")
    return rows


@needs_wide_longdouble
@pytest.mark.parametrize("centres", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("eps", [0.0, 2.0**-126, 1e-5, 1.0])
@pytest.mark.parametrize("name", list(SETS))
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_exact_on_hostile_sets(dtype: str, name: str, eps: float, centres: bool) -> None:
    """Gradients are the slopes of the definition, and the bound is the contract's."""
    rows = _rows(name, dtype, varied=eps == 0)
    random = np.random.default_rng(3)
    arrays: dict[str, Any] = {"x": rows, "dy": random.normal(size=rows.shape)}
    arrays |= {"weight": np.asarray([1.1, -0.3, 0, 7, 2]), "bias": np.asarray([0.1, 0, -2, 1e-3, 5])}
    definition = Definition(lambda i: i[0], lambda i: i[1:], eps, centres=centres)
    dtypes = dict.fromkeys(("x", "weight", "bias"), dtype) | {"weight": "float64", "bias": "float64"}
    found = gradients("layer_norm" if centres else "rms_norm", **arrays, eps=eps)
    _compare(found, definition, arrays, dtypes)


# For x of shape (2, 4, 3): the call, the shape of weight and bias, and the keys.
SHARING: dict[str, tuple[str, tuple[int, ...], dict[str, Any], tuple[int, ...], Key, Key]] = {
    "layer": ("layer_norm", (), {}, (3,), lambda i: i[:2], lambda i: i[2:]),
    "layer-axes": ("layer_norm", (), {"axis": (-1, 0)}, (2, 3), lambda i: i[1], lambda i: (i[0], i[2])),
    "layer-all": ("layer_norm", (), {"axis": None}, (2, 4, 3), lambda _: 0, lambda i: i),
    "layer-broadcast": ("layer_norm", (), {}, (2, 1, 3), lambda i: i[:2], lambda i: (i[0], 0, i[2])),
    "rms": ("rms_norm", (), {"axis": 1}, (4,), lambda i: (i[0], i[2]), lambda i: (i[1],)),
    "rms-one": ("rms_norm", (), {}, (1, 1, 1), lambda i: i[:2], lambda _: (0, 0, 0)),
    "group": ("group_norm", (2,), {}, (4,), lambda i: (i[0], i[1] // 2), lambda i: (i[1],)),
    "group-last": ("group_norm", (3,), {"channel_axis": -1}, (3,), lambda i: (i[0], i[2]), lambda i: (i[2],)),
    "group-unbatched": (
        "group_norm",
        (2,),
        {"batch_axis": None},
        (1, 4, 3),
        lambda i: i[1] // 2,
        lambda i: (0, *i[1:]),
    ),
    "group-batches": (
        "group_norm",
        (2,),
        {"batch_axis": (2, 0)},
        (4,),
        lambda i: (i[0], i[2], i[1] // 2),
        lambda i: (i[1],),
    ),
    "instance": ("instance_norm", (), {}, (2, 4, 1), lambda i: i[:2], lambda i: (i[0], i[1], 0)),
    "instance-last": (
        "instance_norm",
        (),
        {"channel_axis": 2, "batch_axis": -3},
        (3,),
        lambda i: (i[0], i[2]),
        lambda i: (i[2],),
    ),
    "batch": ("batch_norm", (), {}, (4,), lambda i: i[1], lambda i: (i[1],)),
    "batch-last": ("batch_norm", (), {"channel_axis": -1}, (3,), lambda i: i[2], lambda i: (i[2],)),
}


@needs_wide_longdouble
@pytest.mark.parametrize("name", list(SHARING))
def test_statistics_and_parameters_are_shared_as_defined(name: str) -> None:
    """Each function's sets, and the sums over what shares an element of a parameter, are those of its definition."""
    function, groups, options, shape, same_set, along = SHARING[name]
    random = np.random.default_rng(1)
    arrays: dict[str, Any] = {"x": random.normal(3, 2, size=(2, 4, 3)).astype("float32")}
    arrays["dy"] = random.normal(size=(2, 4, 3))
    arrays["weight"], arrays["bias"] = [random.normal(size=shape).astype(dtype) for dtype in ("float32", "float16")]
    eps = 1e-6 if function == "rms_norm" else 1e-5
    definition = Definition(same_set, along, eps, centres=function != "rms_norm")
    x, dy, weight, bias = [arrays[value] for value in ("x", "dy", "weight", "bias")]
    found = gradients(function, dy, x, *groups, weight=weight, bias=bias, **options)
    _compare(found, definition, arrays, {"x": "float32", "weight": "float32", "bias": "float16"})


@needs_wide_longdouble
def test_given_statistics_are_constants() -> None:
    """With mean and var given, nothing is differentiated through them, and an extreme mean does no harm."""
    given = [np.asarray(value, "float32") for value in ([1e6, -3e38], [2, 1e38])]
    arrays = {
        "x": np.asarray([[1e6 + 1, 3e38], [-1, -3e38]], "float32"),
        "weight": np.asarray([3, -1], "float32"),
        "bias": np.asarray([0.5, 4], "float32"),
        "dy": np.asarray([[0.3, 1.7], [-2.0, 1e-3]], "float32"),
    }
    definition = Definition(lambda i: i[1], lambda i: i[1:], 1e-3, given=[_array(array, "float32") for array in given])
    found = gradients("batch_norm", **arrays, mean=given[0], var=given[1], eps=1e-3)
    _compare(found, definition, arrays, dict.fromkeys(("x", "weight", "bias"), "float32"))


def test_constant_sets_at_eps_0_have_no_gradient() -> None:
    """Where var + eps is 0, r counts as 0: dx and dweight are exactly 0, dbias is not; so for given statistics."""
    x, dy = np.full((2, 3), 7.0, "float32"), np.asarray([[1.0, 2, 3], [4, 5, 6]])
    one = np.ones(3, "float32")
    mean, var = 7 * one, 0 * one
    for found in (
        gradients("layer_norm", dy, x, weight=one, bias=one, eps=0),
        gradients("rms_norm", dy, 0 * x, weight=one, bias=one, eps=0),
        gradients("batch_norm", dy, x, weight=one, bias=one, mean=mean, var=var, eps=0),
    ):
        assert found.weight is not None
        assert found.bias is not None
        assert not found.x.exact.any()
        assert not found.weight.exact.any()
        assert found.bias.exact.tolist() == [5, 7, 9]


def test_absent_parameters_have_no_gradient() -> None:
    """A parameter that was not given has None, and does not enter dx."""
    x, dy = np.random.default_rng(0).normal(size=(2, 3, 4))
    alone, both = gradients("layer_norm", dy, x), gradients("layer_norm", dy, x, weight=np.ones(4), bias=np.ones(4))
    assert alone[1:] == (None, None)
    assert (alone.x.exact == both.x.exact).all()


def test_cotangent_and_weight_are_rounded_to_the_compute_dtype() -> None:
    """A float64 dy or weight beside a float16 x counts as float32; sums are in bounds of the parameter's own dtype."""
    x = np.asarray([[1.0, 2, 4]], "float16")
    dy, weight = np.asarray([[1 + 2.0**-40, 1, 3]]), np.asarray([1, 1 + 2.0**-40, 5])
    found = gradients("rms_norm", dy, x, weight=weight, bias=weight.astype("float16"))
    rounded = gradients("rms_norm", dy.astype("float32"), x, weight=weight.astype("float32"))
    assert found.bias is not None
    assert (found.x.exact == rounded.x.exact).all()
    assert found.bias.exact.tolist() == [1, 1, 3]
    np.testing.assert_allclose(found.bias.bound[2].astype(float), 2.0**-10 + 2.0**-14, rtol=0.1)


def test_empty_arrays() -> None:
    """An x without elements has a dx without any, and sums over nothing are 0."""
    one = np.ones(6, "float32")
    for shape in ((0, 6, 5), (2, 6, 0)):
        for found in (
            gradients("batch_norm", np.zeros(shape), np.zeros(shape), weight=one, bias=one),
            gradients("batch_norm", np.zeros(shape), np.zeros(shape), weight=one, bias=one, mean=one, var=one),
            gradients("group_norm", np.zeros(shape), np.zeros(shape), 3, weight=one, bias=one),
        ):
            assert found.weight is not None
            assert found.x.exact.shape == shape
            assert found.weight.exact.tolist() == [0] * 6


def test_nan_is_expected_in_its_set_alone() -> None:
    """A NaN in x or dy makes dx of its set NaN, and the sums it is part of."""
    x, dy = np.random.default_rng(0).normal(size=(2, 3, 4))
    for poisoned in ("x", "dy"):
        arrays = {"x": x.copy(), "dy": dy.copy()}
        arrays[poisoned][1, 2] = np.nan
        found = gradients("layer_norm", **arrays, weight=np.ones(4))
        assert found.weight is not None
        assert np.isnan(found.x.exact).all(axis=1).tolist() == [False, True, False]
        assert np.isnan(found.x.exact).any(axis=1).tolist() == [False, True, False]
        assert np.isnan(found.weight.exact).tolist() == ([True] * 4 if poisoned == "x" else [False, False, True, False])
        assert found.x.units(np.zeros((3, 4))) == np.inf
