"""When the memory of a torch tensor may be read: never where it does not hold what the tensor means.

Each kind of tensor that `type(x) is torch.Tensor` does not tell from a plain one has its test here, and its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import anynorm as an

torch: Any = pytest.importorskip("torch")
_memory: Any = pytest.importorskip("anynorm_torch._memory")
forward_ad: Any = pytest.importorskip("torch.autograd.forward_ad")
fake_tensor: Any = pytest.importorskip("torch._subclasses.fake_tensor")

# torch says of its own parts, on first use, that they are young or old.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),  # torch.func.linearize
]


def unreadable(x: Any) -> str | None:
    """Return why the memory of a tensor is not read just now, or None."""
    reason: str | None = _memory.watched() or _memory.unreadable(x)
    return reason


class Labelled(torch.Tensor):  # type: ignore[misc]
    """A subclass like any that users write."""


class Seeing(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc]
    """A dispatch mode that counts the operations it sees."""

    seen = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        self.seen += 1
        return operation(*args, **(kwargs or {}))


class Hearing(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
    """A function mode that counts the functions it hears of."""

    seen = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        self.seen += 1
        return function(*args, **(kwargs or {}))


def plain() -> Any:
    """Return numbers in float64, so that a wrong sign or a lost tangent cannot hide in rounding."""
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def negated(x: Any) -> Any:
    """Return a view of x's negative whose memory holds the other sign."""
    return torch._neg_view(-x)


def imaginary(x: Any) -> Any:
    """Return x as the imaginary part of a lazily conjugated tensor, which is a negated view of its memory."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def fake(x: Any) -> Any:
    """Return a tensor without memory that propagates shapes."""
    return fake_tensor.FakeTensorMode().from_tensor(x)


def layer_norm(x: Any, weight: Any = None, bias: Any = None) -> Any:
    """Return torch's own answer, which in float64 is right for these numbers."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


def close(y: Any, expected: Any) -> None:
    """Compare to the rounding of float64."""
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        torch.nn.Parameter,
        lambda x: x.requires_grad_(),
        lambda x: x.requires_grad_() * 1.0,
        lambda x: x.T,
        lambda x: x[::2, 1:],
        lambda x: torch.complex(x, x).real,
        lambda x: torch.complex(x, x).imag,
        lambda x: negated(x).resolve_neg(),
    ],
    ids=["tensor", "parameter", "leaf", "interior", "transposed", "sliced", "real", "imag", "resolved"],
)
def test_readable(make: Callable[[Any], Any]) -> None:
    """Tensors and parameters are readable, whatever their strides and whether or not they require a gradient."""
    x = make(plain())

    assert unreadable(x) is None
    close(an.layer_norm(x).detach(), layer_norm(x.detach().clone()))


UNREADABLE: dict[str, Callable[[Any], Any]] = {
    "subclass": lambda x: x.as_subclass(Labelled),
    "sparse-coo": lambda x: x.to_sparse(),
    "sparse-csr": lambda x: x.to_sparse_csr(),
    "mkldnn": lambda x: x.float().to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor([x, x[:2]]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "meta": lambda x: x.to("meta"),
    "fake": fake,
    "negated": negated,
    "conjugated": lambda x: torch.complex(x, x).conj(),
    "imaginary-of-conjugated": imaginary,
    "zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable(make: Callable[[Any], Any]) -> None:
    """A tensor whose memory is not its numbers is unreadable, and the reason is a phrase that explain can show."""
    reason = unreadable(make(plain()))

    assert isinstance(reason, str)
    assert 10 < len(reason) < 120
    assert not reason.endswith(".")


@pytest.mark.parametrize("kind", ["subclass", "negated", "imaginary-of-conjugated", "zero"])
@pytest.mark.parametrize("argument", ["x", "weight", "bias"])
def test_numbers(argument: str, kind: str) -> None:
    """As x, weight or bias, it gives the numbers of the tensor it means."""
    arguments = {"x": plain(), "weight": plain()[0] + 2, "bias": plain()[1]}
    arguments[argument] = UNREADABLE[kind](arguments[argument])
    meant = {name: (value * 1.0).as_subclass(torch.Tensor).resolve_neg() for name, value in arguments.items()}

    explained = an.explain(an.layer_norm, arguments["x"], arguments["weight"], arguments["bias"])
    y = an.layer_norm(arguments["x"], arguments["weight"], arguments["bias"])

    assert explained.path == "formula"
    close(y.as_subclass(torch.Tensor), layer_norm(meant["x"], meant["weight"], meant["bias"]))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sparse-coo", r"sparse.*\.to_dense\(\)"),
        ("sparse-csr", r"sparse.*\.to_dense\(\)"),
        ("mkldnn", r"mkldnn.*\.to_dense\(\)"),
        ("nested", r"nested.*as_nested_tensor\("),
        ("jagged", r"nested.*as_nested_tensor\("),
        ("quantized", r"quantized.*\.dequantize\(\)"),
    ],
)
@pytest.mark.parametrize("function", [an.layer_norm, an.rms_norm, an.batch_norm, an.moments])
def test_layouts_without_a_norm(function: Callable[..., Any], kind: str, said: str) -> None:
    """A sparse, nested or quantized tensor is a TypeError that names its layout and how to convert it."""
    with pytest.raises(TypeError, match=rf"^{function.__name__}: x .*{said}"):
        function(UNREADABLE[kind](plain()))


@pytest.mark.parametrize("kind", ["sparse-coo", "sparse-csr", "quantized"])
def test_weight_without_a_norm(kind: str) -> None:
    """As a weight too, whatever torch makes of its product with x."""
    with pytest.raises(TypeError, match=rf"^layer_norm: weight .*{kind.partition('-')[0]}.*\.(to_dense|dequantize)"):
        an.layer_norm(plain(), UNREADABLE[kind](plain()))


@pytest.mark.parametrize("kind", ["sparse-coo", "sparse-csr", "nested", "quantized"])
def test_out_without_a_norm(kind: str) -> None:
    """As `out` too, where nothing that it holds has to be converted."""
    out = UNREADABLE[kind](plain())
    for call in (lambda: an.layer_norm(plain(), out=out), lambda: an.vjp(an.rms_norm, plain())[1](plain(), out=out)):
        with pytest.raises(TypeError, match=rf"out .*{kind.partition('-')[0]}[^.]*\. Allocate it with xp\.empty_like"):
            call()


MASKED: dict[str, Callable[[Any, Any], Any]] = {
    "x": lambda whole, _: an.batch_norm(whole),
    "weight": lambda _, row: an.layer_norm(plain(), row),
    "mean": lambda _, row: an.batch_norm(plain(), mean=row, var=plain()[0] ** 2, channel_axis=-1),
    "var": lambda _, row: an.batch_norm(plain(), mean=plain()[0], var=row, channel_axis=-1),
    "dy": lambda whole, _: an.vjp(an.layer_norm, plain())[1](whole),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors:UserWarning")
@pytest.mark.parametrize("argument", list(MASKED))
def test_masked(argument: str) -> None:
    """A MaskedTensor is a TypeError wherever it stands: torch fails here and there, or lets the mask through."""
    whole = torch.masked.masked_tensor(plain(), plain() > 0)
    with pytest.raises(TypeError, match=rf": {argument} is a MaskedTensor, .*\.to_tensor\(float\('nan'\)\)"):
        MASKED[argument](whole, torch.masked.masked_tensor(plain()[0], plain()[0] > 0))


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors:UserWarning")
def test_masked_as_advised() -> None:
    """What the refusal advises is right: NaN in the set with a masked element, and in no other."""
    keep = torch.ones_like(plain(), dtype=torch.bool)
    keep[0, 0] = False
    y = an.layer_norm(torch.masked.masked_tensor(plain(), keep).to_tensor(float("nan")))
    assert torch.isnan(y[0]).all()
    close(y[1:], layer_norm(plain())[1:])


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shapes_alone(kind: str) -> None:
    """A tensor without memory gives one of x's shape and dtype without memory."""
    x = UNREADABLE[kind](plain())
    y = an.layer_norm(x)

    assert type(y) is type(x)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)


def test_complex_is_no_dtype() -> None:
    """A conjugated tensor is complex, and that is a TypeError."""
    with pytest.raises(TypeError, match="real floating dtype"):
        an.layer_norm(UNREADABLE["conjugated"](plain()))


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "vmap": lambda f, x: torch.func.vmap(f)(x),
    "vmap-in-vmap": lambda f, x: torch.func.vmap(torch.func.vmap(f))(x[:, None]),
    "grad": lambda f, x: torch.func.grad(lambda tensor: (f(tensor) * plain()).sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](plain())[0],
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (plain(),))[1],
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "linearize": lambda f, x: torch.func.linearize(f, x)[1](plain()),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_inside_a_transform(transform: Callable[..., Any]) -> None:
    """What torch.func passes to a function is unreadable, and its results are those of torch's own norm."""
    reasons = []

    def function(x: Any) -> Any:
        reasons.append(unreadable(x))
        return an.layer_norm(x)

    result = transform(function, plain())

    assert isinstance(reasons[-1], str)  # linearize calls the function on x itself first
    close(result, transform(layer_norm, plain()))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_weight_inside_a_transform(transform: Callable[..., Any]) -> None:
    """A transformed weight beside an x that is not: x alone is readable, and the result is right all the same."""
    x = plain()
    bias = plain()[2]

    result = transform(lambda weight: an.layer_norm(x, weight.expand(4, 6), bias), plain())

    assert unreadable(x) is None
    normalized = layer_norm(x)
    close(result, transform(lambda weight: normalized * weight.expand(4, 6) + bias, plain()))


@pytest.mark.parametrize("argument", ["x", "weight", "bias"])
def test_forward_mode_duals(argument: str) -> None:
    """A dual tensor is unreadable, as its tangent is not in its memory; the tangent of the result is right."""
    primals = {"x": plain(), "weight": plain()[0] + 2, "bias": plain()[1]}
    tangent = torch.cos(primals[argument])

    def along(norm: Callable[..., Any]) -> Any:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(primals[argument], tangent)
            if norm is an.layer_norm:
                assert isinstance(unreadable(dual), str)
            arguments = {**primals, argument: dual}
            return forward_ad.unpack_dual(norm(arguments["x"], arguments["weight"], arguments["bias"]))

    (y, dy), (expected, dexpected) = along(an.layer_norm), along(layer_norm)

    close(y, expected)
    assert dy is not None
    close(dy, dexpected)


@pytest.mark.parametrize("mode", [Seeing, Hearing])
def test_inside_a_mode(mode: Callable[[], Any]) -> None:
    """Inside a dispatch or function mode nothing is readable: the mode sees the norm as torch's own operations."""
    x = plain()
    with mode() as active:
        reason = unreadable(x)
        before = active.seen
        y = an.layer_norm(x)
        seen = active.seen - before

    assert isinstance(reason, str)
    assert seen > 5
    close(y, layer_norm(x))


def test_inside_fake_tensor_mode() -> None:
    """Inside FakeTensorMode a real tensor is not readable either."""
    x = plain()
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        reason = unreadable(x)
        y = an.layer_norm(x)

    assert isinstance(reason, str)
    assert isinstance(y, fake_tensor.FakeTensor)
    assert y.shape == x.shape


def test_inside_compile() -> None:
    """Inside torch.compile nothing is readable, and asking does not break the graph."""

    @torch.compile(backend="eager", fullgraph=True)  # type: ignore[untyped-decorator]
    def compiled(x: Any) -> Any:
        return an.layer_norm(x), unreadable(x)

    for x in (plain(), plain()[:2]):
        y, reason = compiled(x)
        assert isinstance(reason, str)
        close(y, layer_norm(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # lengths become constants, and may
def test_inside_a_trace() -> None:
    """Inside torch.jit.trace nothing is readable: numbers from outside torch would be recorded as constants."""
    reasons = []

    def function(x: Any) -> Any:
        reasons.append(unreadable(x))
        return an.layer_norm(x)

    traced = torch.jit.trace(function, plain(), check_trace=False)

    assert isinstance(reasons[0], str)
    close(traced(plain() ** 2), layer_norm(plain() ** 2))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the shape is recorded as it is
def test_trace_of_what_requires_a_gradient() -> None:
    """torch.jit.trace records a layer with parameters, in training too, and the recording gives what it gives."""
    from anynorm_torch import nn

    x = plain().requires_grad_()
    for layer in (nn.LayerNorm(x.shape[-1]), nn.BatchNorm1d(x.shape[1])):
        recorded = torch.jit.trace(layer, x, check_trace=False)
        close(recorded(x**2), layer(x**2))
