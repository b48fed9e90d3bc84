"""A pullback that is told where to put dx: the same gradients, there, and nothing else is written.

Refusals that calls with `out` have in common with it are in test_errors_out.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from libraries import LIBRARIES, ArrayLibrary, each_library
from wrong_calls import READ_ONLY, WRITABLE, an, words

SHAPE = (4, 6, 5)
NORMS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "layer": ("layer_norm", (), {}),
    "rms": ("rms_norm", (), {}),
    "group": ("group_norm", (2,), {}),
    "instance": ("instance_norm", (), {}),
    "batch": ("batch_norm", (), {}),
    "batch-channels-last": ("batch_norm", (), {"channel_axis": -1}),
    "given": ("batch_norm", (), {"mean": (6,), "var": (6,)}),
}
each_norm = pytest.mark.parametrize("norm", list(NORMS))


def _array(library: ArrayLibrary, shape: tuple[int, ...] = SHAPE, dtype: str = "float32", seed: int = 0) -> Any:
    values = np.random.default_rng(seed + sum(shape)).uniform(0.5, 2.0, shape)
    return library.make(values.astype(dtype))


def _pullback(library: ArrayLibrary, norm: str, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """Return x, the pullback of a norm at x, and a dy."""
    function, positional, options = NORMS[norm]
    x = _array(library, dtype=dtype)
    given = {name: _array(library, option) if isinstance(option, tuple) else option for name, option in options.items()}
    length = 6 if function in ("group_norm", "instance_norm", "batch_norm") and "channel_axis" not in options else 5
    parameters = {name: _array(library, (length,), seed=seed) for seed, name in enumerate(("weight", "bias"), 1)}
    _, pullback = an.vjp(getattr(an, function), x, *positional, **given, **parameters)
    return x, pullback, _array(library, dtype=dtype, seed=3)


@each_library(WRITABLE)
@each_norm
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "formula"])
def test_dx_is_put_there(dtype: str, norm: str, library: ArrayLibrary, *, fast: bool) -> None:
    """The array that is returned is `out`, with the bits of a pullback without it; so are the other gradients."""
    if dtype not in library.dtypes:
        pytest.skip(f"no {dtype}")
    with an.fast_paths(fast):
        x, pullback, dy = _pullback(library, norm, dtype)
    out = library.make(np.full(SHAPE, np.nan, dtype))
    before = [library.to_numpy(tensor).copy() for tensor in (x, dy)]
    expected = pullback(dy)
    found = pullback(dy, out=out)
    assert found.x is out
    for result, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(library.to_numpy(result), library.to_numpy(other))
    for result, other in zip((x, dy), before, strict=True):
        np.testing.assert_array_equal(library.to_numpy(result), other)


@pytest.mark.parametrize("family", ["numpy", "torch"])
@each_norm
def test_dx_is_put_into_any_layout(norm: str, family: str) -> None:
    """Where `out` lies otherwise than x, dx is there all the same, and between its elements nothing is written."""
    library = LIBRARIES[family]
    _, pullback, dy = _pullback(library, norm)
    expected = library.to_numpy(pullback(dy).x)
    memory = library.make(np.full((5, 12, 4), 7, "float32"))
    out = memory.T[:, ::2] if family == "numpy" else memory.permute(2, 1, 0)[:, ::2]
    assert pullback(dy, out=out).x is out
    np.testing.assert_allclose(library.to_numpy(out), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(library.to_numpy(memory)[:, 1::2], 7)


@pytest.mark.parametrize("family", ["numpy", "torch"])
@each_norm
def test_dx_has_gaps_and_dy_another_layout(norm: str, family: str) -> None:
    """Where dy must be copied, and `out` has gaps between its elements, dx is right and nothing else is written."""
    library = LIBRARIES[family]
    _, pullback, dy = _pullback(library, norm)
    expected = library.to_numpy(pullback(dy).x)
    other = np.asfortranarray(dy) if family == "numpy" else dy.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for memory, places in (((8, 6, 5), np.s_[::2]), ((4, 12, 5), np.s_[:, ::2]), ((4, 6, 10), np.s_[..., ::2])):
        filled = np.full(memory, 7, "float32")
        out = library.make(filled)
        pullback(other, out=out[places])
        filled[places] = library.to_numpy(out[places])
        np.testing.assert_allclose(library.to_numpy(out[places]), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(library.to_numpy(out), filled)


@each_library(WRITABLE)
@pytest.mark.parametrize("place", ["x", "dy"])
def test_dx_overwrites_no_argument(place: str, library: ArrayLibrary) -> None:
    """x, which a second call reads again, and dy cannot take dx: refused by name where memory can be compared."""
    if library.family not in ("numpy", "torch", "cupy"):
        pytest.skip("memory of another library is not compared")
    x, pullback, dy = _pullback(library, "layer")
    out = {"x": x, "dy": dy}[place]
    before = library.to_numpy(out).copy()
    with pytest.raises(ValueError, match=f"out overlaps {place} in memory. Pass an array that shares no memory"):
        pullback(dy, out=out)
    np.testing.assert_array_equal(library.to_numpy(out), before)


@each_library(["numpy", "torch"])
def test_a_known_pullback_overwrites_no_argument(library: ArrayLibrary) -> None:
    """However often a pullback was called with an `out` that fits, one that overlaps an argument is refused by name."""
    memory = library.make(np.linspace(1, 2, 400, dtype="float32"))

    def take(first: int, *shape: int) -> Any:
        return memory[first : first + int(np.prod(shape))].reshape(shape)

    parameters = {name: take(200 + 50 * place, 8) for place, name in enumerate(("weight", "bias", "mean", "var"))}
    _, pullback = an.vjp(an.batch_norm, take(0, 6, 8), **parameters)
    dy = take(50, 6, 8)
    for _ in range(3):
        pullback(dy, out=take(100, 6, 8))
    for name, first in {"weight": 160, "bias": 210, "mean": 260, "var": 310}.items():
        with pytest.raises(ValueError, match=f"out overlaps {name} in memory"):
            pullback(dy, out=take(first, 6, 8))


@each_library(WRITABLE)
def test_dx_does_not_fit(library: ArrayLibrary) -> None:
    """An `out` of another shape, dtype or library is refused in the words of the functions, and the pullback lives."""
    _, pullback, dy = _pullback(library, "layer")
    wrong: list[tuple[Any, type[Exception], str]] = [
        (_array(library, (4, 6, 4)), ValueError, "out must have x's shape (4, 6, 5), got (4, 6, 4)"),
        ([0.0], TypeError, "out must be an array"),
    ]
    if "float64" in library.dtypes:
        wrong.append((_array(library, dtype="float64"), TypeError, "out must have x's dtype float32, got float64"))
    for out, error, said in wrong:
        with pytest.raises(error) as caught:
            pullback(dy, out=out)
        assert words(str(caught.value)).startswith("pullback of layer_norm: ")
        assert said in words(str(caught.value))
    assert pullback(dy).x.shape == dy.shape


@each_library(READ_ONLY)
def test_arrays_that_cannot_be_written(library: ArrayLibrary) -> None:
    """JAX and Dask arrays cannot take dx: a TypeError that says so."""
    _, pullback, dy = _pullback(library, "layer")
    said = rf"^pullback of layer_norm: {library.family} arrays cannot be written to.* Use the returned"
    with pytest.raises(TypeError, match=said):
        pullback(dy, out=_array(library))


def test_autograd_sees_that_dx_was_written() -> None:
    """A tensor that autograd saved and a pullback wrote to makes its backward an error instead of a wrong gradient."""
    torch: Any = pytest.importorskip("torch")
    _, pullback, dy = _pullback(LIBRARIES["torch"], "layer")
    out, leaf = torch.ones(SHAPE), torch.ones(SHAPE, requires_grad=True)
    product = (leaf * out).sum()
    pullback(dy, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_pullback_that_is_differentiated_again_takes_no_out() -> None:
    """Where torch records the pullback itself, `out` is refused as it is by the functions."""
    torch: Any = pytest.importorskip("torch")
    x = torch.rand(SHAPE, requires_grad=True)
    _, pullback = an.vjp(an.layer_norm, x)
    with pytest.raises(ValueError, match="out= cannot be used where a gradient is wanted, and x requires one"):
        pullback(torch.rand(SHAPE), out=torch.empty(SHAPE))
    with torch.no_grad():
        assert pullback(torch.rand(SHAPE), out=torch.empty(SHAPE)).x.shape == SHAPE


def test_a_layers_pullback_takes_out() -> None:
    """The pullback of a layer puts dx where it is told to, beside the gradients of its parameters."""
    layer = an.LayerNorm(5)
    x, dy = np.random.default_rng(1).random((2, *SHAPE)).astype(np.float32)
    _, pullback = layer.vjp(x)
    expected, gradients = pullback(dy)
    out = np.empty_like(x)
    found, others = pullback(dy, out=out)
    assert found is out
    np.testing.assert_array_equal(out, expected)
    assert others.keys() == gradients.keys() == {"weight", "bias"}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "formula"])
def test_nothing_to_put(*, fast: bool) -> None:
    """Without elements `out` comes back as it is."""
    with an.fast_paths(fast):
        _, pullback = an.vjp(an.layer_norm, np.empty((0, 5), np.float32))
        out = np.empty((0, 5), np.float32)
        assert pullback(out.copy(), out=out).x is out
