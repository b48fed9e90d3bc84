"""Count, mean and spread of sets of numbers: measured accurately, merged accurately.

Holds the statistics as values: how they are measured, added and read. Which statistics a norm uses, and how they are
carried from step to step, belongs to the norms.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any, NamedTuple, TypeGuard

from anynorm._core.arrays import Array, Namespace, Number, Operand, described
from anynorm._core.backends import backend_of
from anynorm._core.checks import check_array, check_beside, check_companion, real_number
from anynorm._core.dispatch import norm
from anynorm._core.merge import Measured, Rest, merged, of_numbers, of_saved, shares, traced_shares, variance
from anynorm._core.ops import Ops
from anynorm._core.plan import AxesLike, Plan, axes_argument, over_axes, show
from anynorm.backend import Backend, PackedResiduals, Residuals, Statistics

# Elements of a set, or of each: an int, a length that a compiler leaves open and that passes for one, or an array.
Count = int | Operand


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
        n, m, backend = _check_alike(self, other)
        ops = backend.ops
        return ops.on_device(self.mean, _merged, self, other, n, m, ops)  # type: ignore[no-any-return]

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
        left = [statistics for statistics in waiting if statistics is not None]
        if not left:
            msg = "Moments.merge: there are no parts. Pass at least one, such as the moments of an empty array."
            raise ValueError(msg)
        found = left[0]
        for larger in left[1:]:
            found = larger + found
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
        n, backend = check_moments(function, "", self)
        ops = backend.ops
        taken = real_number(function, "correction", correction)
        return ops.on_device(self.mean, variance_of, self, n, taken, self.mean.dtype, ops, root=root)


def _merged(one: Moments, other: Moments, n: Count, m: Count, ops: Ops) -> Moments:
    """Return the moments of both sets together; n and m are their counts, which may be arrays or open lengths."""
    xp, total = ops.xp, n + m
    if isinstance(n, int) and isinstance(m, int) and not ops.compiling():
        how = shares(n, m)
    else:
        how = traced_shares(
            count_like(n, one.mean, ops), count_like(m, one.mean, ops), count_like(total, one.mean, ops), xp
        )
    found = ops.fused(one.mean, merged, measured(one, xp), measured(other, xp), how, ops=ops)
    return Moments(total, *found)


def measured(statistics: Moments, xp: Namespace) -> Measured:
    """Return the statistics of moments without their count."""
    return (
        of_numbers(statistics.mean, statistics.m2, xp)
        if statistics.rest is None
        else Measured(statistics.mean, statistics.m2, statistics.rest)
    )


def count_like(n: Count, mean: Operand, ops: Ops) -> Any:
    """Return a count, which may be an array or an open length, as an array in the dtype of the mean."""
    return ops.astype(n, mean.dtype) if is_array(n) else ops.xp.full_like(mean, n)


def at_least(n: Count, least: int, mean: Operand, ops: Ops) -> Any:
    """Return a count, or `least` where it is smaller: for variances that are looked at nowhere else."""
    if isinstance(n, int) and not ops.compiling():
        return max(n, least)
    counts = n if is_array(n) else count_like(n, mean, ops)
    return ops.xp.where(counts >= least, counts, ops.xp.full_like(counts, least))


def variance_of(statistics: Moments, n: Count, taken: float, dtype: object, ops: Ops, *, root: bool = False) -> Any:
    """Return m2 / max(n − taken, 0) in a dtype, or its root; NaN where that divisor is 0."""
    xp, own = ops.xp, measured(statistics, ops.xp)
    if isinstance(n, int) and not ops.compiling() and n > taken:
        divisor, defined = n - taken, None
    else:
        divisor = ops.astype(count_like(n, statistics.mean, ops), dtype) - taken
        defined = divisor > 0
        divisor = xp.where(defined, divisor, xp.zeros_like(divisor))
    return ops.fused(statistics.mean, variance, own, divisor, defined, dtype=dtype, root=root, ops=ops)


def _measured_moments(plan: Plan, ops: Ops, x: Operand, statistics: Statistics, keepdims: bool) -> Moments:
    """Return the moments of x, differentiable where the library is."""
    return Moments(plan.n, *_in_own_units(plan, ops, x, statistics, keepdims=keepdims))


@norm(_measured_moments, only_measures=True)
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
    numbers = axes_argument("moments", "axis", axis), True
    call: Any = "moments", over_axes, numbers, x, None, None, None, 0.0, None, keepdims
    return call  # type: ignore[no-any-return]


def _check_alike(one: Moments, other: Moments) -> tuple[Any, Any, Backend]:
    """Return both counts and the backend; raise unless the moments belong together."""
    function = "Moments + Moments"
    n, backend = check_moments(function, "", one)
    check_companion(function, "the other mean", other.mean, one.mean, backend, "mean")
    m, _ = check_moments(function, "the other ", other)
    advice = "Merge the moments of parts that were measured over the same axes of arrays of one dtype."
    _check_same(function, "the means", one.mean, other.mean, backend, advice)
    n, m = backend.ops.on_device(one.mean, _counts, n, m, backend)
    return n, m, backend


def _counts(n: Count, m: Count, backend: Backend) -> tuple[Any, Any]:
    """Return both counts, arrays of integers in the library's default ones: narrow ones would wrap around.

    An array of floats, made by hand, stays one beside an int.
    """
    arrays = [count for count in (n, m) if is_array(count)]
    if all(backend.ops.format(count.dtype) is not None for count in arrays):
        return n, m
    xp = backend.ops.xp
    device = None if backend.places_itself else getattr(arrays[0], "device", None)
    # torch.compile traces no such question; there, and before the standard had it, 64 bits are the default.
    asks = hasattr(xp, "__array_namespace_info__") and not backend.ops.compiling()
    integer = xp.__array_namespace_info__().default_dtypes(device=device)["integral"] if asks else xp.int64
    n, m = [backend.ops.astype(count, integer) if is_array(count) else count for count in (n, m)]
    return n, m


def check_moments(function: str, whose: str, statistics: Moments) -> tuple[Any, Backend]:
    """Return n, an int or an array, and the backend; raise unless n, mean and m2 fit together.

    `whose` goes before the names of the fields in errors.
    """
    mean, m2 = f"{whose}mean", f"{whose}m2"
    backend = backend_of(function, mean, statistics.mean)
    check_array(function, mean, statistics.mean, backend)
    check_companion(function, m2, statistics.m2, statistics.mean, backend, mean)
    advice = "Pass what moments(...) or batch_norm(..., return_moments=True) returned."
    _check_same(function, f"{mean} and m2", statistics.mean, statistics.m2, backend, advice)
    if statistics.rest is not None:
        _check_rest(function, whose, statistics, backend, advice)
    return _count(function, whose, statistics, backend), backend


def _check_rest(function: str, whose: str, statistics: Moments, backend: Backend, advice: str) -> None:
    """Raise unless the rest describes sets like those of the mean."""
    if not isinstance(statistics.rest, Rest):
        msg = f"{function}: {whose}rest must be a Rest or None, got {described(statistics.rest)}. {advice}"
        raise TypeError(msg)
    for part in statistics.rest:
        if part.dtype != statistics.mean.dtype or backend.ops.shape(part) != backend.ops.shape(statistics.mean):
            msg = (
                f"{function}: {whose}rest does not fit {whose}mean in shape or dtype. {advice} Where fields are "
                "reshaped or cast by hand, treat those of rest likewise, or leave it out: Moments(n, mean, m2)."
            )
            raise ValueError(msg)


def _check_same(function: str, which: str, one: Array, other: Array, backend: Backend, advice: str) -> None:
    """Raise unless two arrays have one dtype and one shape."""
    for what, error, one_value, other_value in (
        ("dtype", TypeError, one.dtype, other.dtype),
        ("shape", ValueError, backend.ops.shape(one), backend.ops.shape(other)),
    ):
        if one_value != other_value:
            msg = f"{function}: {which} must have one {what}, got {one_value} and {other_value}. {advice}"
            raise error(msg)


def _count(function: str, whose: str, statistics: Moments, backend: Backend) -> Any:
    """Return n as an int, or as the array that it is; raise where it is neither."""
    n = statistics.n
    if isinstance(n, Integral) and not isinstance(n, bool):
        if n < 0:
            msg = f"{function}: {whose}n must be 0 or more, got {n}. Pass the number of elements in each set."
            raise ValueError(msg)
        return n if isinstance(n, int) else int(n)
    if not is_array(n):
        if backend.ops.is_length(n):  # that a compiler or an export leaves open
            return n
        msg = f"{function}: {whose}n must be an int or a 0-d array, got {described(n)}. Pass the count, e.g. int(n)."
        raise TypeError(msg)
    check_beside(function, f"{whose}n", n, statistics.mean, backend, f"{whose}mean")
    shape, needed = backend.ops.shape(n), backend.ops.shape(statistics.mean)
    if shape not in ((), needed):
        msg = (
            f"{function}: {whose}n has shape {show(shape)}, but {whose}mean has shape {show(needed)}. "
            "Pass an int or a 0-d array, the number of elements in each set."
        )
        raise ValueError(msg)
    return n


def is_array(n: object) -> TypeGuard[Operand]:
    """Say whether a count or a share is an array: they are also numbers, and what stands for one under a compiler."""
    return not isinstance(n, int | float) and hasattr(n, "dtype")


def moments_of(plan: Plan, ops: Ops, x: Operand, residuals: Residuals | PackedResiduals) -> Moments:
    """Return the moments of a norm's own pass, which are constants to differentiation."""
    mean, m2, rest = _in_own_units(plan, ops, x, residuals)
    constants = [ops.constant(field) for field in rest]
    return Moments(plan.n, ops.constant(mean), ops.constant(m2), Rest(*constants))


def _in_own_units(
    plan: Plan, ops: Ops, x: Operand, measured: Statistics | Residuals | PackedResiduals, *, keepdims: bool = False
) -> Measured:
    """Return what was measured of the sets of x, without the reduced axes unless these are kept."""
    found: Measured = ops.fused(
        x,
        of_saved,
        *(measured.mean, measured.correction, measured.scale, measured.m2),
        without=() if keepdims else plan.reduced,
        xp=ops.xp,
    )
    return found
