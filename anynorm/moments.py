"""Count, mean and spread of sets of numbers: measured accurately, merged accurately.

Holds the statistics as values: how they are measured, added and read. Which statistics a norm uses, and how they are
carried from step to step, belongs to the norms.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any, NamedTuple

from anynorm._array import Array, Library, Number, check_array, described, real_number
from anynorm._dispatch import library_of, measure, run
from anynorm._formula import Saved
from anynorm._merge import Measured, Rest, merged, of_numbers, of_saved, shares, spread, traced_shares
from anynorm._plan import AxesLike, axes_argument, over_axes, show
from anynorm._prepare import Call, check_beside, check_companion, prepare


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of each set of numbers.

    A NamedTuple, hence a pytree. `+` merges the statistics of disjoint sets, of one library, dtype and shape, and so
    do Python's `sum` and `Moments.merge`; the moments of nothing, with n = 0, are its identity.

    Merging is as accurate as measuring the whole at once, since `rest` carries what mean and m2 cannot hold: with eps
    of the compute dtype and the whole's standard deviation, the mean is right to its own half ulp and 4·eps
    deviations, m2 to 12·eps of itself; k merges in a row add k·eps²·|mean| to either's share, a tree log2(k) of it.

    Attributes
    ----------
    n : int or array
        Elements per set: an int, or an array of integers where it was traced or merged with such, 0-d or of mean's
        shape. JAX without x64 counts to 2³¹ − 1 there.
    mean : array
        Mean of each set, in the compute dtype; 0 where n is 0.
    m2 : array
        Σ(x − mean)² of each set, in the compute dtype; infinite or 0 where that is beyond or below its numbers, which
        neither var nor std minds. (Of a norm's own pass, `return_moments=True`, they mind what is below: squares beside
        which eps is large are not measured as carefully as `moments` does.)
    rest : Rest or None
        What mean and m2 cannot hold. None in moments made by hand, `Moments(n, mean, m2)`, whose numbers are then
        taken as exact. An m2 that is replaced counts as it is; who replaces the mean passes rest=None as well. A loop
        under `jax.lax.scan` starts from the moments of an empty array, which have all fields.

    The derivatives of var and std, which torch and JAX take step by step, hold for deviations between 1e-7 and 1e14
    (float32) or 1e-57 and 1e100 (float64): beyond, what is multiplied on the way leaves the range.

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
    rest: Rest | None = None

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
        with library.quiet():
            return library.there(self.mean, _merged, self, other, n, m, library)  # type: ignore[no-any-return]

    def __radd__(self, other: object) -> Moments:
        """Let sum() start from its 0."""
        return self + (Moments(0, 0.0, 0.0) if isinstance(other, int) and other == 0 else other)

    @classmethod
    def merge(cls, parts: Iterable[Moments], /) -> Moments:
        """Return the moments of all parts together, merged two by two as they come.

        Parameters
        ----------
        parts : iterable of Moments
            Of disjoint sets, of one library, dtype and shape. A generator is read once, and few of its parts are kept.

        Raises
        ------
        TypeError
            A part is not a Moments.
        ValueError
            There is none, or parts do not fit together.

        """
        if isinstance(parts, Moments):  # itself an iterable, of its fields
            msg = "Moments.merge: parts is one Moments. Pass an iterable of them, e.g. Moments.merge([one, other])."
            raise TypeError(msg)
        # The k-th entry holds the moments of 2ᵏ parts: merged as a binary counter carries.
        waiting: list[Moments | None] = []
        for part in parts:
            if not isinstance(part, Moments):
                advice = "Pass what moments(...) returned."
                msg = f"Moments.merge: every part must be a Moments, got {described(part)}. {advice}"
                raise TypeError(msg)
            merged, place = part, 0
            while place < len(waiting) and (earlier := waiting[place]) is not None:
                merged, waiting[place] = earlier + merged, None
                place += 1
            if place == len(waiting):
                waiting.append(merged)
            else:
                waiting[place] = merged
        found: Moments | None = None
        for its in waiting:
            if its is not None:
                found = its if found is None else its + found
        if found is None:
            msg = "Moments.merge: there are no parts. Pass at least one, such as the moments of an empty array."
            raise ValueError(msg)
        return found

    def var(self, correction: Number = 0) -> Any:
        """Return the variance m2 / max(n − correction, 0), NaN where that divisor is 0.

        It is in range wherever the quotient is, also where m2 is not; see `m2` for moments of a norm's own pass.

        Parameters
        ----------
        correction : int or float
            Degrees of freedom taken off: 0 for the variance of the set itself, 1 for Bessel's correction.

        """
        return self._spread("Moments.var", correction, root=False)

    def std(self, correction: Number = 0) -> Any:
        """Return the standard deviation √(m2 / max(n − correction, 0)), NaN where that divisor is 0.

        It is in range wherever the deviations are, also where the variance is not; see `m2` for moments of a norm's own
        pass.

        Parameters
        ----------
        correction : int or float
            As in `var`.

        """
        return self._spread("Moments.std", correction, root=True)

    def _spread(self, function: str, correction: Number, *, root: bool) -> Any:
        n, library = check_moments(function, "", self)
        taken = real_number(function, "correction", correction)
        with library.quiet():
            return library.there(self.mean, variance_of, self, n, taken, self.mean.dtype, library, root=root)


def _merged(one: Moments, other: Moments, n: Any, m: Any, library: Library) -> Moments:
    """Return the moments of both sets together; n and m are their counts, which may be arrays or open lengths."""
    xp, total = library.xp, n + m
    if isinstance(n, int) and isinstance(m, int) and not library.compiling():
        how = shares(n, m)
    else:
        n, m, both = [count_like(its, one.mean, library) for its in (n, m, total)]
        how = traced_shares(n, m, both, xp)
    found = library.fused(one.mean, merged, measured(one, xp), measured(other, xp), how, library=library)
    return Moments(total, *found)


def measured(its: Moments, xp: Any) -> Measured:
    """Return the statistics of moments without their count."""
    return of_numbers(its.mean, its.m2, xp) if its.rest is None else Measured(its.mean, its.m2, its.rest)


def count_like(n: Any, mean: Any, library: Library) -> Any:
    """Return a count, which may be an array or an open length, as an array in the dtype of the mean."""
    return library.astype(n, mean.dtype) if is_array(n) else library.xp.full_like(mean, n)


def at_least(n: Any, least: int, mean: Any, library: Library) -> Any:
    """Return a count, or `least` where it is smaller: for variances that are looked at nowhere else."""
    if isinstance(n, int) and not library.compiling():
        return max(n, least)
    counts = n if is_array(n) else count_like(n, mean, library)
    return library.xp.where(counts >= least, counts, library.xp.full_like(counts, least))


def variance_of(its: Moments, n: Any, taken: float, dtype: Any, library: Library, *, root: bool = False) -> Any:
    """Return m2 / max(n − taken, 0) in a dtype, or its root; NaN where that divisor is 0."""
    xp, own = library.xp, measured(its, library.xp)
    if isinstance(n, int) and not library.compiling() and n > taken:
        divisor, defined = n - taken, None
    else:
        divisor = library.astype(count_like(n, its.mean, library), dtype) - taken
        defined = divisor > 0
        divisor = xp.where(defined, divisor, xp.zeros_like(divisor))
    return library.fused(its.mean, spread, own, divisor, defined, dtype=dtype, root=root, library=library)


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
    saved, library = measure(call), call.library
    with library.quiet():
        return Moments(call.plan.n, *_of_call(call, saved, keepdims=keepdims))


def moments_call(x: Array, /, *, axis: AxesLike = None, keepdims: bool = False) -> Call:  # noqa: ARG001  the same either way
    """Check and plan `moments`."""
    return prepare("moments", x, over_axes, (axes_argument("moments", "axis", axis), True))


def _check_alike(one: Moments, other: Moments) -> tuple[Any, Any, Library]:
    """Return both counts and the library; raise unless the moments belong together."""
    function = "Moments + Moments"
    n, library = check_moments(function, "", one)
    check_companion(function, "the other mean", other.mean, one.mean, library, "mean")
    m, _ = check_moments(function, "the other ", other)
    advice = "Merge the moments of parts that were measured over the same axes of arrays of one dtype."
    _check_same(function, "the means", one.mean, other.mean, library, advice)
    n, m = library.there(one.mean, _counts, n, m, library)
    return n, m, library


def _counts(n: Any, m: Any, library: Library) -> tuple[Any, Any]:
    """Return both counts, arrays of integers in the library's default ones: narrow ones would wrap around.

    An array of floats, made by hand, stays one beside an int.
    """
    arrays = [its for its in (n, m) if is_array(its)]
    if all(library.format(its.dtype) is not None for its in arrays):
        return n, m
    xp = library.xp
    device = None if library.places_itself else getattr(arrays[0], "device", None)
    # torch.compile traces no such question; there, and before the standard had it, 64 bits are the default.
    asks = hasattr(xp, "__array_namespace_info__") and not library.compiling()
    integer = xp.__array_namespace_info__().default_dtypes(device=device)["integral"] if asks else xp.int64
    n, m = [library.astype(its, integer) if is_array(its) else its for its in (n, m)]
    return n, m


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
    if its.rest is not None:
        _check_rest(function, whose, its, library, advice)
    return _count(function, whose, its, library), library


def _check_rest(function: str, whose: str, its: Moments, library: Library, advice: str) -> None:
    """Raise unless the rest describes sets like those of the mean."""
    if not isinstance(its.rest, Rest):
        msg = f"{function}: {whose}rest must be a Rest or None, got {described(its.rest)}. {advice}"
        raise TypeError(msg)
    for part in its.rest:
        if part.dtype != its.mean.dtype or library.shape(part) != library.shape(its.mean):
            msg = (
                f"{function}: {whose}rest does not fit {whose}mean in shape or dtype. {advice} Where fields are "
                "reshaped or cast by hand, treat those of rest likewise, or leave it out: Moments(n, mean, m2)."
            )
            raise ValueError(msg)


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
        if n < 0:
            msg = f"{function}: {whose}n must be 0 or more, got {n}. Pass the number of elements in each set."
            raise ValueError(msg)
        return n if isinstance(n, int) else int(n)
    if not is_array(n):
        if library.is_length(n):  # that a compiler or an export leaves open
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
    library = call.library
    with library.quiet():
        mean, m2, rest = _of_call(call, saved)
        constants = [library.constant(its) for its in rest]
        return Moments(call.plan.n, library.constant(mean), library.constant(m2), Rest(*constants))


def _of_call(call: Call, saved: Saved, *, keepdims: bool = False) -> Measured:
    """Return what a call learned of its sets, without the reduced axes unless these are kept."""
    plan, library = call.plan, call.library
    found: Measured = library.fused(
        call.x,
        of_saved,
        *(saved.mean, saved.correction, saved.scale, saved.m2),
        without=() if keepdims else plan.reduced,
        xp=library.xp,
    )
    return found
