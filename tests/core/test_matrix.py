"""The matrix: every norm on every library, in the dtypes and layouts that it has, against the reference.

Here each function is called eagerly, on ordinary data, in every dtype and layout of every library. The other ways of
calling are in test_ways_torch.py, test_ways_jax.py and test_ways_dask.py, data that is not ordinary in test_hostile.py.
"""

from __future__ import annotations

import itertools

import pytest
from inputs import NORMS, Norm, check, make_case
from layouts import LAYOUTS, layouts_of
from libraries import DTYPE_FEATURES, HALVES, JAX_X64, LIBRARIES, ArrayLibrary, marks_of

import anynorm as an

# Each function once, with all its parameters, where the choice of axes cannot matter.
FUNCTIONS_ONCE = ("layer", "rms-leading", "group-last", "instance", "batch-given")


def _meets(name: str, dtype: str, layout: str, norm: Norm) -> bool:
    """Say whether a library, which knows every function in each of its dtypes and layouts, meets this norm in these.

    In layouts that are not contiguous the norms of one function share the dtypes out, each taking some in each layout.
    JAX, which compiles, and Dask, which schedules, meet every norm in float32.
    """
    library = LIBRARIES[name]
    if layout == "contiguous":
        return library.family not in ("jax", "dask") or dtype == "float32" or norm.name in FUNCTIONS_ONCE
    alike = [value for value in NORMS if value.function == norm.function]
    turns = min(len(alike), len(library.dtypes))
    turn = library.dtypes.index(dtype) + layouts_of(name).index(layout)
    return turn % turns == alike.index(norm) % turns


@pytest.mark.parametrize(
    ("library", "dtype", "layout", "norm"),
    [
        pytest.param(
            name,
            dtype,
            layout,
            norm,
            id=f"{name}-{dtype}-{layout}-{norm.name}",
            marks=[
                pytest.mark.feature(norm.function),
                *(marks_of(name, dtype) if layout == "contiguous" else DTYPE_FEATURES[dtype]),
            ],
        )
        for name, library in LIBRARIES.items()
        for dtype in library.dtypes
        for layout in layouts_of(name)
        for norm in NORMS
        if _meets(name, dtype, layout, norm)
    ],
    indirect=["library"],
)
def test_every_norm_on_every_library_dtype_and_layout(
    norm: Norm, library: ArrayLibrary, dtype: str, layout: str
) -> None:
    """y lies within the contract's bound of the exact result, in x's dtype and library, and no argument changes."""
    case = make_case(norm, dtype)
    case = case.with_x(LAYOUTS[layout](case.arrays["x"]))
    before = {name: array.tobytes() for name, array in case.arrays.items()}
    check(case, library)
    assert {name: array.tobytes() for name, array in case.arrays.items()} == before


# Each function once, and each dtype.
JAX_ALONE = set(zip(FUNCTIONS_ONCE, ("float16", "float32", "bfloat16", "float64", "float32"), strict=True))

# Only these have fast paths to turn off, and so the formula did not run above. JAX is slow without its compiler.
FORMULA = [
    pytest.param(
        name,
        dtype,
        norm,
        id=f"{name}-{dtype}-{norm.name}",
        marks=[pytest.mark.feature(norm.function), *marks_of(name, dtype)],
    )
    for name in ("numpy", "torch", "cupy", "torch_cuda", "jax", "jax_x64")
    for dtype in LIBRARIES[name].dtypes
    for norm in NORMS
    if not name.startswith("jax") or (norm.name, dtype) in JAX_ALONE
]


@pytest.mark.parametrize(("library", "dtype", "norm"), FORMULA, indirect=["library"])
def test_formula_alone(library: ArrayLibrary, dtype: str, norm: Norm) -> None:
    """With fast paths turned off, the contract holds as well."""
    with an.fast_paths(False):
        check(make_case(norm, dtype), library)


# JAX, which compiles, and Dask, which schedules, meet every pair of dtypes with one function, and every function.
PARAMETERS = [
    pytest.param(name, dtype, parameters, norm, id=f"{name}-{dtype}-{parameters}-{norm.name}")
    for name, library in LIBRARIES.items()
    for i, (dtype, parameters) in enumerate(
        itertools.permutations(library.dtypes, 2)
        if name not in JAX_X64
        else [("float64", value) for value in (*HALVES, "float32")]
    )
    for j, norm in enumerate([value for value in NORMS if value.name in FUNCTIONS_ONCE])
    if library.family not in ("jax", "dask") or i % 5 == j
]


@pytest.mark.parametrize(("library", "dtype", "parameters", "norm"), PARAMETERS, indirect=["library"])
def test_parameters_of_another_dtype(norm: Norm, library: ArrayLibrary, dtype: str, parameters: str) -> None:
    """Weight, bias, mean and var may have any dtype beside any x; y has x's."""
    check(make_case(norm, dtype, parameters), library)
