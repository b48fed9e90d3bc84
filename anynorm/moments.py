"""Count, mean and spread of sets of numbers: measured accurately, merged accurately.

Holds the statistics as values: how they are measured, added and read. Which statistics a norm uses, and how they are
carried from step to step, belongs to the norms.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

from anynorm._array import Array, Library, Number, check_array, described, real_number
from anynorm._dispatch import library_of, measure, run
from anynorm._formula import Saved
from anynorm._plan import AxesLike, axes_argument, over_axes, show
from anynorm._prepare import Call, check_beside, check_companion, prepare


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of each set of numbers.

    A NamedTuple, hence a pytree. `+` merges the statistics of disjoint sets, of one library, dtype and shape, and so
    does Python's `sum`; the moments of nothing, with n = 0, are its identity.

    Means are rounded to the compute dtype: with u, half an ulp of the mean, a merge moves m2 by 2·u·√(n·m2) + n·u² at
    most. That matters where u is not small beside the standard deviation: measure float64 there.

    Attributes
    ----------
    n : int or array
        Elements per set: an int, or a 0-d array where it was traced or merged with such (in the compute dtype, so exact
        up to 2²⁴ in float32).
    mean : array
        Mean of each set, in the compute dtype; 0 where n is 0.
    m2 : array
        Σ(x − mean)² of each set, in the compute dtype.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> x = np.asarray([1.0, 2.0, 3.0, 6.0])
    >>> whole = an.moments(x[:1]) + an.moments(x[1:])
    >>> whole.n, float(whole.mean), float(whole.m2)
    (4, 3.0, 14.0)

    """

    n: Any
    mean: Any
    m2: Any

    def __add__(self, other: object) -> Moments:  # a tuple's + concatenates
        """Return the moments of both sets together."""
        # Raised and not left to Python by NotImplemented: a tuple would concatenate, an array add to every field.
        if not isinstance(other, Moments):
            advice = "Pass what moments(...) returned."
            msg = f"Moments + other: other must be a Moments too, got {described(other)}. {advice}"
            raise TypeError(msg)
        # The moments of nothing are the identity whatever stands in them, so that Moments(0, 0.0, 0.0) starts a sum.
        if isinstance(other.n, Integral) and not other.n:
            return self
        if isinstance(self.n, Integral) and not self.n:
            return other
        n, m, library = _check_alike(self, other)
        return library.there(self.mean, self._merged, other, n, m, library.xp)  # type: ignore[no-any-return]

    def _merged(self, other: Moments, n: Any, m: Any, xp: Any) -> Moments:
        """Return the moments of both sets together; n and m are their counts, which may be arrays."""
        total = n + m
        # Where counts are traced, either may be 0: no division by it, and no distance, whose square may overflow.
        divisor = xp.where(total > 0, total, xp.ones_like(total)) if is_array(total) else total
        share = m / divisor
        delta = other.mean - self.mean
        # The weighted mean is less accurate where the means are close, but between any two it does not overflow.
        weighted = self.mean * (n / divisor) + other.mean * share
        mean = xp.where(xp.isfinite(delta), self.mean + delta * share, weighted)
        for count in (n, m):
            if is_array(count):
                delta = xp.where(count > 0, delta, xp.zeros_like(delta))
        return Moments(total, mean, self.m2 + other.m2 + delta * (n * share) * delta)

    def __radd__(self, other: object) -> Moments:
        """Let sum() start from its 0."""
        return self + (Moments(0, 0.0, 0.0) if isinstance(other, int) and other == 0 else other)

    def var(self, correction: Number = 0) -> Any:
        """Return the variance m2 / max(n − correction, 0), NaN where that divisor is 0.

        Parameters
        ----------
        correction : int or float
            Degrees of freedom taken off: 0 for the variance of the set itself, 1 for Bessel's correction.

        """
        n, library = check_moments("Moments.var", "", self)
        taken = real_number("Moments.var", "correction", correction)
        return library.there(self.mean, self._over, n, taken, library.xp)

    def _over(self, n: Any, taken: float, xp: Any) -> Any:
        """Return m2 / max(n − taken, 0), NaN where that divisor is 0."""
        divisor = xp.astype(n, self.m2.dtype) - taken if is_array(n) else xp.full_like(self.m2, n - taken)
        return self.m2 / xp.where(divisor > 0, divisor, xp.full_like(divisor, float("nan")))


def moments(x: Array, /, *, axis: AxesLike = None, keepdims: bool = False) -> Moments:
    """Return count, mean and sum of squared deviations of x over `axis`.

    mean = Σx/n and m2 = Σ(x − mean)², each accurate to the compute dtype's rounding whatever the mean, the scale, the
    axis or the library.

    Parameters
    ----------
    x : array
        Of any shape but 0-d; float16, bfloat16, float32 or float64.
    axis : int, tuple of int or None
        The axes that are reduced; None for all.
    keepdims : bool
        Keep the reduced axes with length 1.

    Returns
    -------
    Moments
        `n` is an int; `mean` and `m2` have the dtype result_type(x, float32). Over an empty axis all three are 0.

    Raises
    ------
    TypeError
        x is not an array or not of a real floating dtype; axis is not an integer.
    AxisError
        An axis is out of range. It is a ValueError and an IndexError.
    ValueError
        axis is empty or names an axis twice; x is 0-d.

    Examples
    --------
    >>> import numpy as np
    >>> import anynorm as an
    >>> batch = an.moments(np.asarray([[1.0, 2.0], [3.0, 6.0]]), axis=0)
    >>> batch.mean.tolist(), batch.var(correction=1).tolist()
    ([2.0, 4.0], [2.0, 8.0])

    """
    call = moments_call(x, axis=axis)
    with call.library.quiet():
        mean, m2 = call.library.there(call.x, _unscaled, measure(call))
    return Moments(call.plan.n, mean, m2) if keepdims else _squeezed(call, mean, m2)


def moments_call(x: Array, /, *, axis: AxesLike = None, keepdims: bool = False) -> Call:  # noqa: ARG001  the same either way
    """Check and plan `moments`."""
    return prepare("moments", x, over_axes, (axes_argument("moments", "axis", axis), True))


def _check_alike(one: Moments, other: Moments) -> tuple[Any, Any, Library]:
    """Return both counts in the dtype of the means and the library; raise unless the moments belong together."""
    function = "Moments + Moments"
    n, library = check_moments(function, "", one)
    check_companion(function, "the other mean", other.mean, one.mean, library, "mean")
    m, _ = check_moments(function, "the other ", other)
    advice = "Merge the moments of parts that were measured over the same axes of arrays of one dtype."
    _check_same(function, "the means", one.mean, other.mean, library, advice)
    counts = [library.there(its, library.astype, its, one.mean.dtype) if is_array(its) else its for its in (n, m)]
    return counts[0], counts[1], library


def check_moments(function: str, whose: str, its: Moments) -> tuple[Any, Library]:
    """Return n, an int or an array, and the library; raise unless n, mean and m2 fit together.

    `whose` goes before the names of the fields in errors.
    """
    mean, m2 = f"{whose}mean", f"{whose}m2"
    library = library_of(function, mean, its.mean)
    check_array(function, mean, its.mean, library)
    check_companion(function, m2, its.m2, its.mean, library, mean)
    advice = "Pass what moments(...) or batch_norm(..., return_moments=True) returned."
    _check_same(function, f"{mean} and m2", its.mean, its.m2, library, advice)
    return _count(function, whose, its, library), library


def _check_same(function: str, which: str, one: Any, other: Any, library: Library, advice: str) -> None:
    """Raise unless two arrays have one dtype and one shape."""
    for what, error, mine, its in (
        ("dtype", TypeError, one.dtype, other.dtype),
        ("shape", ValueError, library.shape(one), library.shape(other)),
    ):
        if mine != its:
            msg = f"{function}: {which} must have one {what}, got {mine} and {its}. {advice}"
            raise error(msg)


def _count(function: str, whose: str, its: Moments, library: Library) -> Any:
    """Return n as an int, or as the array that it is; raise where it is neither."""
    n = its.n
    if isinstance(n, Integral) and not isinstance(n, bool):
        return n if isinstance(n, int) else int(n)
    if not is_array(n):
        # A length that a compiler leaves open (torch.SymInt) is no int, but can become one.
        if hasattr(n, "__index__") and not isinstance(n, bool):
            return n
        msg = f"{function}: {whose}n must be an int or a 0-d array, got {described(n)}. Pass the count, e.g. int(n)."
        raise TypeError(msg)
    check_beside(function, f"{whose}n", n, its.mean, library, f"{whose}mean")
    if library.shape(n) not in ((), library.shape(its.mean)):
        msg = (
            f"{function}: {whose}n has shape {show(library.shape(n))}, but {whose}mean has shape "
            f"{show(library.shape(its.mean))}. Pass an int or a 0-d array, the number of elements in each set."
        )
        raise ValueError(msg)
    return n


def is_array(n: Any) -> bool:
    """Say whether a count is an array: counts are also ints, and whatever stands for one under a compiler."""
    return not isinstance(n, int) and hasattr(n, "dtype")


def run_with_moments(call: Call) -> tuple[Any, Moments]:
    """Compute y and, from the same pass, the moments of each set, which are constants to differentiation."""
    y, saved = run(call, save=True)
    return y, moments_of(call, saved)


def moments_of(call: Call, saved: Saved) -> Moments:
    """Return what a call learned of its sets as moments, which are constants to differentiation."""
    constant = call.library.constant
    with call.library.quiet():
        return _squeezed(call, *[constant(its) for its in call.library.there(call.x, _unscaled, saved)])


def _unscaled(saved: Saved) -> tuple[Any, Any]:
    """Return mean and m2 in x's own units."""
    scale = saved.scale
    return (saved.mean + saved.correction) / scale, saved.m2 / scale / scale


def _squeezed(call: Call, mean: Any, m2: Any) -> Moments:
    """Return the moments without the reduced axes."""
    plan, xp = call.plan, call.library.xp
    if plan.reduced:
        mean, m2 = [xp.squeeze(its, axis=plan.reduced) for its in (mean, m2)]
    return Moments(plan.n, mean, m2)
