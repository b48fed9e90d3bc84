"""Running statistics as BatchNorm and InstanceNorm keep them: conventions, what is left out, who may train at once.

Twenty steps beside torch.nn are in test_layers.py, the arithmetic of one update in test_running.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from libraries import ArrayLibrary, NumPyArray, each_library, numpy_dtype

import anynorm as an
from anynorm.layers._running import accumulate

EAGER = ["numpy", "torch", "jax", "dask", "strict_CPU_DEVICE"]
LAYERS: dict[str, Any] = {"batch": an.BatchNorm, "instance": an.InstanceNorm}
KEPT = ("running_mean", "running_var", "num_batches_tracked")


def _like(library: ArrayLibrary, layer: Any) -> Any:
    """Return the layer with its arrays in a library under test."""
    layer._assign({name: library.make(np.asarray(tensor)) for name, tensor in layer._arrays().items()})
    return layer


def _bits(library: ArrayLibrary, layer: Any, names: Iterable[str] = KEPT) -> list[bytes]:
    return [library.to_numpy(getattr(layer, name)).tobytes() for name in names]


def _batches(number: int, dtype: str = "float32") -> list[NumPyArray]:
    """Return batches of uneven length, (N, 5, 3), far from where running statistics start."""
    rng, means = np.random.default_rng(7), np.asarray([3, -50, 0, 0.1, 9])[:, None]
    return [rng.normal(means, 2.0, (2 + n % 3, 5, 3)).astype(dtype) for n in range(number)]


@pytest.mark.parametrize("decay", [0.99, 0.9])
@each_library(["numpy", "torch", "strict_CPU_DEVICE"])
def test_keras(library: ArrayLibrary, decay: float) -> None:
    """momentum=1 − decay and correction=0 give Keras's moving statistics: old·decay + biased·(1 − decay)."""
    layer = _like(library, an.BatchNorm(5, momentum=1 - decay, correction=0, eps=1e-3, dtype="float64"))
    moving_mean, moving_var = np.zeros(5), np.ones(5)
    for batch in _batches(6, "float64"):
        layer(library.make(batch))
        mean = batch.sum(axis=(0, 2)) / (len(batch) * 3)
        var = ((batch - mean[:, None]) ** 2).sum(axis=(0, 2)) / (len(batch) * 3)
        moving_mean = moving_mean * decay + mean * (1 - decay)
        moving_var = moving_var * decay + var * (1 - decay)
    np.testing.assert_allclose(library.to_numpy(layer.running_mean), moving_mean, rtol=1e-13)
    np.testing.assert_allclose(library.to_numpy(layer.running_var), moving_var, rtol=1e-13)
    x = _batches(1, "float64")[0]
    y = (x - moving_mean[:, None]) / np.sqrt(moving_var[:, None] + 1e-3)
    np.testing.assert_allclose(library.to_numpy(layer.eval()(library.make(x))), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", LAYERS.values(), ids=LAYERS)
@each_library(["numpy", "torch", "jax", "strict_CPU_DEVICE"])
def test_cumulative_average(library: ArrayLibrary, cls: Any) -> None:
    """momentum=None is the plain average over all batches, each of equal weight; a rejected one has none."""
    layer = _like(library, cls(5, momentum=None, track_running_stats=True))
    batches = _batches(4)
    for batch in (*batches[:2], batches[2] * np.float32("nan"), *batches[2:]):
        layer(library.make(batch))
    samples = [batch.astype("float64") for batch in batches]
    if cls is an.BatchNorm:
        means = [sample.mean(axis=(0, 2)) for sample in samples]
        variances = [sample.var(axis=(0, 2), ddof=1) for sample in samples]
    else:
        means = [sample.mean(axis=2).mean(axis=0) for sample in samples]
        variances = [sample.var(axis=2, ddof=1).mean(axis=0) for sample in samples]
    np.testing.assert_allclose(library.to_numpy(layer.running_mean), np.mean(means, axis=0), rtol=2e-6)
    np.testing.assert_allclose(library.to_numpy(layer.running_var), np.mean(variances, axis=0), rtol=2e-6)
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (4, 1)


BAD = {
    "nan": (np.nan, 0.1),
    "inf-cumulative": (np.inf, None),
    "minus-inf-momentum-0": (-np.inf, 0.0),
    "overflow": (3e38, 0.1),
}
# Everything where a step is quick, one of each elsewhere.
BAD_BATCHES = [(library, cls, one) for library in ("numpy", "torch") for cls in LAYERS for one in BAD]
BAD_BATCHES += [
    (library, *one)
    for library in ("jax", "dask", "strict_CPU_DEVICE")
    for one in (("batch", "overflow"), ("instance", "inf-cumulative"))
]


@pytest.mark.parametrize(
    ("library", "cls", "value", "momentum"),
    [
        pytest.param(library, LAYERS[cls], *BAD[batch], id=f"{library}-{cls}-{batch}")
        for library, cls, batch in BAD_BATCHES
    ],
    indirect=["library"],
)
# What plain NumPy arithmetic on infinities says, which array-api-strict's formula passes on.
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
def test_a_batch_that_is_not_finite(library: ArrayLibrary, cls: Any, value: float, momentum: float | None) -> None:
    """One NaN, infinity or overflow in one channel leaves every bit of every statistic, and is counted as skipped."""
    layer = _like(library, cls(5, momentum=momentum, track_running_stats=True, weight=True))
    good, bad = _batches(2)
    bad[1, 2] = [value, -value, 0]
    layer(library.make(good))
    before = _bits(library, layer)
    layer(library.make(bad))
    _, pullback = layer.vjp(library.make(bad))
    pullback(library.make(bad))
    assert _bits(library, layer) == before
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (1, 2)
    layer(library.make(good))
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (2, 2)
    assert "num_batches_skipped" not in layer.state_dict()


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 5, 0)], ids=["no-samples", "no-points"])
@pytest.mark.parametrize("cls", LAYERS.values(), ids=LAYERS)
@each_library(EAGER)
def test_an_empty_batch(library: ArrayLibrary, cls: Any, shape: tuple[int, ...]) -> None:
    """An empty batch gives an empty result and changes nothing, no count either."""
    layer = _like(library, cls(5, track_running_stats=True, weight=True))
    layer(library.make(_batches(1)[0]))
    before = _bits(library, layer, (*KEPT, "num_batches_skipped"))
    x = library.make(np.zeros(shape, "float32"))
    assert tuple(layer(x).shape) == shape
    dx, grads = layer.vjp(x)[1](x)
    assert tuple(dx.shape) == shape
    assert library.to_numpy(grads["weight"]).tolist() == [0] * 5
    assert _bits(library, layer, (*KEPT, "num_batches_skipped")) == before


def test_instances_of_one_value_have_no_variance() -> None:
    """Instances of one value each enter no statistic, which would be NaN, and are counted as skipped."""
    layer = an.InstanceNorm(3, track_running_stats=True)
    layer(np.ones((4, 3, 1)))
    assert layer.running_var.tolist() == [1, 1, 1]
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (0, 1)


def test_a_forward_pass_that_is_repeated() -> None:
    """With update=False a training step computes the same, learns nothing, and still uses the batch's statistics."""
    layer = an.BatchNorm(5)
    x = _batches(1)[0]
    y = layer(x)
    before = [value.copy() for value in layer.state_dict().values()]
    np.testing.assert_array_equal(layer(x, update=False), y)
    np.testing.assert_array_equal(layer.vjp(x, update=False)[0], y)
    for value, was in zip(layer.state_dict().values(), before, strict=True):
        np.testing.assert_array_equal(value, was)
    layer.vjp(x)
    assert int(layer.num_batches_tracked) == 2


@pytest.mark.parametrize("call", ["call", "vjp"])
@pytest.mark.parametrize("cls", LAYERS.values(), ids=LAYERS)
def test_evaluation_and_freezing_use_the_running_statistics(cls: Any, call: str) -> None:
    """In evaluation, and while frozen in any mode, y is by the running statistics and they stay as they are."""
    layer = cls(5, track_running_stats=True, eps=1e-3)
    layer.running_mean, layer.running_var = np.arange(5.0), np.arange(1.0, 6.0)
    x = _batches(1, "float64")[0]
    expected = (x - np.arange(5.0)[:, None]) / np.sqrt(np.arange(1.0, 6.0)[:, None] + 1e-3)
    for prepare in (layer.eval, layer.freeze, layer.train):
        prepare()
        y = layer(x) if call == "call" else layer.vjp(x)[0]
        np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-13)
        assert layer.running_mean.tolist() == [0, 1, 2, 3, 4]
        assert int(layer.num_batches_tracked) == 0
    layer.unfreeze().train()(x)
    assert int(layer.num_batches_tracked) == 1


def test_one_sample_is_enough_for_evaluation() -> None:
    """A batch of one value per channel cannot train batch norm, and the error leaves the layer as it was."""
    layer = an.BatchNorm(3)
    with pytest.raises(ValueError, match="one value per channel"):
        layer(np.ones((1, 3)))
    assert int(layer.num_batches_tracked) == 0
    assert layer.eval()(np.full((1, 3), 2.0)).shape == (1, 3)
    with pytest.raises(ValueError, match="one value per channel"):
        an.BatchNorm(3, track_running_stats=False).eval()(np.ones((1, 3)))


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("running_mean", np.zeros(3), ValueError, r"running_mean has shape \(3,\), but this layer's has shape \(5,\)"),
        ("running_var", None, TypeError, "running_var must be an array"),
        ("running_var", np.ones(5, "int32"), TypeError, "running_var must have a real floating dtype"),
        (
            "num_batches_tracked",
            3,
            TypeError,
            r"must be a 0-d array of integers, got 3 of .* Pass e\.g\. numpy.asarray\(3",
        ),
        ("num_batches_skipped", np.zeros(()), TypeError, "must be a 0-d array of integers"),
    ],
)
def test_statistics_that_do_not_fit(name: str, value: Any, error: type[Exception], said: str) -> None:
    """What cannot take a statistic's place is refused when it is assigned; integers in an array count batches."""
    layer = an.BatchNorm(5)
    before = layer.state_dict()
    with pytest.raises(error, match=f"^BatchNorm: .*{said}"):
        setattr(layer, name, value)
    assert all(layer.state_dict()[name] is one for name, one in before.items())
    layer.num_batches_tracked = np.asarray(3)
    layer(_batches(1)[0])
    assert int(layer.num_batches_tracked) == 4
    layer.load_state_dict(layer.state_dict())


def test_statistics_of_another_library() -> None:
    """A statistic, or parameters, of another library than the rest of the layer are refused when they are assigned."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = an.BatchNorm(5)
    with pytest.raises(TypeError, match="weight is an array of numpy but running_mean is one of torch"):
        layer.running_mean = torch.zeros(5)
    with pytest.raises(TypeError, match="running_mean is an array of numpy but weight is one of torch"):
        layer.params = dict.fromkeys(layer.params, torch.ones(5))
    with pytest.raises(TypeError, match="weight is an array of torch but bias is one of numpy"):
        an.LayerNorm(5).params = {"weight": torch.ones(5), "bias": np.zeros(5)}
    layer.weight = torch.ones(5)  # which is not looked at until a call
    with pytest.raises(
        TypeError, match=r"the layer holds arrays of numpy and torch.* move the layer with layer.to\(numpy"
    ):
        layer(_batches(1)[0])
    layer.to(np)(_batches(1)[0])


def test_without_statistics_evaluation_uses_the_batch() -> None:
    """track_running_stats=False: no statistics, and evaluation and freezing normalize by the batch itself."""
    layer = an.BatchNorm(5, track_running_stats=False)
    x = _batches(1)[0]
    y = layer(x)
    for prepare in (layer.eval, layer.freeze, layer.train):
        np.testing.assert_array_equal(prepare()(x), y)
    assert layer.running_mean is layer.running_var is layer.num_batches_tracked is layer.num_batches_skipped is None
    with pytest.raises(AttributeError, match="track_running_stats=False"):
        layer.running_mean = np.zeros(5)


@pytest.mark.parametrize(
    ("axes", "channel_axis", "batch_axis"),
    [("NCHW", 1, 0), ("NHWC", -1, 0), ("CNHW", 0, -3), ("NTHWC", 4, (0, -4)), ("TNCHW", -3, (1, 0)), ("CHW", 0, None)],
    ids=lambda tensor: tensor if isinstance(tensor, str) else "",
)
def test_instance_statistics_for_any_order_of_axes(axes: str, channel_axis: int, batch_axis: Any) -> None:
    """Instance norm averages over the samples of whatever batch axes there are, before, after or between others."""
    sizes = {"N": 4, "T": 2, "C": 5, "H": 3, "W": 2}
    x = np.random.default_rng(1).normal(3.0, 2.0, [sizes[axis] for axis in axes])
    layer = an.InstanceNorm(
        5, channel_axis=channel_axis, batch_axis=batch_axis, track_running_stats=True, momentum=1.0, dtype="float64"
    )
    layer(x)
    plane = tuple([axes.index(axis) for axis in "HW"])
    batch = tuple([axes.index(axis) for axis in axes if axis in "NT"])
    mean = x.mean(axis=plane, keepdims=True).mean(axis=batch, keepdims=True)
    var = x.var(axis=plane, ddof=1, keepdims=True).mean(axis=batch, keepdims=True)
    np.testing.assert_allclose(layer.running_mean, mean.ravel(), rtol=1e-13)
    np.testing.assert_allclose(layer.running_var, var.ravel(), rtol=1e-13)


def test_statistics_are_replaced_and_not_written_to() -> None:
    """Arrays taken from the layer before a step hold what they held."""
    layer = an.BatchNorm(5)
    before = layer.state_dict()
    layer(_batches(1)[0])
    assert before["running_mean"].tolist() == [0] * 5
    assert before["running_var"].tolist() == [1] * 5
    assert int(before["num_batches_tracked"]) == 0
    assert isinstance(layer.num_batches_tracked, np.ndarray)


@each_library(["numpy", "torch", "jax"])
def test_threads_train_one_at_a_time(library: ArrayLibrary) -> None:
    """No step of any of several threads that train one layer is lost."""
    layer = _like(library, an.BatchNorm(5, momentum=None, dtype="float32"))
    batches = _batches(8)
    start = Barrier(len(batches))

    def work(batch: NumPyArray) -> None:
        x = library.make(batch)
        start.wait(30)
        for _ in range(10):
            layer(x)

    with ThreadPoolExecutor(len(batches)) as pool:
        list(pool.map(work, batches))
    assert int(layer.num_batches_tracked) == 80
    mean = np.mean([batch.astype("float64").mean(axis=(0, 2)) for batch in batches], axis=0)
    np.testing.assert_allclose(library.to_numpy(layer.running_mean), mean, rtol=1e-4)


def test_the_update_waits_for_the_lock_and_evaluation_does_not() -> None:
    """While one thread holds the layer's lock, another's training step waits and evaluation goes on."""
    layer = an.BatchNorm(5)
    x = _batches(1)[0]
    with ThreadPoolExecutor(1) as pool:
        with layer._lock:
            training = pool.submit(layer, x)
            with pytest.raises(TimeoutError):
                training.result(0.2)
            assert int(layer.num_batches_tracked) == 0
            layer.eval()(x)
        training.result(30)
    assert int(layer.num_batches_tracked) == 1


def test_dask_stays_lazy() -> None:
    """Training on Dask arrays computes nothing, counts and acceptance included."""
    dask = pytest.importorskip("dask", reason="dask is not installed")
    da = pytest.importorskip("dask.array")
    layer = an.BatchNorm(5, momentum=None, xp=da)

    def refuse(*_: Any, **__: Any) -> Any:
        msg = "something was computed"
        raise AssertionError(msg)

    with dask.config.set(scheduler=refuse):
        y, pullback = layer.vjp(da.from_array(_batches(1)[0], chunks=2))
        dx, _ = pullback(y)
        layer(dx)
    assert int(layer.num_batches_tracked) == 2
    assert layer.running_mean.compute().shape == (5,)


def test_dask_of_unknown_length() -> None:
    """A batch of unknown length trains instance norm, whose statistics are per sample."""
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    x = _batches(3)[2]
    layer, known = an.InstanceNorm(5, track_running_stats=True, xp=da), an.InstanceNorm(5, track_running_stats=True)
    chosen = da.from_array(x, chunks=(2, 5, 3))
    layer(chosen[da.from_array(np.asarray([True, True, False, True]), chunks=2)])
    known(x[[0, 1, 3]])
    np.testing.assert_allclose(layer.running_var.compute(), known.running_var, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each_library(["numpy", "torch"])
def test_half_statistics(library: ArrayLibrary, dtype: str) -> None:
    """Statistics of a layer in half precision stay in it."""
    layer = _like(library, an.BatchNorm(5, dtype=dtype, momentum=None))
    for batch in _batches(2):
        layer(library.make(batch.astype(numpy_dtype(dtype))))
    assert library.to_numpy(layer.running_var).dtype.name == dtype
    assert int(layer.num_batches_tracked) == 2


@each_library(["torch"])
def test_accumulate_under_a_compiler(library: ArrayLibrary) -> None:
    """`accumulate` is one graph to torch.compile, whatever the values, with a momentum that is an array."""
    import torch

    compiled = torch.compile(accumulate, fullgraph=True, backend="eager")
    mean, var = library.make(np.zeros(3, "float32")), library.make(np.ones(3, "float32"))
    for value, accepted in ((1.0, True), (np.nan, False), (2.0, True)):
        x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
        x[1, 1] *= value
        batch = an.moments(library.make(x), axis=0)
        for momentum in (0.1, torch.tensor(0.5)):
            found = compiled(mean, var, batch, momentum=momentum)
            expected = accumulate(mean, var, batch, momentum=momentum)
            assert found[2].shape == ()
            assert bool(found[2]) == bool(expected[2]) == accepted
            for result, other in zip(found[:2], expected[:2], strict=True):
                torch.testing.assert_close(result, other)


@each_library(EAGER)
def test_accumulate(library: ArrayLibrary) -> None:
    """`accumulate` returns what update_running does and True, or the old bits and False, also of nothing."""
    mean, var = [library.make(np.asarray(value, "float32")) for value in ([0.1, 0.2], [0.3, 0.4])]
    good = an.moments(library.make(np.asarray([[1.0, 2.0], [3.0, 5.0]], "float32")), axis=0)
    found = accumulate(mean, var, good, momentum=0.5)
    for result, expected in zip(found[:2], an.update_running(mean, var, good, momentum=0.5), strict=True):
        assert library.to_numpy(result).tobytes() == library.to_numpy(expected).tobytes()
    assert bool(library.to_numpy(found[2]))
    poison = library.make(np.asarray([1.0, np.inf], "float32"))
    counted = an.Moments(library.make(np.zeros(2, "float32")), good.mean, good.m2)
    for bad in (good._replace(mean=poison), good._replace(m2=poison), good._replace(n=1), good._replace(n=0), counted):
        for momentum in (0.5, 0.0):
            *same, accepted = accumulate(mean, var, bad, momentum=momentum)
            assert not bool(library.to_numpy(accepted))
            assert tuple(accepted.shape) == ()
            for result, was in zip(same, (mean, var), strict=True):
                assert library.to_numpy(result).tobytes() == library.to_numpy(was).tobytes()


def test_compiled_by_torch() -> None:
    """torch.compile takes a training step of a layer on torch's arrays into one graph, statistics included."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer, other = an.BatchNorm(3, xp=torch), an.BatchNorm(3, xp=torch)
    x = torch.linspace(-1, 1, 24).reshape(8, 3) ** 3
    compiled = torch.compile(lambda x: layer(x), fullgraph=True, backend="eager")
    for tensor in (x, x**2):
        torch.testing.assert_close(compiled(tensor), other(tensor))
    torch.testing.assert_close(layer.running_var, other.running_var)
    assert int(layer.num_batches_tracked) == 2


def test_overflow_in_the_dtype_of_the_statistics() -> None:
    """A batch whose variance the running one's float16 cannot hold enters nothing and is counted as skipped."""
    layer = an.BatchNorm(3, dtype="float16")
    layer(1e4 * np.random.default_rng(0).normal(size=(8, 3)).astype("float32"))
    assert layer.running_var.tolist() == [1, 1, 1]
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (0, 1)


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transformed_by_torch(transform: str) -> None:
    """Inside torch.func the statistics would keep a wrapper that is dead afterwards, so training raises."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = an.BatchNorm(3, xp=torch)
    call = getattr(torch.func, transform)(lambda x: layer(x).sum())
    x = torch.ones(2, 4, 3) if transform == "vmap" else torch.ones(4, 3)
    with pytest.raises(RuntimeError, match="while torch is tracing or transforming"):
        call(x)
    layer.eval()
    call(x)


def test_repr_of_a_subclass() -> None:
    """A subclass with arguments of its own shows those of the layer it is."""

    class Block(an.BatchNorm):
        def __init__(self, name: str) -> None:
            super().__init__(3)
            self.name = name

    assert repr(Block("a")) == "Block(3, eps=1e-05, momentum=0.1)"
