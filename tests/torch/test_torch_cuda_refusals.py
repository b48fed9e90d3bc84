"""What becomes of torch's calls where a device refuses a kernel: the formula serves, and says why; without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cuda_host
import pytest
import torch_on_device
from cuda_driver import Driver, in_place
from refusals import ASTRAY, AT_A_LAUNCH, BEFORE_A_LAUNCH, CAPTURED, Refusal, said
from torch_on_device import Seen, on_device

import anynorm as an
from anynorm_cuda import _compile, _driver
from anynorm_cuda._program import CompileError

torch: Any = pytest.importorskip("torch")

if torch_on_device.missing() is not None:
    pytest.skip(str(torch_on_device.missing()), allow_module_level=True)

__all__ = ["said"]  # a fixture

# Of tensors, which mypy takes for no arrays.
layer_norm: Any = an.layer_norm

REFUSALS = BEFORE_A_LAUNCH | AT_A_LAUNCH
each_refusal = pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)


@pytest.fixture
def launch(cuda_programs: Path) -> Callable[..., None]:
    """Return what runs a kernel on the CPU."""
    return cuda_host.launcher(cuda_programs)


@pytest.fixture
def seen(launch: Callable[..., None]) -> Iterator[Seen]:
    """Let CPU tensors be served as if they lay on a device."""
    with on_device(launch) as noted:
        yield noted


def leaves(rows: int, length: int, dtype: Any = torch.float32) -> list[Any]:
    """Return x, weight and bias, which require gradients."""
    generator = torch.Generator().manual_seed(rows)
    own = [torch.randn(shape, generator=generator) for shape in ((rows, length), (length,), (length,))]
    return [tensor.to(dtype).requires_grad_() for tensor in own]


def slope(y: Any) -> Any:
    """Return a gradient of y."""
    return torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)


def check_both_passes(own: list[Any]) -> Any:
    """Raise unless y and its gradients are right; return y."""
    y = an.layer_norm(*own)
    found = [y, *torch.autograd.grad(y, own, slope(y), retain_graph=True)]
    meant = [tensor.detach().double().requires_grad_() for tensor in own]
    exact = torch.nn.functional.layer_norm(meant[0], meant[0].shape[1:], *meant[1:])
    for one, other in zip(found, [exact, *torch.autograd.grad(exact, meant, slope(exact))], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    return y


@each_refusal
def test_forward(refusal: Refusal, seen: Seen, said: list[Any]) -> None:
    """The formula serves from the first call on, autograd records it as its own, and `explain` has the reason."""
    refusal.impose(seen)
    own = leaves(*refusal.shape)
    for _ in range(3):
        y = check_both_passes(own)
        assert "Normalized" not in y.grad_fn.name()
        with torch.no_grad():
            torch.testing.assert_close(an.layer_norm(*own), y)
            torch.testing.assert_close(an.layer_norm(*own, out=torch.empty_like(own[0])), y)
    route = an.explain(layer_norm, *own)
    assert route.path == "formula"
    assert refusal.words in str(route.reason)
    assert not seen.launches
    assert seen.tried == (refusal in AT_A_LAUNCH.values())
    assert len(said) == refusal.warned


@each_refusal
def test_known_before(refusal: Refusal, seen: Seen) -> None:
    """What is loaded is launched; where that fails, with or without a gradient, the formula serves from then on."""
    own = leaves(*refusal.shape)
    for _ in range(2):
        an.layer_norm(*own)
    plain = [tensor.detach() for tensor in own]
    served = seen.tried
    refusal.impose(seen)
    fails = refusal in AT_A_LAUNCH.values()
    for arrays in (own, plain, own):
        y = an.layer_norm(*arrays)
        torch.testing.assert_close(y, torch.nn.functional.layer_norm(own[0], own[0].shape[1:], *own[1:]))
    assert ("Normalized" in y.grad_fn.name()) != fails
    assert (an.explain(layer_norm, *own).path == "formula") == fails
    assert seen.tried - served == (1 if fails else 3)


@each_refusal
def test_out(refusal: Refusal, seen: Seen) -> None:
    """So it is where y is to replace x, which is as it was until then."""
    refusal.impose(seen)
    x = leaves(*refusal.shape)[0].detach()
    for _ in range(2):
        expected = torch.nn.functional.layer_norm(x, x.shape[1:])
        assert an.layer_norm(x, out=x) is x
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    assert seen.tried == (refusal in AT_A_LAUNCH.values())


@each_refusal
def test_measuring(refusal: Refusal, seen: Seen) -> None:
    """So does it where statistics alone are wanted."""
    refusal.impose(seen)
    x = leaves(*refusal.shape)[0].detach()
    for _ in range(2):
        found = an.moments(x, axis=1)
        torch.testing.assert_close(found.mean, x.mean(dim=1), rtol=1e-4, atol=1e-5)
    assert refusal.words in str(an.explain(an.moments, x, axis=1))
    assert not seen.launches


@each_refusal
def test_backward(refusal: Refusal, launch: Callable[..., None], said: list[Any]) -> None:
    """Where the gradient's kernels alone are refused, the formula computes it of what the engine saved."""
    own = leaves(*refusal.shape)
    with on_device(launch) as seen:
        y = an.layer_norm(*own)
        forward = set(seen.ran)
        torch.autograd.grad(y, own, slope(y))
        names = set(seen.ran) - forward
    with on_device(launch) as seen:
        refusal.impose(seen, *names)
        y = check_both_passes(own)
        assert "Normalized" in y.grad_fn.name()
        result, pullback = an.vjp(layer_norm, *[tensor.detach() for tensor in own])
        for one, other in zip(pullback(slope(result)), torch.autograd.grad(y, own, slope(y)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert an.explain(layer_norm, *own).path == "anynorm_cuda"
        assert set(seen.ran) == forward
        assert seen.tried - len(seen.launches) == (refusal in AT_A_LAUNCH.values())
    assert len(said) == refusal.warned


def test_loading_amid_a_capture(seen: Seen, said: list[Any]) -> None:
    """A kernel that cannot be loaded while a graph is captured is an error with advice; following it helps."""
    own = leaves(4, 6)
    seen.fails = {"load": CAPTURED}
    for _ in range(2):
        with pytest.raises(RuntimeError, match="make the same call once before"):
            an.layer_norm(*own)
    seen.fails = {}
    y = check_both_passes(own)
    assert "Normalized" in y.grad_fn.name()
    assert not said


def test_a_device_that_went_astray(seen: Seen) -> None:
    """What is no fault of the kernel stays an error, in either pass, and nothing is remembered of it."""
    own = leaves(4, 6)
    for where in ("load", "launch"):
        seen.fails = {where: ASTRAY}
        with pytest.raises(RuntimeError, match="ILLEGAL_ADDRESS"):
            an.layer_norm(*own)
        seen.fails = {}
        y = an.layer_norm(*own)
        seen.fails = {where: ASTRAY}
        with pytest.raises(RuntimeError, match="ILLEGAL_ADDRESS"):
            y.sum().backward()
        seen.fails = {}
    check_both_passes(own)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Return what stands for CUDA's driver, under the real launcher."""
    with in_place(monkeypatch) as fake:
        yield fake


@pytest.mark.parametrize(
    ("code", "fails", "words"),
    [
        pytest.param(CompileError("rows.cu(1): error: no"), {}, "does not compile: rows.cu(1)", id="nvrtc"),
        pytest.param(b"", {"cuModuleLoadData": 222}, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", id="module"),
        pytest.param(b"", {"cuModuleGetFunction": 1}, "cuModuleGetFunction: CUDA_ERROR_INVALID_VALUE", id="function"),
    ],
)
def test_from_compiler_and_driver(driver: Driver, code: Any, fails: dict[str, int], words: str, seen: Seen) -> None:
    """What NVRTC and CUDA's driver refuse reaches `explain` in their words, and the formula serves both passes."""
    from anynorm_torch import _cuda

    driver.fails = fails
    with (
        mock.patch.object(_compile, "cubin", side_effect=[code] * 9 if isinstance(code, bytes) else code),
        mock.patch.object(_cuda, "launcher", return_value=_driver.launcher(0)),
    ):
        own = leaves(4, 6)
        check_both_passes(own)
        assert words in str(an.explain(layer_norm, *own))
    assert not driver.given
    assert not seen.launches
