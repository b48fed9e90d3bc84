"""Count, mean and spread of sets of numbers: measured accurately, merged exactly.

Holds the statistics as values: how they are measured, added and read. Which statistics a norm uses, and how they are
carried from step to step, belongs to the norms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from anynorm._array import Array, Library, described
from anynorm._dispatch import Call, check_companion, library_of, measure, prepare, run
from anynorm._formula import Saved
from anynorm._plan import Axes, axes_argument, over_axes


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of each set of numbers.

    A NamedTuple, hence a pytree. `+` merges the statistics of disjoint sets, of one library, dtype and shape, and so
    does Python's `sum`; the moments of nothing, with n = 0, are its identity.

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
        if not isinstance(other, Moments):
            msg = f"Moments + other: other must be a Moments too, got {described(other)}."
            raise TypeError(msg)
        # The moments of nothing are the identity whatever stands in them, so that Moments(0, 0.0, 0.0) starts a sum.
        if isinstance(other.n, int) and not other.n:
            return self
        if isinstance(self.n, int) and not self.n:
            return other
        xp = _check_alike(self, other).xp
        n, m = [its if isinstance(its, int) else xp.astype(its, self.mean.dtype) for its in (self.n, other.n)]
        total = n + m
        # Where counts are traced, either may be 0: no division by it, and no distance, whose square may overflow.
        divisor = total if isinstance(total, int) else xp.where(total > 0, total, xp.ones_like(total))
        delta = other.mean - self.mean
        mean = self.mean + delta * (m / divisor)
        for count in (n, m):
            if not isinstance(count, int):
                delta = xp.where(count > 0, delta, xp.zeros_like(delta))
        return Moments(total, mean, self.m2 + other.m2 + delta * delta * (n * (m / divisor)))

    def __radd__(self, other: object) -> Moments:
        """Let sum() start from its 0."""
        return self + (Moments(0, 0.0, 0.0) if isinstance(other, int) and other == 0 else other)

    def var(self, correction: float = 0) -> Any:
        """Return the variance m2 / max(n − correction, 0), NaN where that divisor is 0.

        Parameters
        ----------
        correction : int or float
            Degrees of freedom taken off: 0 for the variance of the set itself, 1 for Bessel's correction.

        """
        xp = library_of("Moments.var", "m2", self.m2).xp
        divisor = _as_array(self.n - correction, self.m2, xp)
        return self.m2 / xp.where(divisor > 0, divisor, xp.full_like(divisor, float("nan")))


def moments(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Moments:
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
    mean, m2 = _unscaled(measure(call))
    return Moments(call.plan.n, mean, m2) if keepdims else _squeezed(call, mean, m2)


def moments_call(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Call:  # noqa: ARG001  the same either way
    """Check and plan `moments`."""
    return prepare("moments", x, over_axes, (axes_argument("moments", "axis", axis), True))


def _check_alike(one: Moments, other: Moments) -> Library:
    """Return the library of two Moments; raise unless they are of one library, device, dtype and shape."""
    library = library_of("Moments + Moments", "mean", one.mean)
    check_companion("Moments + Moments", "the other mean", other.mean, one.mean, library, "mean")
    for what, error in (("dtype", TypeError), ("shape", ValueError)):
        mine, its = getattr(one.mean, what), getattr(other.mean, what)
        if mine != its:
            msg = (
                f"Moments + Moments: the means must have one {what}, got {mine} and {its}. "
                "Merge the moments of parts that were measured over the same axes of arrays of one dtype."
            )
            raise error(msg)
    return library


def run_with_moments(call: Call) -> tuple[Any, Moments]:
    """Compute y and, from the same pass, the moments of each set, which are constants to differentiation."""
    y, saved = run(call, save=True)
    return y, moments_of(call, saved)


def moments_of(call: Call, saved: Saved) -> Moments:
    """Return what a call learned of its sets as moments, which are constants to differentiation."""
    constant = call.library.constant
    return _squeezed(call, *[constant(its) for its in _unscaled(saved)])


def _unscaled(saved: Saved) -> tuple[Any, Any]:
    """Return mean and m2 in x's own units."""
    return (saved.mean + saved.correction) / saved.scale, saved.m2 / saved.scale / saved.scale


def _squeezed(call: Call, mean: Any, m2: Any) -> Moments:
    """Return the moments without the reduced axes."""
    plan, xp = call.plan, call.library.xp
    if plan.reduced:
        mean, m2 = [xp.squeeze(its, axis=plan.reduced) for its in (mean, m2)]
    return Moments(plan.n, mean, m2)


def _as_array(n: Any, like: Any, xp: Any) -> Any:
    """Return a count as an array in the compute dtype."""
    return xp.full_like(like, n) if isinstance(n, int | float) else xp.astype(n, like.dtype)
