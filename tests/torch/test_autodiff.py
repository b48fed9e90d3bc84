"""Automatic differentiation of the plain functions by torch: within the contract, however it is asked for.

Derivatives along a direction, and first and second ones of six small norms, are compared with differences in
test_ways_torch.py. JAX's are in test_autodiff_jax.py; `anynorm.vjp` does not occur here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from derivatives import SMALL_NORMS, small_case
from gradients import NAMES, bits, cotangent, exact_gradients, to_numpy, verify_gradients
from hostile import ARRANGEMENTS, HOSTILE, two_values
from inputs import NORMS, Case, Norm, make_case
from layouts import LAYOUTS
from libraries import ALL_DTYPES, DTYPE_FEATURES, ArrayLibrary, NumPyArray, each_library

import anynorm as an

BY_NAME = {norm.name: norm for norm in NORMS}
ARRANGED = {value.name: value for value in ARRANGEMENTS}
ONCE = ("layer-apart", "rms-leading", "group-last", "instance", "batch-given")

each_norm = pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in NORMS])
each_dtype = pytest.mark.parametrize(
    "dtype", [pytest.param(value, marks=DTYPE_FEATURES[value]) for value in ALL_DTYPES]
)
on_torch = each_library(["torch"])
on_jax = each_library(["jax"])

# torch's own, when it loads inductor and the rules of forward mode; and given once per process, see test_ways_torch.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]


@pytest.fixture
def torch() -> Iterator[Any]:
    """Return torch, with the compiler's memory of other tests wiped."""
    found = pytest.importorskip("torch", reason="torch is not installed")
    found.compiler.reset()
    yield found
    found.compiler.reset()


def _leaves(arrays: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return tensors of which those named require a gradient."""
    return {name: tensor.requires_grad_(name in names) for name, tensor in arrays.items()}


def _backward(torch: Any, y: Any, leaves: dict[str, Any], dy: Any, library: ArrayLibrary) -> an.Gradients:
    """Return the gradients that torch finds, as NumPy arrays."""
    names = [name for name in NAMES if name in leaves]
    found = dict(zip(names, torch.autograd.grad(y, [leaves[name] for name in names], dy), strict=True))
    return to_numpy(an.Gradients(*[found.get(name) for name in NAMES]), library)


def _check_torch(torch: Any, case: Case, library: ArrayLibrary, dy: NumPyArray, function: Any = None) -> None:
    leaves = _leaves(library.make_all(case.arrays), *NAMES)
    y = (function or case.function())(leaves)
    verify_gradients(_backward(torch, y, leaves, library.make(dy), library), case, exact_gradients(case, dy))


@pytest.mark.feature("autodiff")
@each_norm
@each_dtype
@on_torch
def test_torch_autograd(library: ArrayLibrary, norm: Norm, dtype: str, torch: Any) -> None:
    """torch's autograd gives gradients within the bound, each in its leaf's dtype."""
    case = make_case(norm, dtype)
    _check_torch(torch, case, library, cotangent(case))


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "cropped"])
@pytest.mark.parametrize("parameters", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ONCE)
@on_torch
def test_torch_autograd_of_mixed_dtypes(
    library: ArrayLibrary, name: str, parameters: str, layout: str, torch: Any
) -> None:
    """Beside a float32 x of any layout, parameters of another dtype have gradients of their own dtype, in the bound."""
    case = make_case(BY_NAME[name], "float32", parameters)
    case = case.with_x(LAYOUTS[layout](case.arrays["x"]))
    _check_torch(torch, case, library, cotangent(case))


FAR = ("mean_1e4", "mean_1e6", "1e30", "1e-30", "6e4", "one_ulp", "pixels", "zeros_smallest_eps", "limits")


def _far(hostile: str, arrangement: str) -> Case:
    """Return a case of float32 rows on which naive derivatives go wrong."""
    drawn = HOSTILE[hostile]
    return ARRANGED[arrangement].case(drawn.rows("float32"), drawn.eps_for("float32"))


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize("arrangement", list(ARRANGED))
@pytest.mark.parametrize("hostile", FAR)
@on_torch
def test_torch_autograd_of_hostile_rows(library: ArrayLibrary, hostile: str, arrangement: str, torch: Any) -> None:
    """Differentiated by torch, hostile rows keep the bound of the gradients as well."""
    case = _far(hostile, arrangement)
    _check_torch(torch, case, library, cotangent(case))


# Sums of 2**17 numbers, over axes where torch's own sums add one after the other.
LONG = (
    (Norm("batch", "batch_norm", {}, {"weight": (4,), "bias": (4,)}), (2**16, 4, 2)),
    (Norm("layer", "layer_norm", {}, {"weight": (4,), "bias": (4,)}), (2**17, 4)),
    (Norm("rms-leading", "rms_norm", {"axis": (0, 2)}, {"weight": (1, 4, 1), "bias": (1, 4, 1)}), (2**16, 4, 2)),
)


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize(("norm", "shape"), LONG, ids=[norm.name for norm, _ in LONG])
@on_torch
def test_torch_autograd_of_long_sums(library: ArrayLibrary, norm: Norm, shape: tuple[int, ...], torch: Any) -> None:
    """Gradients that are sums of many like numbers are accurate along any axes."""
    parameters = {name: np.full(parameter, 0.7, "float32") for name, parameter in norm.parameters.items()}
    _check_torch(torch, Case(norm, {"x": two_values(shape)} | parameters), library, np.full(shape, 0.3, "float32"))


# What the small norms of derivatives.py leave out: channels last, axes that lie apart, parameters that are broadcast,
# eps=0, several batch axes or none, statistics of other shapes, no parameters.
OPTIONS = (
    Norm("layer-apart", "layer_norm", {"axis": (0, 2)}, {"weight": (2, 3), "bias": (2, 4, 3)}),
    Norm("layer-all", "layer_norm", {"axis": None, "eps": 0.5}),
    Norm("layer-modulated", "layer_norm", {}, {"weight": (2, 1, 3), "bias": (2, 1, 1)}),
    Norm("rms-axes", "rms_norm", {"axis": (0, 1), "eps": 0}, {"weight": (2, 4), "bias": (1, 4, 3)}),
    Norm("group-last", "group_norm", {"channel_axis": -1}, {"weight": (3,)}, (3,)),
    Norm("group-unbatched", "group_norm", {"batch_axis": None}, {"weight": (4,), "bias": (1, 1, 3)}, (2,)),
    Norm("group-batches", "group_norm", {"batch_axis": (2, 0)}, {"weight": (2, 1, 1), "bias": (4,)}, (2,)),
    Norm("instance-last", "instance_norm", {"channel_axis": 2}, {"weight": (2, 1, 3), "bias": (3,)}),
    Norm("batch-last", "batch_norm", {"channel_axis": -1, "eps": 0}, {"weight": (3,)}),
    Norm("batch-given-last", "batch_norm", {"channel_axis": 2}, {"bias": (3,), "mean": (1, 1, 3), "var": (3,)}),
)


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in OPTIONS])
@on_torch
def test_gradcheck_of_every_option(library: ArrayLibrary, norm: Norm, torch: Any) -> None:
    """First and second derivatives agree with finite differences whatever the options."""
    case = small_case(norm)
    arrays = library.make_all(case.arrays)
    names = [name for name in arrays if name in NAMES]

    def function(*tensors: Any) -> Any:
        return case.function()(arrays | dict(zip(names, tensors, strict=True)))

    inputs = [arrays[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.feature("autodiff")
@pytest.mark.feature("compiled")
@pytest.mark.parametrize(
    ("name", "dtype", "layout"),
    [("layer", "float16", "contiguous"), ("group", "float32", "channels_last"), ("batch-last", "bfloat16", "cropped")],
)
@on_torch
def test_torch_autograd_of_a_compiled_call(
    library: ArrayLibrary, name: str, dtype: str, layout: str, torch: Any
) -> None:
    """torch.compile(fullgraph=True) differentiates the call as well, within the bound."""
    case = make_case(BY_NAME[name], dtype)
    case = case.with_x(LAYOUTS[layout](case.arrays["x"]))
    compiled = torch.compile(case.function(), fullgraph=True, backend="aot_eager")
    _check_torch(torch, case, library, cotangent(case), compiled)


@pytest.mark.feature("autodiff")
@pytest.mark.feature("vmap")
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in SMALL_NORMS])
@on_torch
def test_torch_gradients_of_each_sample(library: ArrayLibrary, norm: Norm, torch: Any) -> None:
    """torch.func.vmap over torch.func.grad gives each sample the gradients it has alone."""
    case = small_case(norm)
    samples = [case.with_x(case.arrays["x"] * factor) for factor in (1.0, -2.0, 0.5)]
    dy = cotangent(case)
    arrays, made = library.make_all(case.arrays), library.make(dy)
    x = torch.stack([library.make(value.arrays["x"]) for value in samples])
    gradient = torch.func.grad(lambda tensor: (case.function()(tensor) * made).sum())
    found = torch.func.vmap(gradient, in_dims=({name: 0 if name == "x" else None for name in arrays},))(
        arrays | {"x": x}
    )
    for i, sample in enumerate(samples):
        one = to_numpy(an.Gradients(*[found[name][i] if name in found else None for name in NAMES]), library)
        verify_gradients(one, sample, exact_gradients(sample, dy))


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize(
    ("dtype", "parameters"), [("float32", None), ("float16", None), ("float16", "float32"), ("float32", "bfloat16")]
)
@each_norm
@on_torch
def test_autocast_changes_no_bit(
    library: ArrayLibrary, norm: Norm, dtype: str, parameters: str | None, torch: Any
) -> None:
    """Under autocast y and all gradients have the bits that they have without it."""
    case = make_case(norm, dtype, parameters)
    dy = library.make(cotangent(case))

    def results(enabled: bool) -> tuple[bytes, list[bytes | None]]:
        leaves = _leaves(library.make_all(case.arrays), *NAMES)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = case.function()(leaves)
            assert y.dtype == leaves["x"].dtype
            inside = _backward_bits(torch, y, leaves, dy, library)
            y = case.function()(leaves)
        assert _backward_bits(torch, y, leaves, dy, library) == inside
        return library.to_numpy(y).tobytes(), inside

    assert results(True) == results(False)


def _backward_bits(torch: Any, y: Any, leaves: dict[str, Any], dy: Any, library: ArrayLibrary) -> list[bytes | None]:
    return bits(_backward(torch, y, leaves, dy, library))


@pytest.mark.feature("autodiff")
@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias",), ("weight", "bias"), ("x", "bias")], ids="-".join)
@pytest.mark.parametrize("name", ["layer", "group", "instance", "batch", "batch-given"])
@on_torch
def test_leaves_that_need_no_gradient_get_none(
    library: ArrayLibrary, name: str, wanted: tuple[str, ...], torch: Any
) -> None:
    """Only the leaves that require a gradient get one, and it is the one they get beside others."""
    case = make_case(BY_NAME[name], "float32")
    dy = cotangent(case)
    leaves = _leaves(library.make_all(case.arrays), *wanted)
    y = case.function()(leaves)
    y.backward(library.make(dy))
    exact = exact_gradients(case, dy)
    for argument, leaf in leaves.items():
        if argument not in wanted:
            assert leaf.grad is None
        else:
            assert getattr(exact, argument).units(library.to_numpy(leaf.grad)) <= 1
    assert torch.is_grad_enabled()


@each_norm
@on_torch
def test_no_graph_where_nothing_requires_a_gradient(library: ArrayLibrary, norm: Norm, torch: Any) -> None:
    """Without a leaf that requires a gradient, or under no_grad, y carries no graph."""
    arrays = library.make_all(make_case(norm, "float32").arrays)
    function = Case(norm, {}).function()
    assert function(arrays).grad_fn is None
    assert not function(arrays).requires_grad
    leaves = _leaves(arrays, *NAMES)
    assert function(leaves).grad_fn is not None
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not function(leaves).requires_grad


@pytest.mark.feature("autodiff")
@on_torch
def test_statistics_are_constants(library: ArrayLibrary, torch: Any) -> None:
    """Given mean and var get no gradient even where they require one, and returned moments carry no graph."""
    case = make_case(BY_NAME["batch-given"], "float32")
    leaves = _leaves(library.make_all(case.arrays), *case.arrays)
    case.function()(leaves).backward(library.make(cotangent(case)))
    assert leaves["mean"].grad is None
    assert leaves["var"].grad is None
    assert leaves["x"].grad is not None
    x = leaves["x"].detach().requires_grad_()
    for function in (an.batch_norm, an.instance_norm):
        y, moments = function(x, return_moments=True)
        assert y.requires_grad
        assert not moments.mean.requires_grad
        assert not moments.m2.requires_grad
        (alone,), (beside,) = [torch.autograd.grad(tensor.square().sum(), [x]) for tensor in (function(x), y)]
        assert (alone == beside).all()
