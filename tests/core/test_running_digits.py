"""Running statistics keep the digits that their batches were measured with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from libraries import ONE_OF_EACH, ArrayLibrary, each_library

import anynorm as an


def _layer(library: ArrayLibrary, cls: Any, channels: int, **options: Any) -> Any:
    """Return a layer that tracks, with arrays of the library."""
    layer = cls(channels, track_running_stats=True, **options)
    layer._assign({name: library.make(np.asarray(tensor)) for name, tensor in layer._arrays().items()})
    return layer


@pytest.mark.parametrize("cls", [an.BatchNorm, an.InstanceNorm], ids=lambda cls: cls.__name__)
@each_library(["numpy", "torch", "jax", "strict_CPU_DEVICE"])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_batch_whose_variance_is_in_range_enters(library: ArrayLibrary, cls: Any) -> None:
    """±10¹⁸ has a float32 for a variance, though not for a sum of 400 squares: the batch is not skipped."""
    x = np.where(np.arange(800) % 2, 1e18, -1e18).astype("float32").reshape(1, 2, 400)
    layer = _layer(library, cls, 2, momentum=1.0, dtype="float32")
    layer(library.make(x))
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (1, 0)
    np.testing.assert_allclose(library.to_numpy(layer.running_var), 1e36 * 400 / 399, rtol=1e-6)


def test_torch_modules_take_it_too() -> None:
    """So it is in torch's own layers."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import anynorm_torch.nn

    x = torch.where(torch.arange(800) % 2 == 1, 1e18, -1e18).reshape(1, 2, 400)
    for layer in (
        anynorm_torch.nn.BatchNorm1d(2, momentum=1.0),
        anynorm_torch.nn.InstanceNorm1d(2, momentum=1.0, track_running_stats=True),
    ):
        layer(x)
        torch.testing.assert_close(layer.running_var, torch.full((2,), 1e36 * 400 / 399), rtol=1e-6, atol=0)


@each_library(["numpy", "torch", "jax_x64", "dask", "strict_CPU_DEVICE"])
def test_wider_statistics_take_all_digits(library: ArrayLibrary) -> None:
    """float64 running statistics are nearer to a float32 batch's own than float32 could be."""
    x = (1e4 + np.random.default_rng(3).normal(size=(1000, 4))).astype("float32")
    batch = an.moments(library.make(x), axis=0)
    zero, one = library.make(np.zeros(4)), library.make(np.ones(4))
    mean, var = [library.to_numpy(value) for value in an.update_running(zero, one, batch, momentum=1.0)]
    wide = x.astype("float64")
    assert (np.abs(mean - wide.mean(axis=0)) <= 4 * 2.0**-23).all()  # of the deviation, 1
    np.testing.assert_allclose(var, wide.var(axis=0, ddof=1), rtol=2e-6)


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.3, 0.9, 1.0])
@each_library(ONE_OF_EACH)
def test_statistics_that_are_there_stay(library: ArrayLibrary, momentum: float) -> None:
    """Batches that have the running statistics already leave them, bit by bit, at any momentum."""
    batch = an.moments(library.make(np.asarray([[999.7, 1e-3], [1000.9, 5e-3]], "float32")), axis=0)
    mean, var = batch.mean, batch.var(1)
    for _ in range(3):
        mean, var = an.update_running(mean, var, batch, momentum=momentum)
    assert library.to_numpy(mean).tolist() == library.to_numpy(batch.mean).tolist()
    assert library.to_numpy(var).tolist() == library.to_numpy(batch.var(1)).tolist()


@each_library(["numpy", "torch", "jax", "strict_CPU_DEVICE"])
def test_instances_far_from_0(library: ArrayLibrary) -> None:
    """The mean over samples of their means keeps more digits than each mean has."""
    from anynorm.layers._running import over_samples

    x = (1e6 + np.random.default_rng(5).normal(size=(500, 2, 9))).astype("float32")
    each = an.moments(library.make(x), axis=2)
    found = over_samples(each, (0,))
    assert found.rest is not None
    pair = library.to_numpy(found.mean).astype("float64") + library.to_numpy(found.rest.correction)
    wide = x.astype("float64")
    assert (np.abs(pair - wide.mean(axis=(0, 2))) <= 8 * 2.0**-23).all()  # of the deviation, 1
    np.testing.assert_allclose(library.to_numpy(found.var()), wide.var(axis=2).mean(axis=0), rtol=2e-6)
