"""`anynorm.vjp` on ordinary data: every norm, library, dtype and layout, against the exact gradients.

Other ways of calling are in test_vjp_calling.py, data that is not ordinary in test_vjp_hostile.py, calls that must fail
in test_vjp_errors.py. JAX, which compiles, and Dask, which schedules, meet every norm in one dtype each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradients import (
    check_gradients,
    cotangent,
    exact_gradients,
    to_numpy,
    verify_gradients,
    vjp,
)
from inputs import NORMS, Case, Norm, make_case
from layouts import LAYOUTS, layouts_of
from libraries import (
    ALL_DTYPES,
    BOTH_NUMPY,
    EACH_WAY,
    JAX_X64,
    LIBRARIES,
    ArrayLibrary,
    NumPyArray,
    each_library,
    marks_of,
    numpy_dtype,
)

import anynorm as an

SLOW = ("jax", "dask")
FUNCTIONS_ONCE = ("layer-modulated", "rms-leading", "group-last", "instance", "batch-given")
BY_NAME = {norm.name: norm for norm in NORMS}


def _meets(name: str, dtype: str, norm: Norm) -> bool:
    library = LIBRARIES[name]
    if len(library.dtypes) == 1 and library.family in SLOW:
        return norm.name in FUNCTIONS_ONCE
    return library.family not in SLOW or library.dtypes[NORMS.index(norm) % len(library.dtypes)] == dtype


COMBINATIONS = [
    (name, dtype, norm)
    for name, library in LIBRARIES.items()
    for dtype in library.dtypes
    for norm in NORMS
    if _meets(name, dtype, norm)
]


def _parameters(combinations: list[tuple[str, str, Norm]]) -> Any:
    return [
        pytest.param(name, dtype, norm, id=f"{name}-{dtype}-{norm.name}", marks=marks_of(name, dtype))
        for name, dtype, norm in combinations
    ]


each_combination = pytest.mark.parametrize(
    ("library", "dtype", "norm"), _parameters(COMBINATIONS), indirect=["library"]
)
few_where_slow = pytest.mark.parametrize(
    ("library", "dtype", "norm"),
    _parameters(
        [
            combination
            for combination in COMBINATIONS
            if LIBRARIES[combination[0]].family not in SLOW or combination[2].name in FUNCTIONS_ONCE
        ]
    ),
    indirect=["library"],
)


@pytest.mark.feature("gradients")
@each_combination
def test_every_norm_on_every_library_and_dtype(library: ArrayLibrary, dtype: str, norm: Norm) -> None:
    """The gradients lie within the contract's bound of the exact ones, in their argument's dtype, shape and library."""
    case = make_case(norm, dtype)
    check_gradients(case, library, cotangent(case))


@few_where_slow
def test_y_is_that_of_the_plain_call(library: ArrayLibrary, dtype: str, norm: Norm) -> None:
    """vjp returns the y of the function itself, bit for bit."""
    case = make_case(norm, dtype)
    y, _ = vjp(case, library.make_all(case.arrays))
    plain = case.run(library)
    assert type(y) is type(plain)
    assert library.to_numpy(y).tobytes() == library.to_numpy(plain).tobytes()


FORMULA = [
    pytest.param(name, dtype, norm, id=f"{name}-{dtype}-{norm.name}")
    for name in ("numpy", "torch", "cupy", "torch_cuda", "jax", "jax_x64")
    for dtype in LIBRARIES[name].dtypes
    for norm in NORMS
    if not name.startswith("jax") or (norm.name == "rms-leading" and dtype != "bfloat16")
]


@pytest.mark.parametrize(("library", "dtype", "norm"), FORMULA, indirect=["library"])
def test_formula_alone(library: ArrayLibrary, dtype: str, norm: Norm) -> None:
    """With fast paths turned off for the forward pass, the contract holds as well, whatever holds for the pullback."""
    case = make_case(norm, dtype)
    dy = cotangent(case)
    with an.fast_paths(False):
        _, pullback = vjp(case, library.make_all(case.arrays))
    verify_gradients(
        to_numpy(pullback(library.make(dy)), library), case, exact_gradients(case, dy, case.flushes(library))
    )


def _repeating(dy: NumPyArray) -> NumPyArray:
    """Return a dy of which all samples share one memory."""
    return np.lib.stride_tricks.as_strided(dy, dy.shape, (0, *dy.strides[1:]))


DY_LAYOUTS = {name: LAYOUTS[name] for name in ("contiguous", "channels_last", "transposed", "fortran", "sliced")}
DY_LAYOUTS |= {"repeating": _repeating, "read_only": LAYOUTS["read_only"], "reversed": LAYOUTS["reversed"]}


def _dy_layout(name: str, turn: int) -> str:
    """Return one of the layouts that a library's dy can have; the last two are NumPy's own."""
    found = tuple(DY_LAYOUTS) if LIBRARIES[name].layouts == "numpy" else tuple(DY_LAYOUTS)[:-2]
    return found[turn % len(found)]


WITH_LAYOUTS = [
    (name, ("float32", "float16")[i % 2], norm, layout, _dy_layout(name, i + j))
    for name in (*BOTH_NUMPY, "torch", "cupy", "torch_cuda")
    for i, norm in enumerate(NORMS)
    for j, layout in enumerate(layouts_of(name))
]


@pytest.mark.parametrize(
    ("library", "dtype", "norm", "layout", "dy_layout"),
    [
        pytest.param(*with_layout, id="-".join((with_layout[0], with_layout[1], with_layout[2].name, *with_layout[3:])))
        for with_layout in WITH_LAYOUTS
    ],
    indirect=["library"],
)
def test_layouts_of_x_and_dy(library: ArrayLibrary, dtype: str, norm: Norm, layout: str, dy_layout: str) -> None:
    """However x and dy lie in memory, the gradients are right, and dx lies as y does."""
    case = make_case(norm, dtype)
    case = case.with_x(LAYOUTS[layout](case.arrays["x"]))
    dy = DY_LAYOUTS[dy_layout](cotangent(case))
    y, pullback = vjp(case, library.make_all(case.arrays))
    found = pullback(library.make(dy))
    assert _strides(found.x) == _strides(y)
    verify_gradients(to_numpy(found, library), case, exact_gradients(case, dy, case.flushes(library)))


def _strides(array: Any) -> Any:
    return array.stride() if hasattr(array, "stride") else array.strides


MIXED = [
    (name, dtype, dy_dtype, dtypes[(i + j) % len(dtypes)], FUNCTIONS_ONCE[(i + j) % len(FUNCTIONS_ONCE)])
    for name, library in LIBRARIES.items()
    for dtypes in [ALL_DTYPES if name in JAX_X64 else library.dtypes]
    for i, dtype in enumerate(library.dtypes)
    for j, dy_dtype in enumerate(dtypes)
    if library.family not in SLOW or j == (i + 1) % len(dtypes)
]


@pytest.mark.parametrize(
    ("library", "dtype", "dy_dtype", "parameters", "norm"),
    [pytest.param(*value, id="-".join(value)) for value in MIXED],
    indirect=["library"],
)
def test_dtypes_of_dy_and_parameters(
    library: ArrayLibrary, dtype: str, dy_dtype: str, parameters: str, norm: str
) -> None:
    """dy and parameters may have any dtype beside any x; each gradient has the dtype of its own argument."""
    case = make_case(BY_NAME[norm], dtype, parameters)
    check_gradients(case, library, cotangent(case, dy_dtype))


def test_dy_and_weight_are_not_rounded_to_half() -> None:
    """A float32 dy or weight beside a float16 x enters as it is, beyond float16's range and finer than its numbers."""
    x = np.random.default_rng(0).normal(size=(6, 64)).astype("float16")
    random = np.random.default_rng(1)
    weight = (1 + 1e-5 * random.normal(size=64)).astype("float32")
    for dy in (1e5 * random.normal(size=x.shape), 1 + 1e-5 * random.normal(size=x.shape)):
        case = Case(Norm("", "rms_norm"), {"x": x, "weight": weight, "bias": weight})
        check_gradients(case, LIBRARIES["numpy"], dy.astype("float32"))


EMPTY = (
    (Norm("layer", "layer_norm", {"axis": (0, 2)}, {"weight": (4, 0)}), (4, 3, 0)),
    (Norm("layer-batch", "layer_norm", {}, {"weight": (8,), "bias": (1, 8)}), (0, 8)),
    (Norm("group", "group_norm", {}, {"weight": (6,), "bias": (6,)}, (3,)), (2, 6, 0)),
    (Norm("batch", "batch_norm", {}, {"weight": (6,), "bias": (6,)}), (0, 6, 5)),
    (Norm("batch-given", "batch_norm", {}, {"weight": (6,), "bias": (6,), "mean": (6,), "var": (6,)}), (0, 6)),
    (Norm("batch-channels", "batch_norm", {}, {"weight": (0,)}), (4, 0, 5)),
)


@pytest.mark.parametrize(("norm", "shape"), EMPTY, ids=[norm.name for norm, _ in EMPTY])
@each_library(EACH_WAY)
def test_empty_arrays(library: ArrayLibrary, norm: Norm, shape: tuple[int, ...]) -> None:
    """An x without elements has a dx without any; the sums over nothing are 0."""
    dtype = library.dtypes[0]
    parameters = {name: np.ones(parameter, "float32") for name, parameter in norm.parameters.items()}
    case = Case(norm, {"x": np.zeros(shape, numpy_dtype(dtype))} | parameters)
    check_gradients(case, library, np.zeros(shape, "float32"))


ALONE = (
    (Norm("layer", "layer_norm", {}, {"weight": (1,), "bias": (1,)}), (4, 1)),
    (Norm("rms", "rms_norm", {}, {"weight": (1,), "bias": (1,)}), (4, 1)),
    (Norm("group", "group_norm", {}, {"weight": (3,), "bias": (3,)}, (3,)), (2, 3)),
    (Norm("instance", "instance_norm", {}, {"weight": (3,), "bias": (3,)}), (2, 3)),
)


@pytest.mark.parametrize(("norm", "shape"), ALONE, ids=[norm.name for norm, _ in ALONE])
@each_library(EACH_WAY)
def test_one_value_per_set(library: ArrayLibrary, norm: Norm, shape: tuple[int, ...]) -> None:
    """A set of one value has a dx of 0 where the norm centres; its bias has a gradient all the same."""
    random = np.random.default_rng(0)
    arrays = {"x": random.normal(size=shape).astype("float32")}
    arrays |= {name: random.normal(size=parameter).astype("float32") for name, parameter in norm.parameters.items()}
    case = Case(norm, arrays)
    found = check_gradients(case, library, cotangent(case))
    if norm.name != "rms":
        assert not found.x.any()
        assert not found.weight.any()
