"""Lengths that are symbols to torch's tracers, other than torch.compile's own: right at every length, not only one.

Open lengths under torch.compile and torch.export of functions are test_open_lengths.py's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gradients import cotangent, exact_gradients, verify_gradients
from inputs import Case, Norm, pairwise, verify
from libraries import NumPyArray

import anynorm as an
from anynorm._reference import Reference
from anynorm._reference_gradients import Gradients

torch: Any = pytest.importorskip("torch", reason="torch is not installed")
layers: Any = pytest.importorskip("anynorm_torch.nn")

# torch tells two traced lengths apart by their values, so the first sizes have none alike; 17000 is past what is summed
# at once.
NORMS = (
    Norm("batch", "batch_norm", {}, {"weight": (6,), "bias": (6,)}),
    Norm("group", "group_norm", {}, {"weight": (6,), "bias": (6,)}, (3,)),
    Norm("instance", "instance_norm", {}, {"weight": (6,), "bias": (6,)}),
    Norm("layer", "layer_norm", {"axis": (0, 2, 3)}),
    Norm("rms", "rms_norm", {"axis": (0, 3)}),
)
SIZES = ((8, 6, 5, 4), (2, 6, 9, 3), (2, 6, 2, 17000), (17000, 6, 2, 2))

each_norm = pytest.mark.parametrize("norm", NORMS, ids=[norm.name for norm in NORMS])

# float64 has no wider dtype to be summed in, and takes another way; one norm shows it.
WAYS = [*[(norm, "float32") for norm in NORMS], (NORMS[0], "float64")]
each_way = pytest.mark.parametrize(("norm", "dtype"), WAYS, ids=[f"{norm.name}-{dtype}" for norm, dtype in WAYS])


def _case(norm: Norm, shape: tuple[int, ...], dtype: str = "float32") -> Case:
    random = np.random.default_rng(5)
    arrays = {"x": random.normal(300, 2, size=shape)}
    arrays |= {name: random.normal(size=parameter) for name, parameter in norm.parameters.items()}
    return Case(norm, {name: tensor.astype(dtype) for name, tensor in arrays.items()})


def _tensors(case: Case, dy: Any) -> list[Any]:
    return [torch.from_numpy(tensor.copy()) for tensor in (*case.arrays.values(), dy)]


def _step(case: Case) -> Callable[..., Any]:
    """Return y and its gradients as a function of x, weight and bias, where there are any, and dy."""

    def step(*tensors: Any) -> Any:
        *given, dy = tensors
        given = [tensor.detach().requires_grad_() for tensor in given]
        y = case.function()(dict(zip(case.arrays, given, strict=True)))
        return (y, *torch.autograd.grad(y, given, dy))

    return step


@functools.cache
def _expected(norm: Norm, shape: tuple[int, ...], dtype: str) -> tuple[Case, NumPyArray, Reference, Gradients]:
    """Return a case, dy, and the exact y and gradients, which are slow and the same for every tracer."""
    case = _case(norm, shape, dtype).frozen()
    dy = cotangent(case)
    return case, dy, case.reference(), exact_gradients(case, dy)


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Keep what is expected, some hundred MB, no longer than these tests."""
    yield
    _expected.cache_clear()


def _verify(program: Callable[..., Any], norm: Norm, shape: tuple[int, ...], dtype: str = "float32") -> None:
    case, dy, exact, exact_of_gradients = _expected(norm, shape, dtype)
    y, *gradients = [value.detach().numpy() for value in program(*_tensors(case, dy))]
    found = {"x": None, "weight": None, "bias": None} | dict(zip(case.arrays, gradients, strict=True))
    verify(y, case.arrays["x"], exact)
    verify_gradients(an.Gradients(**found), case, exact_of_gradients)


@each_way
def test_make_fx(norm: Norm, dtype: str) -> None:
    """A symbolic graph of a norm and its gradient keeps the contract at lengths that it was not traced at."""
    from torch.fx.experimental.proxy_tensor import make_fx

    case = _case(norm, SIZES[0], dtype)
    program = make_fx(_step(case), tracing_mode="symbolic")(*_tensors(case, cotangent(case)))
    for shape in SIZES:
        _verify(program, norm, shape, dtype)


@each_norm
def test_aot_function(norm: Norm) -> None:
    """One joint graph of aot_function(dynamic=True) serves all lengths, forward and backward."""
    from torch._functorch import aot_autograd

    compiler: Any = aot_autograd
    graphs = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return compiler.make_boxed_func(graph.forward)

    case = _case(norm, SIZES[0])
    function = case.function()
    names = tuple(case.arrays)
    compiled = compiler.aot_function(
        lambda *arguments: function(dict(zip(names, arguments, strict=True))),
        fw_compiler=counting,
        bw_compiler=counting,
        dynamic=True,
    )

    def step(*tensors: Any) -> Any:
        given = [tensor.requires_grad_() for tensor in tensors[:-1]]
        y = compiled(*given)
        return (y, *torch.autograd.grad(y, given, tensors[-1]))

    for shape in SIZES:
        _verify(step, norm, shape)
    assert len(graphs) == 2


@pytest.mark.parametrize("inside", [True, False], ids=["within", "outside"])
@each_norm
def test_fake_tensors(norm: Norm, inside: bool) -> None:
    """Fake tensors of symbolic sizes go forward and backward, and no length becomes a condition of the program."""
    from contextlib import nullcontext

    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    environment: Any = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    case = _case(norm, SIZES[0])

    def fake(tensor: Any) -> Any:
        sizes = [DimDynamic.STATIC if length == 6 else DimDynamic.DYNAMIC for length in tensor.shape]
        return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

    x, *parameters = [fake(array).requires_grad_() for array in _tensors(case, np.zeros(()))[:-1]]
    with mode if inside else nullcontext():
        y = case.function()(dict(zip(case.arrays, (x, *parameters), strict=True)))
        (dx,) = torch.autograd.grad(y, [x], y)
    assert y.shape == dx.shape == x.shape
    assert not any(isinstance(length, int) for axis, length in enumerate(y.shape) if axis != 1)
    assert environment.guards == []


MODULES = {
    "instance": lambda: layers.InstanceNorm2d(6),
    "instance-tracking": lambda: layers.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "batch": lambda: layers.BatchNorm2d(6),
    "group": lambda: layers.GroupNorm(3, 6),
    "accelerated": lambda: _accelerated(torch.nn.InstanceNorm2d(6)),
}


def _accelerated(module: Any) -> Any:
    layers.accelerate(module)
    return module


EXPORTS = [
    pytest.param(name, mode == "train", tracer == "dynamo", id=f"{name}-{mode}-{tracer}")
    for name, mode, tracer in pairwise(list(MODULES), ("train", "eval"), ("fake", "dynamo"))
]


@pytest.mark.parametrize(("name", "training", "strict"), EXPORTS)
def test_export_of_modules(name: str, training: bool, strict: bool) -> None:
    """Modules export with batch, height and width open; the program gives at each size what the module gives."""
    module = MODULES[name]().train(training)
    dims = {axis: torch.export.Dim(f"length{axis}") for axis in (0, 2, 3)}
    x = torch.from_numpy(_case(NORMS[0], SIZES[0]).arrays["x"])
    exported = torch.export.export(module, (x,), dynamic_shapes=(dims,), strict=strict)
    (output,) = [node for node in exported.graph.nodes if node.op == "output"]
    shape = output.args[0][-1].meta["val"].shape
    assert [axis for axis, length in enumerate(shape) if not isinstance(length, int)] == [0, 2, 3]
    program = exported.module()
    for sizes in SIZES[1:3]:
        x = torch.from_numpy(_case(NORMS[0], sizes).arrays["x"])
        torch.testing.assert_close(program(x), MODULES[name]().train(training)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of comparisons that refuse what does not fit
@pytest.mark.parametrize("first", [SIZES[0], SIZES[3]], ids=["short", "long"])
@each_way
def test_jit_trace(norm: Norm, first: tuple[int, ...], dtype: str) -> None:
    """A trace made at one length, beyond 16384 too, keeps the contract at all others, and so does its gradient."""
    case = _case(norm, first, dtype)
    function, names = case.function(), tuple(case.arrays)
    tensors = _tensors(case, np.zeros(()))[:-1]
    traced = torch.jit.trace(
        lambda *arguments: function(dict(zip(names, arguments, strict=True))), tuple(tensors), check_trace=False
    )

    def step(*tensors: Any) -> Any:
        given = [tensor.requires_grad_() for tensor in tensors[:-1]]
        y = traced(*given)
        return (y, *torch.autograd.grad(y, given, tensors[-1]))

    for shape in SIZES:
        _verify(step, norm, shape, dtype)


@pytest.mark.parametrize("strict", [False, True], ids=["fake", "dynamo"])
def test_lengths_that_depend_on_values(strict: bool) -> None:
    """What a mask takes has a length that nobody knows while the program is made: batch norm exports all the same."""

    class Masked(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            taken = x[x[:, 0, 0] > 0]
            return an.batch_norm(taken), an.layer_norm(taken)

    def sample(seed: int, length: int) -> Any:
        return torch.from_numpy(np.random.default_rng(seed).normal(size=(length, 6, 5)))

    masked: Any = Masked()
    dims = ({0: torch.export.Dim("length")},)
    program = torch.export.export(masked, (sample(0, 9),), dynamic_shapes=dims, strict=strict).module()
    for length in (9, 40, 300):
        x = sample(1, length)
        for got, expected in zip(program(x), masked(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_functional_call_and_vmap_under_make_fx() -> None:
    """A module called with other parameters, and a map over an open axis, are right at other lengths."""
    from torch.fx.experimental.proxy_tensor import make_fx

    module = layers.InstanceNorm2d(6)
    functions: tuple[Callable[[Any], Any], ...] = (
        lambda x: torch.func.functional_call(module, {}, (x,)),
        lambda x: torch.func.vmap(an.batch_norm, in_dims=2, out_dims=2)(x),
    )
    for function in functions:
        first, *others = [torch.from_numpy(_case(NORMS[0], shape).arrays["x"]) for shape in SIZES[:2]]
        program = make_fx(function, tracing_mode="symbolic")(first)
        for x in others:
            torch.testing.assert_close(program(x), function(x), rtol=1e-4, atol=1e-4)
