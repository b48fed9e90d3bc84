"""The calls that every array library has: the five norms forward and backward, moments, running statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anynorm as an
from benchmarks.grid import norms
from benchmarks.grid.case import Case
from benchmarks.grid.data import LAYOUTS, ODD_LAYOUTS, VALUES, NumPyArray, numbers, placed
from benchmarks.grid.norms import Norm


@dataclass(frozen=True)
class Library:
    """An array library: how it makes an array from NumPy's, and what it has."""

    name: str
    make: Callable[[NumPyArray], Any]
    dtypes: tuple[str, ...]
    layouts: tuple[str, ...] = ("C",)
    writes: bool = True


@dataclass(frozen=True)
class Problem:
    """A norm with all that decides about its arguments."""

    library: Library
    norm: Norm
    dtype: str = "float32"
    values: str = "normal"
    layout: str = "C"
    variant: str = "both"
    eps: float | None = None
    given: str = ""  # the dtype of mean and var, where these are given

    def __str__(self) -> str:
        usual = Problem(self.library, self.norm)
        names = ("values", "layout", "variant", "eps", "given")
        differing = [f"{name}={getattr(self, name)}" for name in names if getattr(self, name) != getattr(usual, name)]
        return " ".join([self.library.name, str(self.norm), self.dtype, *differing])

    def array(self, values: str, salt: int, layout: str = "C", dtype: str = "") -> Any:
        """Return a new array of x's shape."""
        return self.library.make(placed(numbers(values, self.norm.shape, dtype or self.dtype, salt), layout))

    @property
    def x(self) -> Any:
        """A new x."""
        return self.array(self.values, 1, self.layout)

    @property
    def options(self) -> dict[str, Any]:
        """All that is passed by keyword, in new arrays."""
        found = dict(self.norm.options) | norms.parameters(self.norm, self.dtype, self.variant, self.library.make)
        if self.eps is not None:
            found["eps"] = self.eps
        if self.given:
            shape = self.norm.parameter_shape
            for name, kind, salt in (("mean", "normal", 5), ("var", "positive", 6)):
                found[name] = self.library.make(numbers(kind, shape, self.given, salt))
        return found


def call(problem: Problem) -> Any:
    """Call the function."""
    return norms.function(problem.norm)(problem.x, *problem.norm.args, **problem.options)


def explain(problem: Problem) -> str:
    """Return which implementation serves the call, and why no faster one does."""
    route = an.explain(norms.function(problem.norm), problem.x, *problem.norm.args, **problem.options)
    return f"{route.path}: {route.reason}"


def vjp(problem: Problem, dy_layout: str = "C", dy_dtype: str = "") -> Any:
    """Call the function and its pullback."""
    dy = problem.array("normal", 2, dy_layout, dy_dtype)
    function = norms.function(problem.norm)
    y, pullback = an.vjp(function, problem.x, *problem.norm.args, **problem.options)
    return y, pullback(dy)


def several_pullbacks(problem: Problem) -> Any:
    """Call one pullback with several dy, the first one twice."""
    function, dtypes = norms.function(problem.norm), (problem.dtype, *problem.library.dtypes[-2:], problem.dtype)
    y, pullback = an.vjp(function, problem.x, *problem.norm.args, **problem.options)
    layouts = (problem.layout, problem.library.layouts[1 % len(problem.library.layouts)], "C", problem.layout)
    pairs = zip(layouts, dtypes, strict=True)
    return y, [pullback(problem.array("normal", 2, layout, dtype)) for layout, dtype in pairs]


def vjp_out(problem: Problem) -> Any:
    """Call the pullback with an array for dx, twice."""
    function = norms.function(problem.norm)
    _, pullback = an.vjp(function, problem.x, *problem.norm.args, **problem.options)
    out = problem.array("nan", 8, problem.layout)
    found = []
    for salt in (2, 9):
        gradients = pullback(problem.array("normal", salt), out=out)
        found.append((gradients.x is out, _copied(problem, out), gradients.weight, gradients.bias))
    return found


def out(problem: Problem, layout: str = "C") -> Any:
    """Call the function with an array for y."""
    target = problem.array("nan", 8, layout)
    y = norms.function(problem.norm)(problem.x, *problem.norm.args, **problem.options, out=target)
    return y is target, y


def explain_out(problem: Problem, layout: str = "C") -> str:
    """Explain the call with an array for y."""
    options = problem.options | {"out": problem.array("nan", 8, layout)}
    route = an.explain(norms.function(problem.norm), problem.x, *problem.norm.args, **options)
    return f"{route.path}: {route.reason}"


def in_place(problem: Problem) -> Any:
    """Call the function with x for y."""
    x = problem.x
    y = norms.function(problem.norm)(x, *problem.norm.args, **problem.options, out=x)
    return y is x, y


def returning_moments(problem: Problem) -> Any:
    """Call the function with return_moments, and its pullback."""
    function = norms.function(problem.norm)
    y, batch = function(problem.x, *problem.norm.args, **problem.options, return_moments=True)
    options = problem.options | {"return_moments": True}
    (again, same), pullback = an.vjp(function, problem.x, *problem.norm.args, **options)
    gradients = pullback(problem.array("normal", 2))
    return y, tuple(batch), batch.var(correction=1), batch.std(), again, tuple(same), gradients


def by_formula(run: Callable[[Problem], Any], problem: Problem) -> Any:
    """Call with the fast paths off."""
    with an.fast_paths(False):
        return run(problem)


def _copied(problem: Problem, array: Any) -> Any:
    return array.clone() if problem.library.name.startswith("torch") else array.copy()


def case(problem: Problem, run: Callable[..., Any], *more: Any) -> Case:
    """Return a case of the grid."""
    names = " ".join(
        [run.func.__name__ + " " + run.args[0].__name__ if isinstance(run, partial) else run.__name__, *more]
    )
    return Case(f"{problem} {names}", partial(run, problem, *more))


def both(problem: Problem) -> Iterator[Case]:
    """Yield the call forward, forward and backward, and its explanation."""
    for run in (call, explain, vjp):
        yield case(problem, run)


def basic(library: Library, which: Sequence[Norm]) -> Iterator[Case]:
    """Yield every norm in every dtype."""
    for norm in which:
        for dtype in library.dtypes:
            yield from both(Problem(library, norm, dtype))


def layouts(library: Library, which: Sequence[Norm], dtypes: Sequence[str]) -> Iterator[Case]:
    """Yield every norm in every layout of x, of dy, and of out."""
    for norm in which:
        for dtype in dtypes:
            for layout in library.layouts:
                problem = Problem(library, norm, dtype, layout=layout, variant="weight" if layout == "F" else "both")
                if layout != "C":
                    yield from both(problem)
                    yield case(replace(problem, layout="C"), vjp, layout)
                if layout != "read_only" and library.writes:
                    yield case(replace(problem, layout="C"), out, layout)
                    yield case(replace(problem, layout="C"), explain_out, layout)
                    if not layout.startswith(("repeated", "windows")):
                        yield case(problem, in_place)


def variants(library: Library, which: Sequence[Norm], dtypes: Sequence[str]) -> Iterator[Case]:
    """Yield every norm with weight and bias given in every way, and with given statistics."""
    for norm in which:
        for dtype in dtypes:
            for variant in norms.PARAMETERS:
                if variant != "both":
                    yield from both(Problem(library, norm, dtype, variant=variant))
            for given in ("float32", library.dtypes[0], "float64") if norm.function == "batch_norm" else ():
                for variant in ("none", "both") if given == "float32" else ("weight",):
                    yield from both(Problem(library, norm, dtype, variant=variant, given=given))


def hostile(library: Library, which: Sequence[Norm], dtypes: Sequence[str]) -> Iterator[Case]:
    """Yield every norm on numbers on which norms go wrong, with eps of 0, usual and large."""
    for norm in which:
        for dtype in dtypes:
            for values in VALUES:
                for eps in (None, 0.0, 1.0, 1e-30) if values != "normal" else (0.0, 1.0, 1e-30):
                    problem = Problem(library, norm, dtype, values=values, eps=eps)
                    yield case(problem, call)
                    yield case(problem, vjp)


def special(library: Library, which: Sequence[Norm], dtypes: Sequence[str]) -> Iterator[Case]:
    """Yield every norm called in the other ways: more pullbacks, out, moments, without the fast paths."""
    for norm in which:
        for dtype in dtypes:
            problem = Problem(library, norm, dtype)
            yield case(problem, several_pullbacks)
            yield case(problem, partial(by_formula, call))
            yield case(problem, partial(by_formula, explain))
            yield case(problem, partial(by_formula, vjp))
            if library.writes:
                yield case(problem, vjp_out)
                yield case(replace(problem, variant="none"), out)
                yield case(replace(problem, variant="per_sample"), in_place)
            if norm.function == "batch_norm":
                yield case(problem, returning_moments)
                if library.writes:
                    yield case(replace(problem, given="float32"), out)
                    yield case(replace(problem, given="float32"), in_place)
                    yield case(replace(problem, given="float32"), vjp_out)


def _moments(library: Library, norm: Norm, dtype: str, values: str, layout: str, keepdims: bool) -> Any:
    x = Problem(library, norm, dtype, values=values, layout=layout).x
    found = an.moments(x, axis=dict(norm.options)["axis"], keepdims=keepdims)
    return tuple(found), found.var(), found.var(correction=1), found.std(correction=1)


def _moments_explained(library: Library, norm: Norm, dtype: str, layout: str) -> str:
    route = an.explain(an.moments, Problem(library, norm, dtype, layout=layout).x, axis=dict(norm.options)["axis"])
    return f"{route.path}: {route.reason}"


def _merged(library: Library, norm: Norm, dtype: str, values: str) -> Any:
    problem = Problem(library, norm, dtype, values=values)
    axis = dict(norm.options)["axis"]
    parts = [an.moments(problem.array(values, salt), axis=axis) for salt in range(1, 6)]
    merged = an.Moments.merge(parts)
    paired = parts[0] + parts[1]
    by_hand = an.Moments(paired.n, paired.mean, paired.m2) + parts[2]
    return tuple(merged), merged.var(correction=1), merged.std(), tuple(paired), tuple(by_hand), by_hand.var()


def _updated(library: Library, norm: Norm, dtype: str, momentum: float, correction: int) -> Any:
    problem = Problem(library, norm, dtype)
    _, moments = an.batch_norm(problem.x, **dict(norm.options), return_moments=True)
    shape = norm.parameter_shape
    mean, var = [library.make(numbers(kind, shape, dtype, 7)) for kind in ("normal", "positive")]
    first = an.update_running(mean, var, moments, momentum=momentum, correction=correction)
    return first, an.update_running(*first, moments)


def statistics(library: Library, which: Sequence[Norm], dtypes: Sequence[str]) -> Iterator[Case]:
    """Yield moments, their merging, and the updating of running statistics."""
    for norm in which:
        for dtype in dtypes:
            name = f"{library.name} {norm} {dtype}"
            if norm.function == "layer_norm":
                for values in ("normal", "far", "minute", "huge", "constant", "nan"):
                    yield Case(f"{name} moments {values}", partial(_moments, library, norm, dtype, values, "C", False))
                    yield Case(f"{name} merged {values}", partial(_merged, library, norm, dtype, values))
                for layout in library.layouts:
                    run = partial(_moments, library, norm, dtype, "offset", layout, True)
                    yield Case(f"{name} moments {layout}", run)
                    run = partial(_moments_explained, library, norm, dtype, layout)
                    yield Case(f"{name} moments {layout} explain", run)
            elif norm.function == "batch_norm":
                for momentum, correction in ((0.1, 1), (0.01, 0), (1.0, 1)):
                    run = partial(_updated, library, norm, dtype, momentum, correction)
                    yield Case(f"{name} update_running {momentum} {correction}", run)


def everything(library: Library) -> Iterator[Case]:
    """Yield all calls of a library that computes at once."""
    dtypes = [dtype for dtype in ("float16", "float32") if dtype in library.dtypes]
    wide = [*dtypes, "float64"]
    yield from basic(library, (*norms.SMALL, *norms.LARGE, *norms.EMPTY))
    yield from layouts(library, norms.SMALL, dtypes)
    yield from layouts(library, norms.THREADED, ["float32"])
    yield from variants(library, norms.SMALL, dtypes)
    yield from hostile(library, norms.SMALL[::3] + norms.LONG, library.dtypes)
    yield from special(library, norms.SMALL, wide)
    yield from special(library, norms.LARGE[::4], ["float32"])
    yield from statistics(library, norms.SMALL + norms.LONG + norms.EMPTY, wide)
    yield from statistics(library, norms.LARGE[3::6], ["float32"])


NUMPY = Library("numpy", lambda array: array, ("float16", "bfloat16", "float32", "float64"), LAYOUTS + ODD_LAYOUTS)
