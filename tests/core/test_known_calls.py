"""Calls of a kind that was met before, whose checks and plan are remembered: nothing may slip through unchecked.

Each test makes a plain call until it is known, and then one that differs in what the memory must not overlook.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_runs import in_threads, watched
from libraries import ArrayLibrary, NumPyArray, each_library, without_engine

import anynorm as an
from anynorm._core import cache

pytest.importorskip("numba")

X = np.random.default_rng(3).standard_normal((6, 8)).astype(np.float32)
ONES = np.ones(8, np.float32)


def _until_known(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Make a call often enough that its kind is known, and return the last result."""
    return [call(*args, **options) for _ in range(3)][-1]


def _torch() -> Any:
    return pytest.importorskip("torch")


@each_library(["numpy", "torch"])
def test_numbers_are_checked_again(library: ArrayLibrary) -> None:
    """A bool is no eps, axis, channel axis or number of groups, though to a dict it is the 1 that was accepted."""
    x, weight = library.make(X), library.make(ONES)
    _until_known(an.layer_norm, x, weight, axis=1, eps=1.0)
    _until_known(an.batch_norm, x, weight=weight, channel_axis=1)
    _until_known(an.group_norm, x, 1, weight)
    refused: list[Callable[[], Any]] = [
        lambda: an.layer_norm(x, weight, axis=1, eps=True),
        lambda: an.layer_norm(x, weight, axis=True, eps=1.0),
        lambda: an.layer_norm(x, weight, axis=1.0, eps=1.0),  # type: ignore[arg-type]
        lambda: an.batch_norm(x, weight=weight, channel_axis=True),
        lambda: an.group_norm(x, True, weight),
    ]
    for call in refused:
        with pytest.raises(TypeError, match="must be"):
            call()


@each_library(["numpy", "torch"])
@pytest.mark.parametrize("eps", [-1.0, float("nan"), float("inf"), 1e-300])
def test_eps_is_checked_again(library: ArrayLibrary, eps: float) -> None:
    """An eps that is out of range is refused although the call is known with another."""
    x = library.make(X)
    _until_known(an.layer_norm, x, eps=1e-5)
    with pytest.raises(ValueError, match="eps must be 0 or lie between"):
        an.layer_norm(x, eps=eps)


@each_library(["numpy", "torch"])
def test_other_axes_and_groups(library: ArrayLibrary) -> None:
    """What is known of one axis or number of groups says nothing of another, nor one function of another."""
    x = library.make(np.arange(64, dtype=np.float32).reshape(8, 8) ** 2)

    def results() -> list[bytes]:
        calls: list[Any] = [
            an.layer_norm(x, axis=0),
            an.layer_norm(x, axis=1),
            an.layer_norm(x, axis=(0, 1)),
            an.rms_norm(x, axis=1),
            an.group_norm(x, 2),
            an.group_norm(x, 4),
            an.batch_norm(x),
            an.batch_norm(x, channel_axis=0),
        ]
        return [library.to_numpy(y).tobytes() for y in calls]

    found = _until_known(results)
    with an.fast_paths(False):
        plain = [np.frombuffer(y, np.float32) for y in results()]
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(np.frombuffer(one, np.float32), other, rtol=1e-5, atol=1e-6)


@each_library(["numpy", "torch"])
def test_bias_is_looked_at_as_weight_is(library: ArrayLibrary) -> None:
    """A bias of another layout or dtype gives the same numbers, and one that does not fit is refused."""
    x, weight = library.make(X), library.make(ONES)
    spaced = np.zeros(16, np.float32)
    spaced[::2] = ONES * 3
    y = library.to_numpy(_until_known(an.layer_norm, x, weight, library.make(ONES * 3)))
    for bias in (library.make(spaced)[::2], library.make((ONES * 3).astype(np.float64))):
        found = _until_known(an.layer_norm, x, weight, bias)
        np.testing.assert_array_equal(library.to_numpy(found), y)
    for bad, error in ((library.make(ONES[:7]), ValueError), ([1.0] * 8, TypeError)):
        with pytest.raises(error):
            an.layer_norm(x, weight, bad)  # type: ignore[arg-type]
    if library.name == "numpy":
        with pytest.raises(TypeError, match="mask"):
            an.layer_norm(x, weight, np.ma.ones(8, dtype=np.float32))


@each_library(["numpy", "torch"])
def test_arrays_are_checked_again(library: ArrayLibrary) -> None:
    """A weight of another shape, dtype or library, or none at all, is refused or served for what it is."""
    x, weight = library.make(X), library.make(ONES)
    y = _until_known(an.layer_norm, x, weight)
    for bad, error in (
        (library.make(ONES[:7]), ValueError),
        (library.make(ONES.astype(np.int32)), TypeError),
        ([1.0] * 8, TypeError),
        (1.0, TypeError),
    ):
        with pytest.raises(error):
            an.layer_norm(x, bad)  # type: ignore[arg-type]
    for other in (None, library.make(ONES.astype(np.float64)), library.make(ONES[None] + np.zeros_like(X))):
        np.testing.assert_array_equal(library.to_numpy(an.layer_norm(x, other)), library.to_numpy(y))


@each_library(["numpy", "torch"])
def test_other_layouts(library: ArrayLibrary) -> None:
    """Arrays of the same shapes that lie otherwise in memory give the same numbers."""
    wide, spaced = np.zeros((6, 16), np.float32), np.zeros(16, np.float32)
    wide[:, ::2], spaced[::2] = X, ONES * 3
    y = library.to_numpy(_until_known(an.layer_norm, library.make(X), library.make(ONES * 3)))
    for x in (library.make(wide)[:, ::2], library.make(np.asfortranarray(X))):
        for weight in (library.make(ONES * 3), library.make(spaced)[::2]):
            found = _until_known(an.layer_norm, x, weight)
            np.testing.assert_allclose(library.to_numpy(found), y, rtol=1e-6, atol=1e-6)


def _unaligned(array: NumPyArray) -> NumPyArray:
    room = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    room[...] = array
    return room


def test_special_numpy_arrays() -> None:
    """A masked weight is refused, an unaligned or byte-swapped one gives the same numbers, a derived one its own."""

    class Derived(np.ndarray[Any, Any]):
        pass

    y = _until_known(an.layer_norm, X, ONES)
    with pytest.raises(TypeError, match="mask"):
        an.layer_norm(X, np.ma.ones(8, dtype=np.float32))
    for weight in (_unaligned(ONES), ONES.astype(">f4")):
        np.testing.assert_allclose(_until_known(an.layer_norm, X, weight), y, rtol=1e-6)
    with an.fast_paths(False):
        by_formula = an.layer_norm(X, ONES.view(Derived))
    derived = _until_known(an.layer_norm, X, ONES.view(Derived))
    assert type(derived) is type(by_formula)
    np.testing.assert_array_equal(derived, by_formula)
    with watched() as jobs:
        np.testing.assert_allclose(an.layer_norm(_unaligned(X), ONES), y, rtol=1e-5, atol=1e-6)
    assert not jobs
    assert type(_until_known(an.layer_norm, X.view(Derived), ONES)) is type(an.layer_norm(X.view(Derived)))


def test_out_is_checked_again() -> None:
    """What may not be written to is refused, however well the call without it is known."""
    _until_known(an.layer_norm, X, ONES)
    out = np.empty_like(X)
    assert _until_known(an.layer_norm, X, ONES, out=out) is out
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        an.layer_norm(X, ONES, out=out)
    room = X.ravel().repeat(2)
    with pytest.raises(ValueError, match="overlaps"):
        an.layer_norm(room[:48].reshape(6, 8), ONES, out=room[1:49].reshape(6, 8))


@each_library(["numpy", "torch"])
def test_what_is_known_follows_its_surroundings(library: ArrayLibrary) -> None:
    """Turning fast paths off, another number of threads, and an engine that is gone all take part."""
    x, weight = library.make(X), library.make(ONES)
    y = library.to_numpy(_until_known(an.layer_norm, x, weight))
    with an.fast_paths(False), watched() as jobs:
        assert an.explain(an.layer_norm, x, weight).path == "formula"
        np.testing.assert_allclose(library.to_numpy(an.layer_norm(x, weight)), y, rtol=1e-5, atol=1e-6)
        assert not jobs
    with in_threads(2), watched() as jobs:
        np.testing.assert_array_equal(library.to_numpy(an.layer_norm(x, weight)), y)
        assert [job.threads for job in jobs] == [2]
    with without_engine(), watched() as jobs:
        assert an.explain(an.layer_norm, x, weight).path != "anynorm_numba"
        np.testing.assert_allclose(library.to_numpy(an.layer_norm(x, weight)), y, rtol=1e-5, atol=1e-6)
        assert not jobs
    np.testing.assert_array_equal(library.to_numpy(an.layer_norm(x, weight)), y)


@each_library(["numpy", "torch"])
def test_memory_is_bounded_and_keeps_no_array(library: ArrayLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered holds no array, and starts anew when it has grown."""
    monkeypatch.setattr(cache, "MANY", 5)
    alive = []
    for length in range(2, 30):
        x, weight = library.make(np.ones((3, length), np.float32)), library.make(np.ones(length, np.float32))
        y = _until_known(an.layer_norm, x, weight)
        alive += [weakref.ref(tensor) for tensor in (x, weight, y)]
    assert len(cache.entries) <= 5
    del x, weight, y
    gc.collect()
    # All but the last three, which the loop's own variables and defaults may still hold.
    assert [value() for value in alive[:-3]] == [None] * (len(alive) - 3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, in make_dual
def test_torch_tensors_whose_memory_is_not_their_value() -> None:
    """A lazily negated view, a tangent, a functorch wrapper and a watching mode are seen after plain calls too."""
    torch = _torch()
    forward_ad: Any = pytest.importorskip("torch.autograd.forward_ad")
    mode: Any = pytest.importorskip("torch.utils._python_dispatch").TorchDispatchMode
    x, weight = torch.from_numpy(X), torch.from_numpy(ONES)
    y = _until_known(an.layer_norm, x, weight)
    torch.testing.assert_close(an.layer_norm(torch._neg_view(x), weight), -y)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.randn(6, 8))
        assert forward_ad.unpack_dual(an.layer_norm(dual, weight)).tangent is not None
    torch.testing.assert_close(torch.vmap(lambda row: an.layer_norm(row, weight))(x), y)
    seen = []

    class Watch(mode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        an.layer_norm(x, weight)
    assert len(seen) > 5


def test_torch_gradients_are_wanted_anew() -> None:
    """Whether a gradient is recorded follows each call's own tensors and grad mode."""
    torch = _torch()
    x, weight = torch.from_numpy(X), torch.from_numpy(ONES.copy())
    assert not _until_known(an.layer_norm, x, weight).requires_grad
    weight.requires_grad_()
    y = an.layer_norm(x, weight)
    assert y.requires_grad
    with torch.no_grad():
        assert not an.layer_norm(x, weight).requires_grad
    with torch.inference_mode():
        assert an.layer_norm(x, weight).is_inference()
    assert an.layer_norm(x, torch.nn.Parameter(weight.detach())).requires_grad
    y.sum().backward()
    assert weight.grad.shape == (8,)
