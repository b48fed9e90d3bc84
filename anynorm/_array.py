"""What the library knows about arrays: their namespace, dtypes, devices, and how to sum them accurately.

The one file that touches `array_api_compat`. It knows no normalization, no axis rule and no array library by
import: a library is met as the type of an argument and described by a `Library`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from numbers import Real
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar, cast

from anynorm._frames import is_own


class Array(Protocol):
    """What the annotations ask of an array: a shape and a dtype. The rest is the array API standard's."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


A = TypeVar("A", bound=Array)


class Scalar(Protocol):
    """What tells the numbers of NumPy from its arrays, to which it gives a `__float__` as well."""

    def __float__(self) -> float: ...

    def is_integer(self) -> bool: ...


# What callers may pass as a number.
Number = float | Real | Scalar

# A length is None where the library does not know it yet (Dask after a boolean selection).
Shape = tuple[int | None, ...]


class Format(NamedTuple):
    """The IEEE 754 facts of a compute dtype that the formula's constants rest on."""

    name: str
    smallest: float  # smallest normal number
    largest: float  # largest finite number


FLOAT32 = Format("float32", 2.0**-126, (2.0 - 2.0**-23) * 2.0**127)
FLOAT64 = Format("float64", 2.0**-1022, (2.0 - 2.0**-52) * 2.0**1023)

# Accepted dtypes, by name, and what each computes in: result_type(dtype, float32).
_COMPUTE = {"float16": FLOAT32, "bfloat16": FLOAT32, "float32": FLOAT32, "float64": FLOAT64}


def tree_sum(x: Any, axes: tuple[int, ...]) -> Any:
    """Sum over `axes`, kept as length 1, by a fixed halving tree.

    NumPy's own sum is naive along any axis but the last: a float32 batch of images comes out 0.3 % wrong.
    The tree's error grows with log2(n), in every direction, on every library.
    """
    for axis in axes:
        before = (slice(None),) * axis
        length = x.shape[axis]
        odd = []
        while length > 1:
            half, left_over = divmod(length, 2)
            if left_over:
                odd.append(x[(*before, slice(length - 1, length), ...)])
            x = x[(*before, slice(0, half), ...)] + x[(*before, slice(half, 2 * half), ...)]
            length = half
        for element in reversed(odd):
            x = x + element
    return x


class Library:
    """An array library, met by the type of one of its arrays, with what its backend package knows better.

    Nothing changes after it is made, but for what it remembers of dtypes and calls.
    """

    def __init__(self, name: str, xp: Any, package: Any = None) -> None:
        self.name = name
        self.xp = xp
        self.package = package
        # What the package offers, looked up once: None where the standard's own way will do.
        self.forward = _offered(package, "forward")
        self.backward = _offered(package, "backward")
        self.moments = _offered(package, "moments")
        self.declines = _offered(package, "declines")
        self.path = _offered(package, "path")
        # Both or neither: see `anynorm._prepare.Known`.
        self.again = _offered(package, "again")
        self.kind = None if self.again is None else _offered(package, "kind")
        self.known: dict[Any, Any] = {}
        self.differ = False  # whether arrays of this type may differ in what they mean: see `anynorm._unsuited`
        self._passed: set[Any] = set()  # what gave arrays of the library's own, of those functions that `_tried` called
        self.decides_within = bool(getattr(package, "decides_within", False))
        self.refuses = _offered(package, "refuses")
        self.refuses_beside = _offered(package, "refuses_beside")
        self.refuses_out = _offered(package, "refuses_out")
        self.places_itself = bool(getattr(package, "places_itself", False))
        self.immutable = bool(getattr(package, "immutable", False))
        self._writable = _offered(package, "writable")
        self._shape = _offered(package, "shape")
        self._sum = _offered(package, "sum")
        self._peak = _offered(package, "peak")
        self._reshape = _offered(package, "reshape")
        self._constant = _offered(package, "constant")
        self.normalize = _offered(package, "normalize")
        self._spread = _offered(package, "spread")
        self._vary_like = _offered(package, "vary_like")
        self._laid_out_like = _offered(package, "laid_out_like")
        self._there = _offered(package, "there")
        self._fused = _offered(package, "fused")
        self._compiling = _offered(package, "compiling")
        self._traced = _offered(package, "traced")
        self._holds = _offered(package, "holds")
        self._is_length = _offered(package, "is_length")
        # A context without warnings of what NaN, infinity and rounding to 0 do: they are results like any other.
        self.quiet: Callable[[], AbstractContextManager[Any]] = _offered(package, "quiet") or nullcontext
        # Filled ahead for the dtypes that the namespace names, so that torch.compile only ever reads it.
        named = [(getattr(xp, name, None), compute) for name, compute in _COMPUTE.items()]
        self._formats: dict[Any, Format | None] = {dtype: compute for dtype, compute in named if dtype is not None}

    def format(self, dtype: Any) -> Format | None:
        """Return the compute format of `dtype`, or None where it is not one of the accepted four."""
        try:
            return self._formats[dtype]
        except KeyError:
            found = self._formats[dtype] = _COMPUTE.get(dtype_name(dtype))
            return found

    def shape(self, x: Any) -> Shape:
        """Return x's shape, with None for a length that is not known yet."""
        known: Shape = tuple(x.shape) if self._shape is None else self._shape(x)
        return known

    def compute_dtype(self, dtype: Any) -> Any:
        """Return the dtype arithmetic is done in: result_type(dtype, float32)."""
        found = self.format(dtype)
        assert found is not None  # checked where the array came in
        return getattr(self.xp, found.name)

    def astype(self, x: Any, dtype: Any) -> Any:
        """Cast, without a copy where there is nothing to cast (the standard's `astype` copies by default)."""
        return x if x.dtype == dtype else self.xp.astype(x, dtype)

    def sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        """Return the accurate sum over `axes`, kept as length 1: the package's, else the halving tree."""
        if not axes:
            return x  # torch reads an empty tuple as "all axes"
        if self._sum is not None:
            return self._sum(x, axes)
        if self.package is not None:
            return tree_sum(x, axes)
        # A tree needs lengths. Along one that is not known, as of ONNX graphs, the library's own sum must do: gradients
        # of parameters are summed so, statistics never.
        shape = self.shape(x)
        unknown = tuple([axis for axis in axes if shape[axis] is None])
        x = tree_sum(x, tuple([axis for axis in axes if shape[axis] is not None]))
        return self.xp.sum(x, axis=unknown, keepdims=True) if unknown else x

    def peak(self, x: Any, axes: tuple[int, ...]) -> Any:
        """Return the largest magnitude over `axes`, kept as length 1."""
        if self._peak is not None:
            return self._peak(x, axes)
        return self.xp.max(self.xp.abs(x), axis=axes, keepdims=True) if axes else self.xp.abs(x)

    def reshape(self, x: Any, shape: Shape) -> Any:
        """Reshape; to lengths that may be unknown (None) if the package knows how."""
        if self._reshape is not None:
            return self._reshape(x, shape)
        if self.shape(x) == shape:
            return x
        if shape.count(None) > 1:
            msg = (
                f"anynorm: {self.name} has no reshape to {shape}, where None is a length that is not known: at most "
                "one can be. Make the others known first."
            )
            raise ValueError(msg)
        return self.xp.reshape(x, tuple([-1 if length is None else length for length in shape]))

    def spread(self, x: Any, shape: Shape) -> Any:
        """Return x such that it broadcasts to `shape` and its gradient, where the library derives it, is accurate."""
        return x if self._spread is None else self._spread(x, shape)

    def vary_like(self, a: Any, x: Any) -> Any:
        """Return a as differing between devices where x does, where the library tells that apart."""
        return a if self._vary_like is None else self._vary_like(a, x)

    def constant(self, x: Any) -> Any:
        """Return x as a constant to automatic differentiation, where the library has any."""
        return x if self._constant is None else self._constant(x)

    def laid_out_like(self, y: Any, x: Any) -> Any:
        """Return y with its axes in memory as x's are, where arithmetic does not see to that by itself."""
        return y if self._laid_out_like is None else self._laid_out_like(y, x)

    def there(self, x: Any, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        """Call a function while x's device is the current one, if the library computes on no other."""
        if self._there is not None:
            return self._there(x, partial(function, **options), *arguments)
        if self.package is not None:
            return function(*arguments, **options)
        return self._tried(x, function, *arguments, **options)

    def _tried(self, x: Any, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        """Call a function on arrays of a library that nobody has tried, and say whose fault a failure is.

        A library's own errors, for want of memory and the like, are left as they are.
        """
        try:
            result = function(*arguments, **options)
            code = getattr(function, "__code__", function)  # of a lambda, which is another function each time
            if code not in self._passed:
                for its in result if isinstance(result, tuple) else (result,):
                    if hasattr(its, "dtype"):
                        _check_own(its, self.name)
                self._passed.add(code)
        except (TypeError, AttributeError, LookupError, NotImplementedError, ImportError) as error:
            if is_own(error):
                raise
            msg = (
                f"anynorm: {self.name} does not follow the array API standard in what a norm asks of "
                f"{type(x).__module__}.{type(x).__qualname__}: {error}. Convert them first, e.g. to NumPy's."
            )
            raise TypeError(msg) from error
        return result

    def fused(self, x: Any, function: Callable[..., Any], /, *arrays: Any, **options: Any) -> Any:
        """Call a function of arrays as `there` does, or compiled as a whole where each step alone costs much more.

        The options are constants, and can be hashed.
        """
        if self._fused is None:
            return self.there(x, function, *arrays, **options)
        return self._fused(function, *arrays, **options)

    def writable(self, x: Any) -> bool:
        """Say whether x can be written to."""
        if self._writable is not None:
            return bool(self._writable(x))
        from array_api_compat import is_writeable_array

        return bool(is_writeable_array(x))

    def traced(self, x: Any) -> bool:
        """Say whether x stands for an array that a function's later calls will bring, so that nothing may keep it."""
        return self._traced is not None and bool(self._traced(x))

    def holds(self, comparison: Any) -> bool:
        """Say whether a comparison of lengths holds: no where the library is tracing and cannot know."""
        return bool(comparison) if self._holds is None else self._holds(comparison)

    def is_empty(self, shape: Shape) -> bool:
        """Say whether a length is 0: no where the library is tracing and cannot know."""
        if self._holds is None:
            return 0 in shape
        return [self.holds(length == 0) for length in shape].count(True) > 0

    def is_length(self, n: Any) -> bool:
        """Say whether n, which is no array, is an integer or a symbol that stands for one while the library traces."""
        if isinstance(n, bool):
            return False
        return hasattr(n, "__index__") or (self._is_length is not None and bool(self._is_length(n)))

    def compiling(self) -> bool:
        """Say whether the library's compiler is tracing this very call (it must then see no caches)."""
        return self._compiling is not None and bool(self._compiling())


def dtype_name(dtype: Any) -> str:
    """Return a dtype's name, the same in every library."""
    # `name` and not `str`: NumPy prints a big-endian float32 as ">f4" but names it float32.
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


def tried(name: str, xp: Any) -> str | None:
    """Return what a library that nobody has tried does against the standard, on two numbers, or None.

    Where such a step gave arrays of another library, the next may go wrong without a word.
    """
    try:
        two = xp.ones((1, 2))
        for its in (xp.max(two, axis=1, keepdims=True), xp.where(two > 0, two, two), xp.reshape(two, (2, 1))):
            _check_own(its, name)
    except Exception as error:  # whatever a stranger's library raises
        return str(error)
    return None


def _check_own(array: Any, name: str) -> None:
    """Raise a TypeError unless an array is of the library of this name."""
    found = namespace(array)
    if found is None or found[0] != name:
        msg = f"it makes {type(array).__module__}.{type(array).__qualname__} of its own arrays"
        raise TypeError(msg)


def _offered(package: Any, name: str) -> Callable[..., Any] | None:
    found: Callable[..., Any] | None = getattr(package, name, None)
    return found


def namespace(x: object) -> tuple[str, Any] | None:
    """Return the library's name and its standard namespace; None if `x` is not an array."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        # Not by array_namespace, whose caches torch.compile warns of where it meets anynorm for the first time.
        from array_api_compat import torch as xp

        return "torch", xp
    import array_api_compat  # here, because it takes most of the time of `import anynorm`

    try:
        xp = array_api_compat.array_namespace(x)
    except TypeError:
        return None
    if xp.__name__ == "jax.numpy" and type(x).__module__ == "numpy":
        # An array of float0, JAX's "no gradient", which is NumPy's: its type says nothing of those that follow.
        xp = array_api_compat.array_namespace(cast("Any", x).view("V1"))
    if xp.__name__ == "array_api_compat.numpy" and _ignores_its_class(type(x)):
        return None
    name = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    return name, xp


def _ignores_its_class(cls: type) -> bool:
    # array-api-compat takes both for plain arrays: it would drop the mask and multiply matrices.
    return any(base.__name__ in ("MaskedArray", "matrix") for base in cls.__mro__)


def described(value: object) -> str:
    """Return a value as an error shows it: short, whatever it is."""
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and not isinstance(value, Real) and not callable(value):  # layers have a shape, too
        return f"array of shape {tuple(shape)}, of type {kind}"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} of type {kind}"


def reject_array(function: str, argument: str, value: object) -> NoReturn:
    """Raise the TypeError for something that is not an array anynorm can take."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    from anynorm._advice import for_no_array  # here, because most programs never need it

    msg = f"{function}: {argument} must be an array of a library that follows the array API standard, got {kind}. "
    raise TypeError(msg + for_no_array(function, argument, value))


def check_array(function: str, argument: str, x: Any, library: Library) -> Format:
    """Return the compute format of x; a TypeError unless x is dense, of one of the four real floating dtypes."""
    refusal = None if library.refuses is None else library.refuses(x)
    if refusal is not None:
        msg = f"{function}: {argument} {refusal}"
        raise TypeError(msg)
    compute = library.format(x.dtype)
    if compute is None:
        from anynorm._advice import for_dtype

        msg = (
            f"{function}: {argument} must have a real floating dtype (float16, bfloat16, float32 or float64), "
            f"got {x.dtype}. {for_dtype(argument, dtype_name(x.dtype), library.name)}"
        )
        raise TypeError(msg)
    return compute


def check_device(function: str, argument: str, value: Any, x: Any, library: Library, beside: str) -> None:
    """Raise a ValueError unless value and x are on one device, where that is the caller's business."""
    if library.places_itself:
        return
    # Without the attribute, which MLX's arrays lack, there is one device or the library sees to it.
    here, there = getattr(value, "device", None), getattr(x, "device", None)
    if here != there:
        msg = (
            f"{function}: {beside} is on device {there} but {argument} is on device {here}. "
            f"Nothing is moved silently: move {argument} to {there} first."
        )
        raise ValueError(msg)


def real_number(function: str, argument: str, value: object) -> float:
    """Return a Python or NumPy number as a float; a TypeError for anything else, arrays and strings too."""
    if type(value) is float:
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # an integer beyond every float: out of range, whatever its sign
    convertible = isinstance(value, str) or getattr(value, "shape", None) == ()
    advice = f"Pass a Python float, e.g. float({argument})." if convertible else "Pass a Python float."
    msg = f"{function}: {argument} must be a real number, got {described(value)}. {advice}"
    raise TypeError(msg)


def check_eps(function: str, eps: object, compute: Format) -> float:
    """Return eps as a float that the compute dtype can hold: 0, or a positive normal number."""
    value = real_number(function, "eps", eps)
    if value == 0.0 or compute.smallest <= value <= compute.largest:
        return value
    msg = (
        f"{function}: eps must be 0 or lie between {compute.smallest:.4g} and {compute.largest:.4g}, the normal "
        f"numbers of {compute.name}, in which this x is computed; got {value!r}. Choose a value such as 1e-5."
    )
    raise ValueError(msg)


def check_writes(function: str, library: Library) -> None:
    """Raise a TypeError where no array of the library can be written to."""
    if library.immutable:
        msg = f"{function}: {library.name} arrays cannot be written to, so out must be None. Use the returned array."
        raise TypeError(msg)


def check_out(
    function: str, out: Any, x: Any, others: dict[str, Any], library: Library, *, in_place: bool = True
) -> None:
    """Raise unless `out` can take the result: an array like x that overlaps nothing, or x itself if `in_place`."""
    unsuited = None if library.refuses is None else library.refuses(out)
    if unsuited is not None:
        what = unsuited.partition(". ")[0]  # the rest advises what to do with what it holds
        msg = f"{function}: out {what}. Allocate it with xp.empty_like(x)."
        raise TypeError(msg)
    if out.dtype != x.dtype:
        msg = f"{function}: out must have x's dtype {x.dtype}, got {out.dtype}. Allocate it with xp.empty_like(x)."
        raise TypeError(msg)
    if tuple(out.shape) != tuple(x.shape):
        shapes = f"must have x's shape {tuple(x.shape)}, got {tuple(out.shape)}"
        msg = f"{function}: out {shapes}. Allocate it with xp.empty_like(x)."
        raise ValueError(msg)
    if not library.writable(out):
        msg = f"{function}: out is read-only. Pass a writable array, e.g. xp.empty_like(x)."
        raise ValueError(msg)
    if library.refuses_out is None:
        return
    refusal = library.refuses_out(out, x, others) if in_place else library.refuses_out(out, None, {"x": x, **others})
    if refusal is not None:
        msg = f"{function}: {refusal}"
        raise ValueError(msg)
