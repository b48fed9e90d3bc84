"""Hostile numbers, layouts and orders of threads through the CUDA kernels on the CPU: each set for itself.

Every row of the table of kernels, on ordinary numbers, is in test_cuda_kernels.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import cuda_host
import numpy as np
import pytest
from cuda_numpy import H200, RTX, Backend, on_cuda
from engine_forms import FORMS, Form
from gradients import cotangent, exact_gradients, verify_gradients, vjp
from hostile import ARRANGEMENTS, HOSTILE
from inputs import NORMS, Case, make_case, verify
from layouts import STRIDED
from libraries import NumPyArray, numpy_dtype

from anynorm._core.plan import over_axes
from anynorm_cuda import _argument
from anynorm_cuda.engine import Dtypes, Run, configure
from tests.cuda.test_cuda_kernels import DTYPES, judge, launch, make
from tests.numpy.test_numba_hostile import hostile_sets

if cuda_host.missing() is not None:
    pytest.skip(str(cuda_host.missing()), allow_module_level=True)

__all__ = ["launch"]  # a fixture

each_dtype = pytest.mark.parametrize("dtype", DTYPES)

each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

# Lengths of a set that threads of a warp hold, those of a block in registers, in shared memory, and chunks; each in one
# dtype, since every form in each is a program of its own.
WAYS = {
    "short": (30, "float16", H200),
    "block": (700, "bfloat16", H200),
    "memory": (9000, "float32", H200),
    "chunks": (30000, "float32", RTX),
}
each_way = pytest.mark.parametrize("way", WAYS)

# Weights that vary otherwise than axes lie: no five-dimensional view holds these norms of inputs.py in any layout.
LEFT_TO_THE_FORMULA = ("layer-modulated", "rms-heads", "group-two-batches")

# Those whose sets are numbered alike however many there are.
FLAT = {name: form for name, form in FORMS.items() if not form.pairs}


def both_passes(case: Case, dy: NumPyArray, backend: Backend) -> tuple[Any, Any]:
    """Return y and the gradients, both by the engine."""
    before = len(backend.configs)
    y, pullback = vjp(case, case.arrays)
    found = pullback(dy)
    assert len(backend.configs) == before + 2, backend.declined
    return y, found


@each_way
@each_form
def test_hostile_sets(form: Form, way: str, launch: Run) -> None:
    """Sets of every kind beside each other are within the bounds, in both passes."""
    length, dtype, device = WAYS[way]
    eps = 1e-5 if way == "block" else 0.0
    case = form.of(hostile_sets(form.runs * length, dtype), eps=eps)
    parameters = np.random.default_rng(2).normal(size=(2, *form.parameter(case.arrays["x"].shape)))
    parameters = parameters.astype(numpy_dtype(dtype))
    case = Case(case.norm, case.arrays | dict(zip(("weight", "bias"), parameters, strict=True)))
    with on_cuda(launch, device) as backend:
        judge(case, backend)


@pytest.mark.parametrize("kind", HOSTILE)
@each_dtype
def test_hostile_numbers(kind: str, dtype: str, launch: Run) -> None:
    """What norms go wrong on is within the bound in every arrangement."""
    hostile = HOSTILE[kind]
    if dtype not in hostile.dtypes:
        pytest.skip(f"{dtype} has no such numbers")
    for arrangement in ARRANGEMENTS:
        case = arrangement.case(hostile.rows(dtype), hostile.eps_for(dtype))
        with on_cuda(launch) as backend:
            verify(case.function()(case.arrays), case.arrays["x"], case.reference())
        assert backend.configs or backend.declined


@pytest.mark.parametrize("poison", [np.nan, -np.inf])
@each_way
@each_form
def test_nan_and_infinity(form: Form, way: str, poison: float, launch: Run) -> None:
    """A NaN or infinity, wherever in a set, makes that set's y and dx NaN, and changes no bit of another's."""
    length, dtype, device = WAYS[way]
    clean = np.random.default_rng(9).normal(3, 2, size=(6, form.runs * length)).astype(numpy_dtype(dtype))
    dy = cotangent(form.of(clean))
    with on_cuda(launch, device) as backend:
        expected, slopes = both_passes(form.of(clean), dy, backend)
        # Two sets at a time, with clean ones on both sides of each.
        for poisoned in ({1: 0, 4: 17}, {1: form.runs * length // 2 + 1, 4: -1}):
            rows = clean.copy()
            for row, position in poisoned.items():
                rows[row, position] = poison
            found, its_slopes = both_passes(form.of(rows), dy, backend)
            kept = [0, 2, 3, 5]
            for this, that in ((found, expected), (its_slopes.x, slopes.x)):
                assert form.restored(this, 6)[kept].tobytes() == form.restored(that, 6)[kept].tobytes()
            for row, position in poisoned.items():
                y, dx = form.restored(found, 6)[row], form.restored(its_slopes.x, 6)[row]
                assert np.isnan(dx).all()
                if form.function == "rms_norm" and np.isinf(poison):
                    assert np.isnan(y[position])
                    assert (np.delete(y, position) == 0).all()
                else:
                    assert np.isnan(y).all()


@each_way
@pytest.mark.parametrize("form", FLAT.values(), ids=FLAT)
def test_a_set_has_its_bits_in_any_batch(form: Form, way: str, launch: Run) -> None:
    """y and dx of a set do not depend on how many others there are, nor on what these are."""
    length, dtype, device = WAYS[way]
    rows = np.random.default_rng(5).normal(3, 2, size=(40, form.runs * length)).astype(numpy_dtype(dtype))
    dy = np.random.default_rng(6).normal(size=rows.shape).astype(rows.dtype)
    found = []
    for sets in (40 if length < 1000 else 10, 4):
        with on_cuda(launch, device) as backend:
            y, slopes = both_passes(form.of(rows[:sets]), form.of(dy[:sets]).arrays["x"], backend)
        found.append([form.restored(array, sets) for array in (y, slopes.x)])
    for many, few in zip(*found, strict=True):
        assert many[: len(few)].tobytes() == few.tobytes()


@each_dtype
def test_a_sample_has_its_bits_in_any_batch(dtype: str, launch: Run) -> None:
    """One sample of a batch has the bits it has alone, in group and instance norm, channels first and last."""
    for function, groups, options in (
        ("group_norm", (3,), {}),
        ("group_norm", (3,), {"channel_axis": -1}),
        ("instance_norm", (), {}),
        ("instance_norm", (), {"channel_axis": -1}),
        ("layer_norm", (), {"axis": (1, 2, 3)}),
    ):
        case = make(function, (7, 12, 11, 12), dtype, (), groups, **options)
        dy = cotangent(case)
        with on_cuda(launch) as backend:
            whole, slopes = both_passes(case, dy, backend)
            alone, its_slopes = both_passes(case.with_x(case.arrays["x"][4:5]), dy[4:5], backend)
        assert whole[4:5].tobytes() == alone.tobytes()
        assert slopes.x[4:5].tobytes() == its_slopes.x.tobytes()


@each_way
@each_form
def test_the_order_of_threads_changes_no_bit(form: Form, way: str, cuda_programs: Any) -> None:
    """Whichever thread and block goes first, and whatever memory held before, all results have the same bits."""
    length, dtype, device = WAYS[way]
    case = form.case(dtype, 6, length)
    dy = cotangent(case)
    found = []
    for order in ("forward", "backward", "random"):
        with on_cuda(cuda_host.launcher(cuda_programs, order=order), device) as backend:
            y, slopes = both_passes(case, dy, backend)
        found.append(b"".join([array.tobytes() for array in (y, *slopes)]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
def test_layouts(norm: Any, launch: Run) -> None:
    """In whatever order axes lie, and whatever lies between, results are within the bounds, or the formula's."""
    served = 0
    for name, layout in STRIDED.items():
        case = make_case(norm, "bfloat16" if name in ("contiguous", "sliced") else "float32")
        case = case.with_x(layout(case.arrays["x"]))
        dy = cotangent(case)
        with on_cuda(launch) as backend:
            y, pullback = vjp(case, case.arrays)
            verify(y, case.arrays["x"], case.reference())
            verify_gradients(pullback(layout(dy)), case, exact_gradients(case, dy))
        assert backend.configs or backend.declined, name
        served += len(backend.configs)
    assert (served > 0) == (norm.name not in LEFT_TO_THE_FORMULA)


@pytest.mark.parametrize("flush", ["left", "right"])
def test_nothing_beyond_an_array_is_touched(flush: Any, launch: Run) -> None:
    """Kernels read and write within their arrays: on either side of each begins memory that is not there."""
    cases = [
        make("layer_norm", shape, dtype)
        for shape, dtype in itertools.product([(7, 9), (5, 64), (3, 1001), (1, 9000)], DTYPES)
    ]
    cases += [
        make("group_norm", (2, 6, 7, 7), "bfloat16", groups=(3,)),
        make("batch_norm", (9, 5, 3, 3), "float16"),
        make("batch_norm", (5, 6, 9, 9), "float32"),
        make("batch_norm", (77, 45), "bfloat16", channel_axis=-1),
        make("group_norm", (2, 5, 5, 21), "float16", groups=(3,), channel_axis=-1),
    ]
    for case in cases:
        arrays = {name: cuda_host.guarded(array, flush, writable=False) for name, array in case.arrays.items()}
        with on_cuda(launch) as backend:
            judge(Case(case.norm, arrays), backend)


@pytest.mark.parametrize(("x_scale", "dy_scale", "eps"), [(2.0**51, 2.0**100, 1e-5), (2.0**-78, 2.0**-100, 0.0)])
@each_way
@each_form
def test_gradients_far_from_one(form: Form, way: str, x_scale: float, dy_scale: float, eps: float, launch: Run) -> None:
    """Where x is scaled and dy is as large or as small, dx is within its bound: no factor leaves the range before."""
    length, _, device = WAYS[way]
    rows = (x_scale * np.random.default_rng(1).normal(size=(4, form.runs * length))).astype("float32")
    case = form.of(rows, eps=eps)
    dy = (dy_scale * cotangent(case)).astype("float32")
    with on_cuda(launch, device) as backend:
        _, found = both_passes(case, dy, backend)
    verify_gradients(found, case, exact_gradients(case, dy))


@pytest.mark.parametrize("lines", [512, 4096, 20000])
def test_many_short_lines(lines: int, launch: Run) -> None:
    """Sets of thousands of lines of one vector are summed as trees are: numbers of one size, whose roundings add up."""
    random = np.random.default_rng(3)
    x = (random.choice([-1.0, 1.0], size=(1, lines, 2, 2)) / 3).astype("float32")
    case = Case(make("group_norm", (1, 4, 2, 2), "float32", (), (1,)).norm, {"x": x})
    with on_cuda(launch) as backend:
        judge(case, backend)


@pytest.mark.parametrize("rows", [4096, 8192, 100_000])
def test_many_rows(rows: int, launch: Run) -> None:
    """Columns of thousands of numbers of one size are summed so that their roundings do not add up."""
    case = make("instance_norm", (1, rows, 5), "float32", (), channel_axis=-1)
    signs = np.where(np.random.default_rng(3).random(case.arrays["x"].shape) < 0.5, np.float32(-1), np.float32(1))
    case, dy = case.with_x(signs / np.float32(3)), np.full_like(signs, 0.1)
    with on_cuda(launch) as backend:
        y, found = both_passes(case, dy, backend)
    verify(y, case.arrays["x"], case.reference())
    verify_gradients(found, case, exact_gradients(case, dy))


@pytest.mark.parametrize("rows", [512, 4096, 5000])
def test_squares_of_two_sizes(rows: int, launch: Run) -> None:
    """Where each square but the first is just too small to change a sum it is added to, not all of them are lost."""
    signs = np.where(np.arange(rows) % 2, np.float32(1), np.float32(-1))
    for few in (rows // 32, 32, 1):
        x = signs * np.float32(0.998 * 2.0**-12)
        x[:few] = signs[:few]
        for case in (
            make("instance_norm", (1, rows, 5), "float32", (), channel_axis=-1, eps=0.0).with_x(
                np.repeat(x[None, :, None], 5, axis=2)
            ),
            make("layer_norm", (2, rows), "float32", (), eps=0.0).with_x(np.stack([x, x])),
        ):
            with on_cuda(launch) as backend:
                judge(case, backend)


@pytest.mark.parametrize("length", [4, 32, 128, 200, 3000])
def test_slopes_of_two_sizes(length: int, launch: Run) -> None:
    """The gradient of a bias misses no slopes that are each too small to change a sum they are added to."""
    rows = 40_000 if length < 100 else 700
    case = make("layer_norm", (rows, length), "float32")
    dy = np.full((rows, length), np.float32(0.99 * 2.0**-24))
    dy[0] = 1
    with on_cuda(launch, H200._replace(processors=1)) as backend:
        _, found = both_passes(case, dy, backend)
    verify_gradients(found, case, exact_gradients(case, dy))


def test_gradients_of_equal_numbers(launch: Run) -> None:
    """Sums of many equal slopes, as a mean sends them, and of a large one before small ones, are within the bounds."""
    case = make("instance_norm", (8192, 2, 2), "float32", channel_axis=1)
    dy = np.full_like(case.arrays["x"], 0.1)
    rows = make("layer_norm", (2048, 260), "float32")
    falling = np.full_like(rows.arrays["x"], 2.0**-24)
    falling[:32] = 1
    for one, slopes, device in ((case, dy, H200), (rows, falling, H200._replace(processors=4))):
        with on_cuda(launch, device) as backend:
            _, found = both_passes(one, slopes, backend)
        verify_gradients(found, one, exact_gradients(one, slopes))


@pytest.mark.parametrize("rows", [3, 33, 300, 9000])
def test_what_is_not_there_has_no_gradient(rows: int, launch: Run) -> None:
    """Columns and lines of equal values near the largest have finite gradients, though 0 is out of range from there."""
    for case in (
        make("instance_norm", (1, rows, 5), "float32", channel_axis=-1),
        make("instance_norm", (1, 5, rows), "float32"),
    ):
        x = np.full_like(case.arrays["x"], 1e37)
        dy = cotangent(case)
        with on_cuda(launch) as backend:
            y, found = both_passes(case.with_x(x), dy, backend)
        verify(y, x, case.with_x(x).reference())
        verify_gradients(found, case.with_x(x), exact_gradients(case.with_x(x), dy))


@pytest.mark.parametrize("shape", [(2, 2**27, 32), (3, 70_000_000, 40), (2**32, 8), (4, 2**30 + 2**29)])
def test_what_is_not_counted(shape: tuple[int, ...]) -> None:
    """Shapes with more sets, columns or elements of a set than the kernels count in are left to the formula."""
    axis = (0, 2) if len(shape) == 3 else 1 if shape[0] > shape[1] else 0
    plan = over_axes(False, "layer_norm", shape, axis, True, None, None)
    strides = tuple([int(np.prod(shape[place + 1 :], dtype=object)) for place in range(len(shape))])
    config = configure("forward", plan, Dtypes("float16", None, None), shape, (strides, strides), None, None, H200)
    assert isinstance(config, str) or shape == (4, 2**30 + 2**29)
    if not isinstance(config, str):
        assert config.counts[_argument.COUNTS.index("columns")] < 2**31


@each_way
@each_form
def test_gradients_of_equal_values(form: Form, way: str, launch: Run) -> None:
    """Equal values with the smallest eps, scaled to be measured, have the gradient of their own 1/√eps."""
    length, _, device = WAYS[way]
    values = np.asarray([[0], [2.0**100], [-(2.0**100)], [2.0**-100]], "float32")
    if form.function == "rms_norm":
        values[1:] = 0  # the others' values are not taken out
    case = form.of(np.repeat(values, form.runs * length, axis=1), eps=2.0**-126)
    dy = cotangent(case)
    with on_cuda(launch, device) as backend:
        _, found = both_passes(case, dy, backend)
    verify_gradients(found, case, exact_gradients(case, dy))
