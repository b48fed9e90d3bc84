"""Copies of layers, pickles, and what `to` carries into other libraries, dtypes and devices."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layer_cases import CASES, batch, make_layer, namespace_of, ordered
from libraries import ArrayLibrary, each_library, each_library_and_dtype

import anynorm as an

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "to": lambda layer: layer.to(),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.feature("layers")
@each_library(["numpy", "torch", "jax", "dask", "strict_CPU_DEVICE"])
def test_copies(library: ArrayLibrary, duplicate: Callable[[Any], Any]) -> None:
    """A copy, a pickle and a moved layer go on alike, with statistics and a lock of their own."""
    layer = make_layer(CASES["batch-cumulative"], library, last=True)
    x = library.make(ordered(batch(0), last=True).astype("float32"))
    layer(x)
    layer.eval().freeze()
    other = duplicate(layer)
    assert (repr(other), other.training, other.frozen) == (repr(layer), False, True)
    before = {name: library.to_numpy(value).copy() for name, value in layer.state_dict().items()}
    np.testing.assert_array_equal(library.to_numpy(other(x)), library.to_numpy(layer(x)))
    assert other._lock is not layer._lock
    other.unfreeze().train()(x)
    assert (int(other.num_batches_tracked), int(layer.num_batches_tracked)) == (2, 1)
    for name, value in before.items():
        np.testing.assert_array_equal(library.to_numpy(layer.state_dict()[name]), value)


@pytest.mark.parametrize("name", ["deepcopy", "pickle", "to"])
def test_deep_copies_share_no_memory(name: str) -> None:
    """Writing into the arrays of a deep copy leaves the layer as it was."""
    layer = an.BatchNorm(3)
    other = COPIES[name](layer)
    for value in other.state_dict().values():
        value += 5
    assert layer.weight.tolist() == [1, 1, 1]
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert int(layer.num_batches_tracked) == 0


@each_library_and_dtype(["numpy", "torch", "jax", "dask", "strict_CPU_DEVICE", "strict_device1"])
def test_to_another_library(library: ArrayLibrary, dtype: str) -> None:
    """`to` carries every value, mode and count into any other library, and back."""
    layer = make_layer(CASES["instance-tracked"], library, last=False, dtype=dtype).eval()
    layer.num_batches_skipped = library.make(np.asarray(3))
    for name in ("numpy", "torch", "dask.array"):
        xp = pytest.importorskip(name)
        moved = layer.to(xp)
        assert type(moved) is type(layer)
        assert type(moved.weight) is type(xp.ones(1))
        assert not moved.training
        assert int(moved.num_batches_skipped) == 3
        back = moved.to(namespace_of(library))
        for key, value in layer.state_dict().items():
            assert back.state_dict()[key].dtype == value.dtype
            np.testing.assert_array_equal(library.to_numpy(back.state_dict()[key]), library.to_numpy(value))


def test_to_another_dtype_or_device() -> None:
    """`to` casts parameters and statistics but no counts, and moves to a device of the same library."""
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    layer = an.BatchNorm(3).to(dtype="float64")
    assert layer.weight.dtype == layer.running_var.dtype == np.float64
    assert layer.num_batches_tracked.dtype == np.int64
    moved = layer.to(strict, device=strict.Device("no_x64"), dtype="float32")
    for value in moved.state_dict().values():
        assert value.device == strict.Device("no_x64")
    assert moved.num_batches_tracked.dtype == strict.int32
    assert moved.to(device=strict.Device("device1")).bias.device == strict.Device("device1")
    with pytest.raises(ValueError, match="array_api_strict has no float64"):
        moved.to(dtype="float64", device=strict.Device("no_x64"))
    with pytest.raises(TypeError, match="pass the module itself"):
        layer.to("torch")  # type: ignore[arg-type]
    assert an.InstanceNorm(3).to(strict).params == {}


def test_to_keeps_what_torch_trains() -> None:
    """Copies of torch's parameters require a gradient where these do, and belong to no graph."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = an.LayerNorm(3, weight=torch.ones(3, requires_grad=True), bias=torch.zeros(3))
    for moved in (layer.to(), layer.to(dtype=torch.float64)):
        assert (moved.weight.requires_grad, moved.bias.requires_grad) == (True, False)
        assert moved.weight.is_leaf
    layer.load_state_dict({"weight": np.ones(3), "bias": np.ones(3)})
    assert layer.weight.requires_grad
