"""`ArrayOps`: the array operations of one library, by the standard's own calls where its backend knows no better."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Generic

from anynorm._core.arrays import COMPUTE, Format, Namespace, Shape, X, dtype_name, tree_sum
from anynorm._core.plan import Plan


class Derivable:
    """A base that backends derive from. A public name that it lacks is a TypeError: nothing would ever ask for it.

    Names that only instances have, set in `__init__`, are annotated in the base.
    """

    _cutoff = 0.0  # how like a name of the base one must be to be refused, as difflib counts it; all are

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        base = next(above for above in reversed(cls.__mro__) if Derivable in above.__bases__)
        known = [name for name in {*dir(base), *base.__annotations__} if not name.startswith("_")]
        for name in vars(cls):
            if name.startswith("_") or name in known:
                continue
            for nearest in get_close_matches(name, known, n=1, cutoff=cls._cutoff):
                msg = (
                    f"{cls.__qualname__}: {base.__name__} has no {name!r}, so nothing would ever ask for it. Did you "
                    f"mean {nearest!r}? Helpers of your own begin with an underscore."
                )
                raise TypeError(msg)


class ArrayOps(Derivable, Generic[X]):
    """What the formula asks of an array library. Every method has a default in the standard's own calls.

    A backend overrides what its library does better, or does wrong: NumPy's own sum is naive along leading axes, torch
    has no accurate gradient of broadcasting, CuPy computes on the current device alone.

    Attributes
    ----------
    name : str
        The library's name, for messages.
    xp : namespace
        Its array API namespace.

    """

    name: str
    xp: Namespace

    def __init__(self, name: str, xp: Namespace) -> None:
        self.name = name
        self.xp = xp
        # Filled ahead for the dtypes that the namespace names, so that torch.compile only ever reads it.
        named = [(getattr(xp, own, None), compute) for own, compute in COMPUTE.items()]
        self._formats: dict[Any, Format | None] = {dtype: compute for dtype, compute in named if dtype is not None}

    # Shapes and dtypes.

    def shape(self, x: X) -> Shape:
        """Return x's shape, with None for a length that is not known yet."""
        return tuple(x.shape)

    def format(self, dtype: object) -> Format | None:
        """Return the compute format of `dtype`, or None where it is not one of the accepted four."""
        try:
            return self._formats[dtype]
        except KeyError:
            found = self._formats[dtype] = COMPUTE.get(dtype_name(dtype))
            return found

    def compute_dtype(self, dtype: object) -> Any:
        """Return the dtype arithmetic is done in: result_type(dtype, float32)."""
        found = self.format(dtype)
        assert found is not None  # checked where the array came in
        return getattr(self.xp, found.name)

    def astype(self, x: X, dtype: object) -> Any:
        """Cast, without a copy where there is nothing to cast (the standard's `astype` copies by default)."""
        return x if x.dtype == dtype else self.xp.astype(x, dtype)

    def reshape(self, x: X, shape: Shape) -> Any:
        """Reshape; one length may be unknown (None)."""
        if self.shape(x) == shape:
            return x
        if shape.count(None) > 1:
            msg = (
                f"anynorm: {self.name} has no reshape to {shape}, where None is a length that is not known: at most "
                "one can be. Make the others known first."
            )
            raise ValueError(msg)
        return self.xp.reshape(x, tuple([-1 if length is None else length for length in shape]))

    # Sums and broadcasts, as accurate as the contract needs them, and so are their gradients.

    def sum(self, x: X, axes: tuple[int, ...]) -> Any:
        """Return the accurate sum over `axes`, kept as length 1. No axes: x itself."""
        # A tree needs lengths. Along one that is not known, as of ONNX graphs, the library's own sum must do: gradients
        # of parameters are summed so, statistics never.
        shape = self.shape(x)
        unknown = tuple([axis for axis in axes if shape[axis] is None])
        x = tree_sum(x, tuple([axis for axis in axes if shape[axis] is not None]))
        return self.xp.sum(x, axis=unknown, keepdims=True) if unknown else x

    def peak(self, x: X, axes: tuple[int, ...]) -> Any:
        """Return the largest magnitude over `axes`, kept as length 1."""
        return self.xp.max(self.xp.abs(x), axis=axes, keepdims=True) if axes else self.xp.abs(x)

    def broadcast(self, x: X, shape: Shape) -> Any:  # arithmetic broadcasts by itself
        """Return x such that it broadcasts to `shape` and its gradient, where the library derives it, is accurate."""
        return x

    def with_layout_of(self, y: X, x: X) -> Any:
        """Return y with its axes in memory as x's are, where arithmetic does not see to that by itself."""
        return y

    # How and where functions of arrays are called.

    def on_device(self, x: X, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        """Call a function while x's device is the current one, if the library computes on no other.

        Without warnings of NaN, infinity and rounding to 0, where the library warns: they are results like any other.
        """
        return function(*arguments, **options)

    def fused(self, x: X, function: Callable[..., Any], /, *arrays: Any, **options: Any) -> Any:
        """Call a function of arrays as `on_device` does, or compiled as a whole where each step alone costs much more.

        The options are constants, and can be hashed.
        """
        return self.on_device(x, function, *arrays, **options)

    def normalize(self, normalize: Callable[..., Any], plan: Plan, z: X, eps: float) -> Any:
        """Call the formula's `normalize`, with `formula.dz_of` as its derivative where the library derives gradients.

        By the chain rule it comes to rstd³, and where the deviation is 1e14 a gradient of 1e-10 is lost to underflow.
        """
        return normalize(plan, z, eps, ops=self)

    # Automatic differentiation, tracing and compiling.

    def constant(self, x: X) -> Any:
        """Return x as a constant to automatic differentiation, where the library has any."""
        return x

    def vary_like(self, a: X, x: X) -> Any:
        """Return a as differing between devices where x does, where the library tells that apart."""
        return a

    def compiling(self) -> bool:
        """Say whether the library's compiler is tracing this very call (it must then see no caches)."""
        return False

    def traced(self, x: X) -> bool:
        """Say whether x stands for an array that a function's later calls will bring, so that nothing may keep it."""
        return False

    def holds(self, comparison: object) -> bool:
        """Say whether a comparison of lengths holds: no where the library is tracing and cannot know."""
        return bool(comparison)

    def is_empty(self, shape: Shape) -> bool:
        """Say whether a length is 0: no where the library is tracing and cannot know."""
        return 0 in shape

    def is_length(self, n: object) -> bool:
        """Say whether n, which is no array, is an integer or a symbol that stands for one while the library traces."""
        return hasattr(n, "__index__") and not isinstance(n, bool)


# Those of a library of which nothing more is known.
Ops = ArrayOps[Any]
