"""torch's own ways of calling: compiled, vectorized, differentiated, under autocast. Eager is test_matrix.py's.

torch.compile, which takes half a second per graph, meets every norm twice, and every pair of a function, dtype, layout
and backend; its C++ backend, which takes seconds, meets three norms and all the hostile rows.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from derivatives import SMALL_NORMS, change, directions, small_case
from hostile import ARRANGEMENTS, HOSTILE, LARGE, two_values
from inputs import FUNCTIONS, NORMS, Case, Norm, make_case, pairwise, verify
from layouts import LAYOUTS
from libraries import ALL_DTYPES, DTYPE_FEATURES, ArrayLibrary, each_library, nothing_known
from torch_compiler import COMPILES

import anynorm as an

torch = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = COMPILES

on_torch = each_library(["torch"])
each_small_norm = pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in SMALL_NORMS])


def _check_compiled(case: Case, library: ArrayLibrary, backend: Any, **options: Any) -> None:
    """Raise unless one graph holds the whole call and its result is within the contract."""
    compiled = torch.compile(case.function(), fullgraph=True, backend=backend, **options)
    verify(library.to_numpy(compiled(library.make_all(case.arrays))), case.arrays["x"], case.reference())


def _to_compile() -> Iterator[tuple[Norm, str, str, str]]:
    """Yield the rows that cover all pairs, with a function's norms in turns, and again until each norm came twice."""
    norms = {function: [norm for norm in NORMS if norm.function == function] for function in FUNCTIONS}
    rows = pairwise(FUNCTIONS, ALL_DTYPES, ["contiguous", "channels_last", "cropped"], ["eager", "aot_eager"])
    for function, norm in norms.items():
        rest = [row[1:] for row in rows if row[0] == function]
        for i in range(max(2 * len(norm), len(rest))):
            # One further in the second round, where a norm would meet its first row again.
            yield norm[i % len(norm)], *rest[(i + (i // len(norm)) * (len(norm) % len(rest) == 0)) % len(rest)]


@pytest.mark.feature("compiled")
@pytest.mark.parametrize(
    ("norm", "dtype", "layout", "backend"),
    [
        pytest.param(norm, *rest, id="-".join((norm.name, *rest)), marks=DTYPE_FEATURES[rest[0]])
        for norm, *rest in _to_compile()
    ],
)
@on_torch
def test_compile(library: ArrayLibrary, norm: Norm, dtype: str, layout: str, backend: str) -> None:
    """torch.compile(fullgraph=True) takes the whole call into one graph, and the contract holds."""
    case = make_case(norm, dtype)
    an.layer_norm(torch.ones(2))  # warm: torch arrays have been met before
    _check_compiled(case.with_x(LAYOUTS[layout](case.arrays["x"])), library, backend)


@pytest.mark.feature("compiled")
def test_numpy_arrays_within_compile() -> None:
    """A compiled function may call norms on NumPy arrays: torch leaves what it cannot trace to Python."""
    x = np.random.default_rng(8).standard_normal((3, 5, 26)).astype(np.float32)
    with nothing_known():  # torch looks through every signature that is known: 20 s after some thousands of tests
        y = torch.compile(lambda array: 2 * an.layer_norm(array), backend="eager")(x)
    np.testing.assert_array_equal(y, 2 * an.layer_norm(x))


needs_cpp = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@needs_cpp
@pytest.mark.feature("compiled")
@pytest.mark.parametrize(
    ("norm", "dtype", "layout"),
    [("group", "float32", "channels_last"), ("batch", "bfloat16", "contiguous"), ("layer-apart", "float64", "sliced")],
)
@on_torch
def test_compile_to_machine_code(library: ArrayLibrary, norm: str, dtype: str, layout: str) -> None:
    """Inductor's kernels keep the contract."""
    (found,) = [value for value in NORMS if value.name == norm]
    case = make_case(found, dtype)
    _check_compiled(case.with_x(LAYOUTS[layout](case.arrays["x"])), library, "inductor")


@needs_cpp
@pytest.mark.feature("compiled")
@pytest.mark.parametrize("arrangement", ["layer", "rms"])
@on_torch
def test_compile_hostile_rows_to_machine_code(library: ArrayLibrary, arrangement: str) -> None:
    """Inductor's kernels, which the C++ compiler may contract and reorder, keep the contract on all hostile rows."""
    rows = np.concatenate(
        [hostile.rows("float32") for hostile in HOSTILE.values() if hostile.eps == 0 and "float32" in hostile.dtypes]
    )
    (arranged,) = [value for value in ARRANGEMENTS if value.name == arrangement]
    _check_compiled(arranged.case(rows, 0.0), library, "inductor")


@needs_cpp
@pytest.mark.feature("compiled")
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize(("shape", "function"), [("leading", "rms_norm"), ("outer", "layer_norm")])
@on_torch
def test_compile_large_sets_to_machine_code(library: ArrayLibrary, shape: str, function: str, dynamic: bool) -> None:
    """Inductor, which adds one element after the other along leading axes, is kept from doing so."""
    lengths, axes = LARGE[shape]
    case = Case(Norm(shape, function, {"axis": axes}), {"x": two_values(lengths)})
    _check_compiled(case, library, "inductor", dynamic=dynamic)


@pytest.mark.feature("compiled")
@on_torch
def test_compile_with_dynamic_shapes(library: ArrayLibrary) -> None:
    """With dynamic=True one graph serves batches of any length."""
    graphs = []

    def counting(graph: Any, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    (norm,) = [value for value in NORMS if value.name == "group"]
    case = make_case(norm, "float32")
    compiled = torch.compile(case.function(), fullgraph=True, backend=counting, dynamic=True)
    for length in (3, 5, 9):
        longer = case.with_x(np.concatenate([case.arrays["x"]] * 3)[:length])
        y = compiled(library.make_all(longer.arrays))
        verify(library.to_numpy(y), longer.arrays["x"], longer.reference())
    assert len(graphs) == 1


PROGRAM = """
import torch
import anynorm as an

def norms(x):
    weight = torch.ones(6)
    y = an.layer_norm(x) + an.rms_norm(x) + an.group_norm(x, 2, weight)
    return y + an.instance_norm(x, weight=weight) + an.batch_norm(x, weight=weight)

x = torch.arange(4 * 6 * 5.0).reshape(4, 6, 5)
if {warm}:
    norms(x)
compiled = torch.compile(norms, fullgraph=True, backend="aot_eager")(x)
torch.testing.assert_close(compiled, norms(x))
"""


@pytest.mark.feature("compiled")
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@on_torch
def test_compile_in_a_fresh_process(library: ArrayLibrary, warm: bool) -> None:  # noqa: ARG001  it selects torch
    """It works, and without a warning, also where the compiler is the first to meet anynorm with a torch array."""
    root = Path(an.__file__).parents[1]
    program = f"import sys; sys.path[:0] = {[str(root), str(root / 'backends')]}\n" + PROGRAM.format(warm=warm)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


@pytest.mark.feature("vmap")
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in NORMS])
@on_torch
def test_vmap(library: ArrayLibrary, norm: Norm, dtype: str) -> None:
    """torch.func.vmap over x and parameters gives what a loop over them gives."""
    cases = [make_case(norm, dtype, seed=seed) for seed in range(3)]
    stacked = {
        name: torch.stack([library.make(value.arrays[name]) for value in cases], dim=1) for name in cases[0].arrays
    }
    y = torch.func.vmap(cases[0].function(), in_dims=1, out_dims=1)(stacked)
    for i, case in enumerate(cases):
        verify(library.to_numpy(y[:, i]), case.arrays["x"], case.reference())


@pytest.mark.feature("autodiff")
@each_small_norm
@on_torch
def test_forward_mode(library: ArrayLibrary, norm: Norm) -> None:
    """torch.func.jvp gives the derivative along a direction of all arguments."""
    case = small_case(norm)
    moved = directions(case)
    tangents = {name: moved.get(name, np.zeros_like(tensor)) for name, tensor in case.arrays.items()}
    _, change_of_y = torch.func.jvp(case.function(), (library.make_all(case.arrays),), (library.make_all(tangents),))
    np.testing.assert_allclose(library.to_numpy(change_of_y), change(case, moved), rtol=1e-6, atol=1e-6)


@pytest.mark.feature("autodiff")
@each_small_norm
@on_torch
def test_functional_gradient(library: ArrayLibrary, norm: Norm) -> None:
    """torch.func.grad gives each argument's gradient; given statistics are constants."""
    case = small_case(norm)
    function = case.function()
    dy: Any = np.random.default_rng(19).normal(size=case.arrays["x"].shape)
    gradient = torch.func.grad(lambda arrays: (function(arrays) * library.make(dy)).sum())
    gradients = gradient(library.make_all(case.arrays))
    for name, direction in directions(case).items():
        along = (library.to_numpy(gradients[name]) * direction).sum()
        np.testing.assert_allclose(along, (dy * change(case, {name: direction})).sum(), rtol=1e-6, atol=1e-6)
    for name in ("mean", "var"):
        assert name not in gradients or not gradients[name].any()


@pytest.mark.feature("autodiff")
@each_small_norm
@on_torch
def test_gradcheck(library: ArrayLibrary, norm: Norm) -> None:
    """First and second derivatives agree with finite differences, for x, weight and bias."""
    case = small_case(norm)
    names = [name for name in case.arrays if name not in ("mean", "var")]
    constants = {name: library.make(tensor) for name, tensor in case.arrays.items() if name not in names}
    inputs = [library.make(case.arrays[name]).requires_grad_() for name in names]

    def function(*tensors: Any) -> Any:
        return case.function()(constants | dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize("arrangement", [value.name for value in ARRANGEMENTS])
@on_torch
def test_gradients_of_hostile_rows_are_finite(library: ArrayLibrary, arrangement: str) -> None:
    """Constant, tiny and huge sets have finite gradients, at eps=0 too."""
    rows = np.concatenate([np.zeros((2, 480)), np.full((2, 480), 1e10), HOSTILE["1e30"].rows("float32")])
    (arranged,) = [value for value in ARRANGEMENTS if value.name == arrangement]
    case = arranged.case(rows.astype("float32"), 0.0)
    x = library.make(case.arrays["x"]).requires_grad_()
    y = case.function()({"x": x})
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in NORMS])
@on_torch
def test_autocast(library: ArrayLibrary, norm: Norm, dtype: str) -> None:
    """Under autocast, which computes products of matrices in bfloat16, a norm loses nothing and keeps x's dtype."""
    case = make_case(norm, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = case.run(library)
    verify(library.to_numpy(y), case.arrays["x"], case.reference())
