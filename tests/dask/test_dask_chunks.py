"""Dask: chunks that are not NumPy's own, chunks without elements, and chunks that are not what Dask was told."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from inputs import NORMS, Norm, make_case, verify
from libraries import NumPyArray

import anynorm as an
from anynorm import _reference

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask is not installed")

X = np.random.default_rng(0).normal(3, 2, size=(4, 6)).astype("float32")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in the test's own thread."""
    with dask.config.set(scheduler="synchronous"):
        yield


class Sparse:
    """A chunk like those of pydata's sparse, which has no `initial` of `max` and no zeros."""

    def __init__(self, values: NumPyArray) -> None:
        self.values, self.shape, self.dtype, self.ndim = values, values.shape, values.dtype, values.ndim
        self.nnz = np.count_nonzero(values)

    def todense(self) -> NumPyArray:
        """Return all elements."""
        return self.values

    def __getitem__(self, index: Any) -> Sparse:
        return Sparse(self.values[index])

    def __abs__(self) -> Sparse:
        return Sparse(abs(self.values))

    def astype(self, dtype: Any, **_: Any) -> Sparse:
        """Cast."""
        return Sparse(self.values.astype(dtype))

    def max(self, axis: Any = None, keepdims: bool = False) -> Sparse:
        """Reduce, as sparse does."""
        return Sparse(self.values.max(axis=axis, keepdims=keepdims))


class Metres(np.ndarray):
    """A chunk like those of astropy."""

    unit = "m"

    @property
    def value(self) -> NumPyArray:
        """The numbers."""
        return self.view(np.ndarray)


def _torch(block: NumPyArray) -> Any:
    return pytest.importorskip("torch").asarray(block)


def _jax(block: NumPyArray) -> Any:
    return pytest.importorskip("jax.numpy").asarray(block)


# How chunks are made, what is said of them, and what is advised.
KINDS: dict[str, tuple[Callable[[Any], Any], str, Callable[[Any], Any]]] = {
    "masked": (
        lambda block: np.ma.masked_greater(block, 5.5),
        r"chunks of numpy.MaskedArray, which is masked.*dask\.array\.ma\.filled\(\.\.\., numpy\.nan\)",
        lambda x: da.ma.filled(x, np.nan),
    ),
    "sparse": (
        Sparse,
        r'Sparse, whose missing zeros.*\.map_blocks\(lambda block: block\.todense\(\), dtype="float32"\)',
        lambda x: x.map_blocks(lambda block: block.todense(), dtype="float32"),
    ),
    "unit": (
        lambda block: block.view(Metres),
        r'Metres, which has a unit.*\.map_blocks\(lambda block: block\.value, dtype="float32"\)',
        lambda x: x.map_blocks(lambda block: block.value, dtype="float32"),
    ),
    "matrix": (
        lambda block: block.view(np.matrix),
        r'numpy.matrix, and .*\.map_blocks\(numpy\.asarray, dtype="float32"\)',
        lambda x: x.map_blocks(np.asarray, dtype="float32"),
    ),
    "torch": (
        _torch,
        r'torch.Tensor, and .*\.map_blocks\(numpy\.asarray, dtype="float32"\)',
        lambda x: x.map_blocks(np.asarray, dtype="float32"),
    ),
    "jax": (
        _jax,
        r'jaxlib.ArrayImpl, and .*\.map_blocks\(numpy\.asarray, dtype="float32"\)',
        lambda x: x.map_blocks(np.asarray, dtype="float32"),
    ),
}

each_kind = pytest.mark.parametrize("kind", list(KINDS))
pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")


def chunked(kind: str, values: NumPyArray, **told: Any) -> Any:
    """Return a Dask array whose chunks are of a kind; `told` is what Dask hears of them instead."""
    return da.from_array(values, chunks=3).map_blocks(KINDS[kind][0], **told)


CALLS: dict[str, Callable[[Any], Any]] = {
    "layer_norm": an.layer_norm,
    "rms_norm": an.rms_norm,
    "group_norm": lambda x: an.group_norm(x, 2),
    "instance_norm": lambda x: an.instance_norm(x, batch_axis=None),
    "batch_norm": an.batch_norm,
    "moments": an.moments,
    "vjp": lambda x: an.vjp(an.layer_norm, x),
    "explain": lambda x: an.explain(an.layer_norm, x),
    "layer": lambda x: an.LayerNorm(6).to(da)(x),
}


@each_kind
@pytest.mark.parametrize("call", list(CALLS))
def test_chunks_refused_when_called(call: str, kind: str) -> None:
    """Chunks that would fail at compute, or become NumPy's on the way, are a TypeError at once that says what to do."""
    with pytest.raises(TypeError, match=f"x has chunks of .*{KINDS[kind][1].removeprefix('chunks of ')}"):
        CALLS[call](chunked(kind, X))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "matrix"])  # it has always two axes
@pytest.mark.parametrize("argument", ["weight", "bias", "mean", "var", "dy", "running_mean"])
def test_chunks_refused_as_another_argument(argument: str, kind: str) -> None:
    """So they are as any other argument, where they would be used without a word: a mask drops the weight."""
    x = da.from_array(X, chunks=3)
    array = chunked(kind, X if argument == "dy" else X[0])

    def call() -> None:
        if argument == "dy":
            an.vjp(an.batch_norm, x)[1](array)
        elif argument == "running_mean":
            an.update_running(array, x[0], an.moments(x, axis=0))
        elif argument in ("mean", "var"):
            an.batch_norm(x, **({"mean": x[0], "var": x[0]} | {argument: array}))
        else:
            an.batch_norm(x, **{argument: array})

    with pytest.raises(TypeError, match=rf"{argument} has chunks of"):
        call()


@each_kind
def test_advice_gives_the_right_numbers(kind: str) -> None:
    """What the refusal advises is taken, and right; with a mask, in all sets that have no masked element."""
    x = KINDS[kind][2](chunked(kind, X))
    y = an.layer_norm(x).compute()
    hidden = (X > 5.5).any(axis=1) if kind == "masked" else np.zeros(4, dtype=bool)
    assert hidden.any() == (kind == "masked")
    assert not hidden.all()
    assert np.isnan(y[hidden]).all()
    verify(np.asarray(y)[~hidden], X[~hidden], _reference.layer_norm(X[~hidden]))


@pytest.mark.parametrize("kind", ["masked", "sparse"])
def test_chunks_that_are_not_what_dask_was_told(kind: str) -> None:
    """Where Dask was told of another kind, computing says so in anynorm's words."""
    y = an.layer_norm(chunked(kind, X, meta=X[:0, :0]))
    with pytest.raises(TypeError, match=r"^anynorm: a Dask array has chunks of .*pass meta= where it is made\.$"):
        y.compute()


class LikeCuPy(np.ndarray):
    """A chunk that reduces by the standard's means, without `initial`."""

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        """Reduce."""
        return np.max(self.view(np.ndarray), axis=axis, out=out, keepdims=keepdims)


def test_chunks_without_initial() -> None:
    """No more is asked of a chunk than the standard has: CuPy's `max` has no `initial`."""
    for chunks in (3, ((2, 0, 2), (6, 0))):
        x = da.from_array(X.view(LikeCuPy), chunks=chunks, asarray=False)
        verify(np.asarray(an.layer_norm(x).compute()), X, _reference.layer_norm(X))


def test_chunks_of_two_libraries() -> None:
    """A weight in chunks of another library than x's is refused: nothing is moved silently."""
    x, weight = da.from_array(X, chunks=3), da.ones(6, chunks=3)
    weight._meta = type("ndarray", (), {"__module__": "cupy", "dtype": np.dtype("float32")})()
    with pytest.raises(TypeError, match=r"weight has chunks of cupy, and those of x are of numpy.*cupy\.asnumpy"):
        an.layer_norm(x, weight)
    x, weight = weight, x[0]
    with pytest.raises(TypeError, match=r"weight has chunks of numpy, and those of x are of cupy.*cupy\.asarray"):
        an.layer_norm(x, weight)


@pytest.mark.parametrize("norm", NORMS[::3], ids=[norm.name for norm in NORMS[::3]])
def test_empty_chunks_along_an_axis_of_length_one(norm: Norm) -> None:
    """Beside an empty chunk of an axis of length 1 Dask repeats the other: y and the gradient keep x's shape."""
    case = make_case(norm, "float32")
    arrays = case.arrays | {"x": case.arrays["x"][:1]}
    for name, shape in norm.parameters.items():
        arrays[name] = arrays[name][:1] if shape[0] == len(case.arrays["x"]) else arrays[name]
    case = case.with_x(arrays["x"])
    case.arrays.update(arrays)
    lazy = {name: da.from_array(tensor, chunks=tensor.shape) for name, tensor in case.arrays.items()}
    lazy["x"] = da.from_array(arrays["x"], chunks=((0, 1, 0), 4, 3, 5))
    y = case.function()(lazy)
    verify(y.compute(), arrays["x"], case.reference())


def test_gradients_of_other_chunks() -> None:
    """dy may be chunked otherwise than x, and an axis of length 1 in chunks of which one is empty."""
    x, dy = X[:, None], X[::-1, None]
    _, pullback = an.vjp(an.layer_norm, da.from_array(x, chunks=(3, (1, 0), 2)), da.ones(6, chunks=4))
    dx, dweight, _ = pullback(da.from_array(dy, chunks=((1, 0, 3), (0, 1), 5)))
    _, exact = an.vjp(an.layer_norm, x.astype("float64"), np.ones(6))
    expected = exact(dy.astype("float64"))
    np.testing.assert_allclose(dx.compute(), expected.x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dweight.compute(), expected.weight, rtol=1e-4, atol=1e-5)


def test_graphs_travel() -> None:
    """A graph that was pickled, optimized or persisted, or is computed in threads, gives the same bits."""
    y = an.group_norm(da.from_array(X, chunks=(1, (1, 3, 2))), 2)
    bits = y.compute().tobytes()
    for same in (pickle.loads(pickle.dumps(y)), dask.optimize(y)[0], y.persist()):
        assert same.compute(scheduler="threads").tobytes() == bits


@pytest.mark.parametrize("channel_axis", [0, 1])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 4, 2), (4, 2, 0), (0, 0)], ids=str)
def test_groups_without_elements(shape: tuple[int, ...], channel_axis: int) -> None:
    """Group norm of an array without elements, in several chunks, returns one like it, and gradients of zeros."""
    channels = shape[channel_axis]
    x = da.zeros(shape, chunks=tuple([(0, length) for length in shape]))
    weight = da.ones(channels, chunks=((0, channels),))
    batch = 1 - channel_axis
    y, pullback = an.vjp(an.group_norm, x, 2, weight, weight, channel_axis=channel_axis, batch_axis=batch)
    found = pullback(x)
    assert [np.asarray(a).shape for a in (y, found.x)] == [shape, shape]
    for gradient in (found.weight, found.bias):
        np.testing.assert_array_equal(gradient, np.zeros(channels))
