"""Ways of calling that every library has."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.fuzz.case import DTYPES, Layout, Operand, fail
from benchmarks.fuzz.judge import check_gradients, check_layout, check_moments, check_values, check_y, reduced_axes
from benchmarks.fuzz.memory import DISTINCT_ORDERS, FORWARD_ORDERS, native
from benchmarks.fuzz.trial import SkippedError, Trial, Way, an, overlapping


def call(trial: Trial) -> None:
    """Call once; at times for the moments, too."""
    case = trial.case
    if case.function in ("batch_norm", "instance_norm") and "mean" not in case.operands and trial.random.random() < 0.3:
        y, moments = trial.run(return_moments=True)
        check_y(y, trial)
        # From the pass of a norm m2 is as good as its squares, which are not to be subnormal.
        if case.x.values not in ("subnormal", "minute", "every_magnitude", "spike"):
            check_moments(moments, trial)
    else:
        check_y(trial.run(), trial)
    trial.check_unchanged()


def again(trial: Trial) -> None:
    """Call thrice, with a call of the same kind on other numbers elsewhere in between: the same bits."""
    first = native(check_y(trial.run(), trial))
    other = Trial(trial.case, variant=1)
    for _ in range(2):
        check_y(other.run(), other, "y of a second call")
        second = native(trial.home.read(trial.run()))
        if first.tobytes() != second.tobytes() and not (np.isnan(first) & np.isnan(second) | (first == second)).all():
            fail("a repeated call gives other bits")
    trial.check_unchanged()
    other.check_unchanged()


def poison(trial: Trial) -> None:
    """NaN and infinity in one set leave every bit of the others."""
    case = trial.case
    if "mean" in case.operands or case.function == "group_norm" or not trial.placed["x"].array.size:
        raise SkippedError
    if case.x.layout.order in ("repeated", "windows") or case.x.layout.odd == "read_only" or not trial.home.strided:
        raise SkippedError
    clean = native(trial.home.read(trial.run()))
    array = trial.placed["x"].array
    where = tuple([trial.random.randrange(length) for length in array.shape])
    array[where] = trial.random.choice((np.nan, np.inf, -np.inf))
    found = native(trial.home.read(trial.run()))
    reduced = reduced_axes(case)
    poisoned = tuple([slice(None) if axis in reduced else slice(i, i + 1) for axis, i in enumerate(where)])
    for y in (clean, found):
        y[poisoned] = 0
    if clean.tobytes() != found.tobytes():
        fail("NaN or infinity changes the bits of other sets")
    trial.before["x"] = native(array)
    check_y(trial.run(), trial)


def threads(trial: Trial) -> None:
    """Two threads at once get the bits of one alone."""
    alone = native(trial.home.read(trial.run()))
    found: list[Any] = [None, None]
    barrier = threading.Barrier(2)

    def work(i: int) -> None:
        barrier.wait()
        with an.fast_paths(trial.case.fast):
            try:
                found[i] = [native(trial.home.read(trial.run())) for _ in range(3)]
            except Exception as error:  # noqa: BLE001, RUF100  raised again below
                found[i] = error

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in found:
        if isinstance(result, Exception):
            raise result
        if any(y.tobytes() != alone.tobytes() for y in result):
            fail("two threads at once get other bits")
    check_values(alone, trial.case, trial.exact_arguments())
    trial.check_unchanged()


def _out_operand(trial: Trial) -> Operand:
    """Draw an `out`."""
    case, random = trial.case, trial.random
    orders = [order for order in DISTINCT_ORDERS if case.library != "torch" or order in FORWARD_ORDERS]
    layout = Layout()
    if trial.home.strided:
        order = random.choice(orders) if random.random() < 0.7 else "C"
        odd = case.x.layout.odd if case.x.layout.odd == "big_endian" else random.choice(("", "", "", "subclass"))
        odd = "read_only" if case.wrong == "out_read_only" else odd
        layout = Layout(order, random.choice((1, 2, 3)) if random.random() < 0.1 else 0, odd)
    shape, dtype = case.x.shape, case.x.dtype
    if case.wrong == "out_shape":
        shape = (*shape[:-1], shape[-1] + 1) if random.random() < 0.5 else (1, *shape)
    if case.wrong == "out_dtype":
        dtype = random.choice([name for name in ("float32", "float64") if name != dtype])
    return Operand(shape, dtype, "ones", layout)


def out(trial: Trial) -> None:
    """Write y to an array that lies in any way."""
    target = trial.add("out", _out_operand(trial))
    if trial.run(out=target) is not target:
        fail("out is not what is returned")
    check_values(trial.home.read(target), trial.case, trial.exact_arguments(), "y in out")
    trial.check_unchanged("out")


def in_place(trial: Trial) -> None:
    """Write y to x itself."""
    if trial.case.x.layout.order in ("repeated", "windows"):
        raise SkippedError
    exact = trial.exact_arguments()
    if trial.run(out=trial.x) is not trial.x:
        fail("out is not what is returned")
    check_values(trial.home.read(trial.x), trial.case, exact, "y in place")
    trial.check_unchanged("x")


def overlap(trial: Trial) -> None:
    """Write y beside an argument, or refuse to where a byte is shared."""
    if trial.case.x.layout.odd == "big_endian" or trial.placed["x"].array.size > 3000:
        raise SkippedError
    target, shares, placed = overlapping(trial)
    before = np.asarray(placed.memory).tobytes()
    try:
        trial.run(out=target)
    except ValueError as error:
        if not shares:
            raise
        if not str(error).startswith(f"{trial.case.function}: "):
            fail("an overlap is refused in other words", str(error))
        if np.asarray(placed.memory).tobytes() != before:
            fail("a refused out is written to")
        return
    if shares:
        fail("an out that shares memory is accepted", f"{placed.array.shape} {placed.array.strides}")
    check_values(trial.home.read(target), trial.case, trial.exact_arguments(), "y beside an argument")


def add_dy(trial: Trial) -> Any:
    """Draw dy, and return it."""
    case, random = trial.case, trial.random
    layout = Layout()
    if trial.home.strided and random.random() < 0.5:
        order = random.choice(
            [order for order in DISTINCT_ORDERS if case.library != "torch" or order in FORWARD_ORDERS]
        )
        layout = Layout(order, random.choice((1, 2)) if random.random() < 0.1 else 0)
    shape = (*case.x.shape, 1) if case.wrong == "dy_shape" else case.x.shape
    known = [name for name in DTYPES if not (case.library == "dask" and name == "bfloat16")]
    dtypes = ("float32", "float64") if case.library == "array_api_strict" else known
    dtype = case.x.dtype if random.random() < 0.8 else random.choice(dtypes)
    if case.wrong == "dy_dtype":
        return trial.add("dy", Operand(shape, "int32", "integers", layout))
    return trial.add("dy", Operand(shape, dtype, random.choice(("ordinary", "ordinary", "ordinary", "zeros")), layout))


def vjp(trial: Trial) -> None:
    """Ask for the gradients, twice."""
    dy = add_dy(trial)
    y, pullback = trial.vjp()
    check_y(y, trial)
    found = pullback(dy)
    check_gradients(found, trial)
    if trial.home.strided:
        check_layout(trial.home.read(found.x), trial.placed["x"].array, "dx")
    if trial.random.random() < 0.2:
        for first, second in zip(found, pullback(dy), strict=True):
            if (
                first is not None
                and native(trial.home.read(first)).tobytes() != native(trial.home.read(second)).tobytes()
            ):
                fail("a pullback gives other bits the second time")
    trial.check_unchanged()


def vjp_out(trial: Trial) -> None:
    """Ask for dx in an array that lies in any way."""
    target = trial.add("out", _out_operand(trial))
    dy = add_dy(trial)
    _, pullback = trial.vjp()
    found = pullback(dy, out=target)
    if found.x is not target:
        fail("out is not what the pullback returns")
    check_gradients(found, trial)
    trial.check_unchanged("out")


def moments(trial: Trial) -> None:
    """Measure."""
    check_moments(trial.run(), trial)
    trial.check_unchanged()


def merge(trial: Trial) -> None:
    """Measure chunks along a reduced axis, and merge them."""
    case = trial.case
    axis = trial.random.choice(reduced_axes(case))
    length = case.x.shape[axis]
    if case.x.values == "poisoned" or length < 2:
        raise SkippedError
    cuts = sorted(trial.random.sample(range(1, length), min(length - 1, trial.random.randint(1, 5))))
    bounds = list(zip([0, *cuts], [*cuts, length], strict=True))
    parts = [an.moments(trial.x[(slice(None),) * axis + (slice(a, b), ...)], **case.options) for a, b in bounds]
    together = sum(parts) if trial.random.random() < 0.5 else an.Moments.merge(parts)
    check_moments(together, trial, merges=len(cuts))


def layer(trial: Trial) -> None:
    """Train batch norm for three steps, each judged, and then evaluate."""
    case = replace(trial.case, function="batch_norm", groups=(), operands={"x": trial.case.x})
    options = {name: option for name, option in trial.case.options.items() if name in ("channel_axis", "eps")}
    case = replace(case, options={"channel_axis": 0} | options)
    channel, shape = case.options["channel_axis"], case.x.shape
    channels = shape[channel]
    each = int(np.prod(shape)) // max(channels, 1)
    if each < 2 or not channels or case.x.values not in ("normal", "offset", "pixels", "constant_rows", "zeros"):
        raise SkippedError
    norm = an.BatchNorm(channels, xp=_namespace(case.library), **case.options)
    axes = tuple([axis for axis in range(len(shape)) if axis != channel % len(shape)])
    mean, var = np.zeros(channels, np.longdouble), np.ones(channels, np.longdouble)
    size = np.ones(channels, np.longdouble)
    for step in range(3):
        batch = Trial(case, variant=step)
        check_y(norm(batch.x), batch, "y of a layer in training")
        a = batch.exact_arguments()["x"].astype(np.longdouble)
        mean, var = 0.9 * mean + 0.1 * a.mean(axis=axes), 0.9 * var + 0.1 * a.var(axis=axes, ddof=1)
        size = np.maximum(size, np.abs(a).max(axis=axes))
    found = [native(batch.home.read(running)) for running in (norm.running_mean, norm.running_var)]
    # Three steps, each with a few roundings of numbers as large as the largest.
    for name, got, exact, bound in (("mean", found[0], mean, size), ("var", found[1], var, np.maximum(var, 1))):
        if not (np.abs(got - exact) <= 16 * 2.0**-23 * bound).all():
            fail(f"running_{name} is off", f"{got!r:.200} for {exact!r:.200}")
    check_values(
        batch.home.read(norm.eval()(batch.x)),
        case,
        batch.exact_arguments() | {"mean": found[0], "var": found[1]},
        "y in evaluation",
    )


def _namespace(library: str) -> Any:
    import importlib

    names = {"numpy_alone": "numpy", "jax": "jax.numpy", "dask": "dask.array"}
    return importlib.import_module(names.get(library, library))


def alone(trial: Trial) -> None:
    """Where the engine serves, a sample has the bits that it has among others, and so it has where they run backwards.

    Of dense arrays, along the outermost axis of memory: of a cropped image the order of rows may be another, and so it
    may be of groups of one channel, whose other axes are then taken for channels.
    """
    case = trial.case
    shape, steps = case.x.shape, [abs(stride) for stride in trial.placed["x"].array.strides]
    kept = set(range(len(shape))) - set(reduced_axes(case)) - {case.options.get("channel_axis", -1) % len(shape)}
    axis = steps.index(max(steps))
    whole = any(len(operand.shape) == len(shape) for name, operand in case.operands.items() if name != "x")
    if whole or axis not in kept or shape[axis] < 2 or 0 in shape or "mean" in case.operands:
        raise SkippedError
    if case.x.layout.order not in ("C", "F", "permuted", "channels_last", "reversed"):
        raise SkippedError
    if case.function == "group_norm" and case.groups[0] == shape[case.options["channel_axis"]]:
        raise SkippedError
    i = trial.random.randrange(shape[axis])
    backwards = case.library != "torch" and trial.random.random() < 0.5
    part = (slice(None),) * axis + (slice(None, None, -1) if backwards else slice(i, i + 1),)
    both = {"x": trial.x, **trial.others}, {"x": trial.x[part], **trial.others}
    for arrays in both:
        others = {name: array for name, array in arrays.items() if name != "x"}
        if an.explain(trial.function, arrays["x"], *case.groups, **others, **case.options).path != "anynorm_numba":
            raise SkippedError
    every, one = [native(trial.home.read(trial.of(arrays))) for arrays in both]
    if native(every[part]).tobytes() != one.tobytes():
        fail("a sample has other bits alone or backwards", f"{part}")


ANY: dict[str, Way] = {
    way.__name__: way
    for way in (call, again, poison, threads, out, in_place, overlap, vjp, vjp_out, moments, merge, layer, alone)
}
