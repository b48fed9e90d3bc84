"""When the CUDA engine may not or cannot take torch's tensors, and what `anynorm.explain` says; without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cuda_host
import pytest
import torch_on_device
from libraries import nothing_known
from torch_on_device import Seen, on_device

import anynorm as an
import anynorm_cuda
from anynorm_cuda._thread_groups import Device

torch: Any = pytest.importorskip("torch")

if torch_on_device.missing() is not None:
    pytest.skip(str(torch_on_device.missing()), allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # forward mode, on first use


@pytest.fixture
def seen(cuda_programs: Path) -> Iterator[Seen]:
    """Let CPU tensors be served as if they lay on a device, and note what the engine is asked for."""
    with on_device(cuda_host.launcher(cuda_programs)) as noted:
        yield noted


def plain() -> Any:
    """Return some numbers."""
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(5))


def layer_norm(x: Any, weight: Any = None) -> Any:
    """Return torch's own answer."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight)


def close(y: Any, expected: Any) -> None:
    """Compare to the rounding of float32."""
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def served(reason: str, *arrays: Any, **options: Any) -> None:
    """Raise unless the formula serves a call, once and again, and a reason is given for it that has these words."""
    function = an.batch_norm if "mean" in options else an.layer_norm
    route = an.explain(function, *arrays, **options)
    assert route.path == "formula"
    assert reason in str(route.reason)
    for _ in range(3):
        y = function(*arrays, **options)
    if "mean" not in options:
        meant = [tensor.detach().double().resolve_neg() for tensor in arrays]
        close(y.detach().double(), layer_norm(*meant))


def test_without_bindings(seen: Seen) -> None:
    """Where cuda.bindings is not installed, the formula serves."""
    x = plain()
    an.layer_norm(x)
    an.layer_norm(x)
    with nothing_known(), mock.patch.object(anynorm_cuda, "missing", return_value="cuda-bindings is not installed"):
        served("cuda-bindings is not installed", x)
    assert len(seen.configs) == 2


def test_on_rocm(seen: Seen) -> None:
    """torch for ROCm calls its devices cuda as well; they run no kernel of ours."""
    with mock.patch.object(torch.version, "hip", "6.4"):
        served("ROCm", plain())
    assert not seen.configs


@pytest.mark.parametrize(("arch", "said"), [(75, "compute capability 7.5"), (61, "compute capability 6.1")])
def test_on_old_devices(arch: int, said: str) -> None:
    """Below compute capability 8.0 the formula serves."""
    with on_device(lambda *_: pytest.fail("a kernel was launched"), Device(arch, 40, 65536)):
        served(said, plain())


@pytest.mark.parametrize("arch", [80, 121])
def test_on_new_devices(arch: int) -> None:
    """From it on the engine does."""
    with on_device(lambda *_: pytest.fail("a kernel was launched"), Device(arch, 40, 101376)):
        assert an.explain(an.layer_norm, plain()) == ("anynorm_cuda", None)


def test_float64(seen: Seen) -> None:
    """There is no kernel for float64, though one that takes a float64 weight beside float32."""
    served("float64", plain().double())
    assert an.explain(an.layer_norm, plain(), plain()[0].double()).path == "anynorm_cuda"
    assert not seen.configs


def test_gradient_of_given_statistics(seen: Seen) -> None:
    """A gradient of mean or var is the formula's."""
    mean = torch.zeros(6, requires_grad=True)
    served("a gradient is wanted for mean or var", plain(), mean=mean, var=torch.ones(6))
    with torch.no_grad():
        assert an.explain(an.batch_norm, plain(), mean=mean, var=torch.ones(6)).path == "anynorm_cuda"
    assert not seen.configs


@pytest.mark.parametrize("argument", ["x", "weight"])
def test_memory_that_is_not_what_it_seems(argument: str, seen: Seen) -> None:
    """A lazily negated view is not read as it lies."""
    arrays = {"x": plain(), "weight": plain()[0]}
    arrays[argument] = torch._neg_view(-arrays[argument])
    served("negates", *arrays.values())
    assert not seen.configs


def test_forward_mode(seen: Seen) -> None:
    """A dual tensor's tangent is not lost, though calls with its primal are known."""
    an.layer_norm(plain())
    an.layer_norm(plain())
    with torch.autograd.forward_ad.dual_level():
        found = torch.autograd.forward_ad.unpack_dual(
            an.layer_norm(torch.autograd.forward_ad.make_dual(plain(), torch.ones(4, 6).cumsum(1)))
        )
        expected = torch.autograd.forward_ad.unpack_dual(
            layer_norm(torch.autograd.forward_ad.make_dual(plain(), torch.ones(4, 6).cumsum(1)))
        )
    close(found.tangent, expected.tangent)
    assert len(seen.configs) == 2


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "vmap": lambda f, x: torch.func.vmap(f)(x),
    "grad": lambda f, x: torch.func.grad(lambda tensor: (f(tensor) * plain()).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (plain(),))[1],
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms(transform: Callable[..., Any], seen: Seen) -> None:
    """What torch.func transforms is the formula's, though a plain call of the kind is known."""
    an.layer_norm(plain())
    an.layer_norm(plain())
    close(transform(an.layer_norm, plain()), transform(layer_norm, plain()))
    assert len(seen.configs) == 2


def test_compiled(seen: Seen) -> None:
    """torch.compile sees the formula in one graph."""
    compiled = torch.compile(an.layer_norm, backend="eager", fullgraph=True)
    close(compiled(plain()), layer_norm(plain()))
    assert not seen.configs


@pytest.mark.parametrize("which", ["x", "weight", "out"])
def test_freed_storage(which: str, seen: Seen) -> None:
    """A tensor whose memory was freed is an error, not an access to address 0."""
    x, weight, out = plain(), plain()[0].clone(), plain()
    {"x": x, "weight": weight, "out": out}[which].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="freed"):
        an.layer_norm(x, weight, out=out if which == "out" else None)
    assert not seen.ran


def test_freed_before_the_backward_pass(seen: Seen) -> None:
    """So it is where the gradient needs it."""
    x, weight = plain(), plain()[0].clone().requires_grad_()
    y = an.layer_norm(x, weight)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="freed"):
        y.sum().backward()
    assert len(seen.ran) == 1


def test_statistics_freed_before_the_backward_pass(seen: Seen) -> None:
    """What the forward pass keeps may have been freed as well, as where saved tensors are moved elsewhere."""
    kept: list[Any] = []

    def keep(tensor: Any) -> Any:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = an.layer_norm(plain().requires_grad_(), plain()[0].clone())
    kept[-1].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="freed"):
        y.sum().backward()
    assert len(seen.ran) == 1


def test_storages_are_not_asked_in_every_call(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operand that is not given is none whose address is low: asking each storage takes as long as the launch."""
    from anynorm_torch import _cuda, _memory

    x = plain().requires_grad_()
    if x.data_ptr() < _memory.LOW:
        pytest.skip("memory lies low in this program")

    def asked(*_: Any) -> None:
        pytest.fail("storages are asked")

    monkeypatch.setattr(_cuda, "check_storage", asked)
    for _ in range(2):
        an.layer_norm(x).sum().backward()
        an.moments(x.detach(), axis=1)
    assert seen.ran


def test_set_that_is_too_long(seen: Seen, tmp_path: Path) -> None:
    """What a kernel's numbers of 32 bits cannot count is the formula's."""
    x = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**31, dtype=torch.float16)
    route = an.explain(an.rms_norm, x)
    assert route.path == "formula"
    assert "elements of a set" in str(route.reason)
    assert an.explain(an.rms_norm, x.reshape(2, -1)).path == "anynorm_cuda"
    assert not seen.configs


SHAPES = {"x": (4, 6), "weight": (6,), "bias": (6,), "mean": (6,), "var": (6,), "out": (4, 6), "dy": (4, 6)}


def unaligned(name: str, dtype: Any) -> Any:
    """Return an operand that begins a byte beside where its elements would be aligned."""
    count = torch.Size(SHAPES[name]).numel()
    memory = bytearray(count * dtype.itemsize + 64)
    begin = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 16 + 1
    tensor = torch.frombuffer(memory, dtype=dtype, offset=begin, count=count).reshape(SHAPES[name])
    return tensor.copy_(torch.arange(1.0, count + 1).reshape(SHAPES[name]) % 5 + 1)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("which", SHAPES)
def test_elements_that_are_not_aligned(which: str, dtype: str, seen: Seen) -> None:
    """No kernel is launched on a tensor that is not aligned to its elements, of whatever operand."""
    given = {name: unaligned(name, getattr(torch, dtype)).clone() for name in SHAPES}
    strange = given | {which: unaligned(which, getattr(torch, dtype))}
    found = []
    for own in (given, strange, given):
        x, weight, bias, dy = own["x"], own["weight"], own["bias"], own["dy"]
        before = len(seen.configs)
        if which == "dy":
            leaf = x.clone().requires_grad_()
            y = an.layer_norm(leaf, weight, bias)
            before = len(seen.configs)
            found.append(torch.autograd.grad(y, leaf, dy)[0])
        elif which in ("mean", "var"):
            found.append(an.batch_norm(x, weight=weight, bias=bias, mean=own["mean"], var=own["var"]))
        else:
            found.append(an.layer_norm(x, weight, bias, out=own["out"] if which == "out" else None).clone())
        cast = which in ("mean", "var") and dtype == "float16"  # before kernels read them
        assert len(seen.configs) - before == (cast or own is given)
    rounding = 2e-3 if dtype == "float16" else 1e-5
    torch.testing.assert_close(found[1], found[0], rtol=rounding, atol=rounding)


@pytest.mark.parametrize("which", ["x", "weight", "out"])
def test_freed_at_an_offset(which: str, seen: Seen) -> None:
    """Where a view began beyond the beginning of what was freed, its address is no address either."""
    memory = torch.ones(200)
    own = {name: memory[100 : 100 + torch.Size(shape).numel()].reshape(shape) for name, shape in SHAPES.items()}
    given = {name: torch.ones(SHAPES[name]) for name in ("x", "weight", "out")} | {which: own[which]}
    memory.untyped_storage().resize_(0)
    for _ in range(2):
        with pytest.raises(ValueError, match="freed"):
            an.layer_norm(given["x"], given["weight"], out=given["out"])
    assert not seen.ran
