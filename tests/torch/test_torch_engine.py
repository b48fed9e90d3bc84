"""torch tensors through the CPU engine: what autograd asks of it beyond the right numbers."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anynorm as an

torch: Any = pytest.importorskip("torch")
pytest.importorskip("numba")

from anynorm_torch import _pages  # noqa: E402
from anynorm_torch._pages import LARGE  # noqa: E402


def _leaf(*shape: int) -> Any:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


# One input made of another, or the same tensor twice.
ENTANGLED: dict[str, Callable[[Any, Any], Any]] = {
    "weight-from-x": lambda x, _: an.layer_norm(x, (2 * x).sin()),
    "weight-is-x": lambda x, _: an.layer_norm(x, x),
    "bias-is-x": lambda x, _: an.layer_norm(x, None, x),
    "bias-is-weight": lambda x, w: an.layer_norm(x, w, w),
    "bias-from-weight": lambda x, w: an.rms_norm(x, 2 * w, 3 * w * x),
    "given": lambda x, w: an.batch_norm(x, weight=w, bias=w, mean=torch.zeros(8), var=torch.ones(8)),
}


@pytest.mark.parametrize("entangled", ENTANGLED)
def test_entangled_inputs(entangled: str) -> None:
    """Gradients recorded for a gradient of their own are right, however one input depends on another."""
    x, w = _leaf(3, 8), _leaf(8)
    function = ENTANGLED[entangled]
    assert an.explain(an.layer_norm, x, w).path == "anynorm_numba"

    def total() -> Any:
        return (function(x, w) * torch.arange(24.0).reshape(3, 8)).sum()

    plain = torch.autograd.grad(total(), (x, w), allow_unused=True)
    recorded = torch.autograd.grad(total(), (x, w), create_graph=True, allow_unused=True)
    for one, other in zip(plain, recorded, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(function, (x, w))
    assert torch.autograd.gradgradcheck(function, (x, w))


def test_large_result_is_an_ordinary_tensor() -> None:
    """A result in large pages is torch's own: no view, changed in place or resized as any other."""
    x = torch.ones(3, LARGE // 8, requires_grad=True)
    y = an.layer_norm(x)
    assert not y._is_view()
    assert y.untyped_storage().resizable()
    y.relu_().sum().backward()
    assert x.grad.count_nonzero() == 0


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux alone gives large pages on request")
def test_large_results_are_in_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """For y and dx from 4 MiB on the system is asked for large pages: whole ones, nearly all of them, none beside."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(_pages, "_madvise", lambda: lambda first, size, _: asked.append((first, size)))
    x = torch.ones(2, LARGE // 4, requires_grad=True)
    y = an.layer_norm(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    an.layer_norm(x[:, : LARGE // 16])
    assert len(asked) == 2
    for large, (first, size) in zip((y, dx), asked, strict=True):
        begins, ends = large.data_ptr(), large.data_ptr() + large.nbytes
        assert first % mmap.PAGESIZE == 0
        assert begins <= first < begins + mmap.PAGESIZE
        assert first + size == ends


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux alone gives large pages on request")
def test_large_pages_are_given() -> None:
    """The system takes the question as it is asked: Linux says of the memory that it may be in large pages."""
    memory = mmap.mmap(-1, 3 * LARGE)
    address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
    assert "hg" not in _flags_at(address + LARGE)
    _pages.ask_for_large_pages(address + 100, 2 * LARGE)
    assert "hg" in _flags_at(address + LARGE)
    assert "hg" not in _flags_at(address)


def _flags_at(address: int) -> list[str]:
    """Return what Linux says of the memory at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first:
            begins, ends = [int(value, 16) for value in first.split("-")]
            inside = begins <= address < ends
        elif inside and first == "VmFlags:":
            return rest.split()
    return []


def test_large_results_where_no_page_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without large pages results come in the pages that it has."""
    monkeypatch.setattr(_pages, "_madvise", lambda: None)
    y = an.layer_norm(torch.arange(float(LARGE // 2)).reshape(2, -1))
    assert y.isfinite().all()


@pytest.mark.parametrize("norm", ["layer_norm", "batch_norm", "group_norm"])
def test_bias_may_change_before_the_backward_pass(norm: str) -> None:
    """The backward pass does not need the values of bias, so an optimizer may have changed them."""
    x, w, b = torch.randn(4, 8), torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    groups = (2,) if norm == "group_norm" else ()
    y = getattr(an, norm)(x, *groups, weight=w, bias=b)
    with torch.no_grad():
        b.add_(1)
    y.sum().backward()
    assert b.grad.tolist() == [4.0] * 8


def test_x_must_not_change_before_the_backward_pass() -> None:
    """x is needed: to change it in place is an error of autograd's, not a wrong gradient."""
    x, w = torch.randn(4, 8), torch.ones(8, requires_grad=True)
    y = an.layer_norm(x, w)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_statistics_of_permuted_sets() -> None:
    """Statistics that NumPy alone measured are not read as the engine would have laid them out."""
    x = np.empty((3, 2, 4, 8)).transpose(1, 0, 2, 3)
    x[...] = np.random.default_rng(0).standard_normal(x.shape) * np.arange(1, 4)[:, None, None]
    dy = np.random.default_rng(1).standard_normal(x.shape)
    sizes = np.broadcast_to(np.ones(()), (4, 8))
    backwards = np.zeros((4, 8))[::-1]
    found = []
    for bias in (sizes * 0, backwards, np.zeros((8, 4)).T):
        _, pullback = an.vjp(an.layer_norm, x, None, bias, axis=(2, 3))
        found.append(pullback(dy).x)
    for result in found[1:]:
        np.testing.assert_allclose(result, found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [an.layer_norm, an.rms_norm, an.batch_norm, an.instance_norm])
def test_autograd_sees_that_out_was_written(function: Any) -> None:
    """A tensor that autograd saved and `out` overwrote is found out when its gradient is wanted."""
    weight = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 3, 8)
    y = x @ weight
    function(x, out=x)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_out_that_is_an_inference_tensor() -> None:
    """It is written within inference mode alone, as torch has it."""
    x = torch.randn(4, 8)
    with torch.inference_mode():
        out = torch.empty(4, 8)
        an.layer_norm(x, out=out)
    assert torch.equal(out, an.layer_norm(x))
    with pytest.raises(ValueError, match="inference tensor"):
        an.layer_norm(x, out=out)


def test_freed_storage() -> None:
    """A tensor whose memory was freed is an error, in both passes, not the end of the process."""
    x, weight = torch.randn(4, 8), torch.randn(8, requires_grad=True)
    y = an.layer_norm(x, weight)
    x.untyped_storage().resize_(0)

    with pytest.raises(ValueError, match="freed"):
        an.layer_norm(x)
    with pytest.raises(ValueError, match="freed"):
        y.sum().backward()


@pytest.mark.parametrize("size", [2**10, 2**26])
def test_default_device_is_not_asked(size: int) -> None:
    """What is made beside a tensor is on its device, small or large, whatever the default one is."""
    x = torch.ones(4, size // 16)
    with torch.device("meta"):
        y = an.layer_norm(x)
    assert y.device == x.device
    assert not y.any()


def test_functional_tensor_is_not_read() -> None:
    """A tensor that stands for another, which functionalization makes, goes to the formula."""
    x = torch.randn(8, 64)
    y = torch._from_functional_tensor(an.layer_norm(torch._to_functional_tensor(x)))
    torch.testing.assert_close(y, an.layer_norm(x))


def test_function_mode_below_a_default_device() -> None:
    """A mode that watches operations sees them, also where a default device was set within it."""

    class Watching(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        seen = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += 1
            return func(*args, **(kwargs or {}))

    x = torch.randn(8, 64)
    seen = []
    for inner in (nullcontext(), torch.device("cpu")):
        with Watching() as mode, inner:
            an.layer_norm(x)
        seen.append(mode.seen)
    assert min(seen) > 50
