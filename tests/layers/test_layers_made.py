"""How layers are made: first values, given arrays, what they show, and arguments or an x that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layer_cases import namespace_of
from libraries import ArrayLibrary, each_library

import anynorm as an


@pytest.mark.feature("layers")
@each_library(["numpy", "torch", "jax", "dask", "strict_CPU_DEVICE"])
def test_first_values(library: ArrayLibrary) -> None:
    """weight and running_var start as ones, bias and running_mean as zeros, counts as 0-d integers, where xp says."""
    layer = an.BatchNorm(3, xp=namespace_of(library))
    for name, value in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
        array = getattr(layer, name)
        assert type(array) is type(library.make(np.zeros(1, "float32")))
        assert library.to_numpy(array).dtype == np.float32
        assert library.to_numpy(array).tolist() == [value] * 3
    for count in (layer.num_batches_tracked, layer.num_batches_skipped):
        assert library.to_numpy(count).dtype == ("int32" if library.package == "jax" else "int64")
        assert library.to_numpy(count).shape == ()
        assert int(count) == 0
    assert (layer.training, layer.frozen) == (True, False)


def test_numpy_is_the_default() -> None:
    """Without xp, a layer's arrays are NumPy's, of float32."""
    layer = an.LayerNorm((2, 3))
    assert type(layer.weight) is type(layer.bias) is np.ndarray
    assert layer.weight.shape == layer.bias.shape == (2, 3)
    assert layer.weight.dtype == np.float32


def test_parameters_that_exist() -> None:
    """Weight and bias are there by torch's defaults, or as asked for, and None elsewhere."""
    found = {
        "layer": list(an.LayerNorm(3).params),
        "rms": list(an.RMSNorm(3).params),
        "rms-bias": list(an.RMSNorm(3, bias=True).params),
        "group": list(an.GroupNorm(1, 3).params),
        "instance": list(an.InstanceNorm(3).params),
        "batch": list(an.BatchNorm(3).params),
        "bias-alone": list(an.BatchNorm(3, weight=False).params),
    }
    both = ["weight", "bias"]
    assert found == {
        "layer": both,
        "rms": ["weight"],
        "rms-bias": both,
        "group": both,
        "instance": [],
        "batch": both,
        "bias-alone": ["bias"],
    }
    assert an.BatchNorm(3, weight=False).weight is None


@each_library(["torch", "jax", "strict_device1"])
def test_given_arrays(library: ArrayLibrary) -> None:
    """Given parameters are taken as they are, and everything else joins them: library, dtype and device."""
    weight = library.make(np.asarray([1.0, 2.0], "float32"))
    layer = an.BatchNorm(2, weight=weight)
    assert layer.weight is weight
    for array in (layer.bias, layer.running_mean, layer.running_var):
        assert type(array) is type(weight)
        assert array.dtype == weight.dtype
        assert array.device == weight.device
    assert layer.num_batches_tracked.device == weight.device


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: an.LayerNorm(0), ValueError, r"shape must be at least 1, got 0\. Pass a positive"),
        (lambda: an.LayerNorm(()), ValueError, "do not belong together"),
        (lambda: an.LayerNorm((2, 3), axis=1), ValueError, "do not belong together"),
        (lambda: an.LayerNorm((2, 3), axis=(1, 1)), ValueError, "do not belong together"),
        (lambda: an.LayerNorm(2.0), TypeError, "shape must be an integer"),  # type: ignore[arg-type]
        (lambda: an.LayerNorm(2, axis=1.0), TypeError, "axis must be an integer"),  # type: ignore[arg-type]
        (lambda: an.RMSNorm(3, eps=-1e-5), ValueError, "RMSNorm: eps must be 0 or a positive"),
        (lambda: an.RMSNorm(3, eps=float("nan")), ValueError, "eps must be 0 or a positive"),
        (lambda: an.RMSNorm(3, eps="1e-5"), TypeError, "eps must be a real number"),  # type: ignore[arg-type]
        (lambda: an.GroupNorm(4, 6), ValueError, "num_groups=4 does not divide num_channels=6"),
        (lambda: an.GroupNorm(0, 6), ValueError, "num_groups must be at least 1"),
        (lambda: an.GroupNorm(2, 6, batch_axis=(0, 1)), ValueError, "contains channel_axis=1"),
        (lambda: an.BatchNorm(True), TypeError, "num_features must be an integer"),
        (lambda: an.BatchNorm(-3), ValueError, "num_features must be at least 1"),
        (lambda: an.BatchNorm(3, momentum=1.5), ValueError, "weight of the new value"),
        (lambda: an.BatchNorm(3, momentum="0.1"), TypeError, "momentum must be a real"),  # type: ignore[arg-type]
        (lambda: an.BatchNorm(3, correction=-1), ValueError, "correction must be 0 or more"),
        (lambda: an.BatchNorm(3, track_running_stats=None), TypeError, "True or False"),  # type: ignore[arg-type]
        (lambda: an.BatchNorm(3, xp="torch"), TypeError, "pass the module itself"),  # type: ignore[arg-type]
        (lambda: an.BatchNorm(3, dtype="int32"), TypeError, "float16, bfloat16, float32, float64"),
        (lambda: an.BatchNorm(3, device="gpu"), ValueError, "numpy cannot place arrays on device='gpu'"),
        (lambda: an.BatchNorm(3, weight=np.ones(4)), ValueError, r"weight has shape \(4,\), .* Give one of"),
        (lambda: an.BatchNorm(3, weight=[1.0]), TypeError, "Pass e.g. weight=True, or numpy"),  # type: ignore[arg-type]
        (lambda: an.LayerNorm(3, bias=None), TypeError, "bias must be True or False"),  # type: ignore[arg-type]
        (lambda: an.BatchNorm(3, weight=np.ones(3, int)), TypeError, "real floating dtype"),
        (lambda: an.BatchNorm(3, weight=np.ones(3), dtype="float32"), ValueError, "weight has float64"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    """What is wrong with a layer's arguments is said when it is made."""
    with pytest.raises(error, match=words):
        make()


layers: Any = an  # made here with what its annotations forbid


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layers.BatchNorm(3, epsilon=0.1), "BatchNorm: epsilon is eps here."),
        (
            lambda: layers.BatchNorm(num_features=3, axis=-1),
            "BatchNorm: axis is channel_axis here, the one axis of the ch",
        ),
        (lambda: layers.BatchNorm(3, affine=False), "BatchNorm: affine=False is weight=False, bias=False here."),
        (lambda: layers.LayerNorm(3, scale=False), "LayerNorm: scale is weight here."),
        (
            lambda: layers.BatchNorm(3, use_running_average=True),
            "BatchNorm: unknown keyword use_running_average. A new la",
        ),
        (lambda: layers.LayerNorm(normalized_shape=3), "LayerNorm: normalized_shape is shape here."),
        (
            lambda: layers.RMSNorm(3, 1e-5),
            "RMSNorm: only shape can be given by position, got 2 arguments so. Give the oth",
        ),
        (
            lambda: layers.GroupNorm(3, 3, sorted=1),
            "GroupNorm: unknown keyword sorted. Leave out sorted, or give what ther",
        ),
    ],
)
def test_words_of_other_libraries(make: Callable[[], Any], words: str) -> None:
    """A layer answers keywords of another library's layers by its own, as the functions do."""
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value).startswith(words)
    own = an.BatchNorm(3, eps=0.1, channel_axis=-1, weight=False, bias=False)
    assert own.params == {}


def test_arguments_of_two_libraries() -> None:
    """Arrays of two libraries, an xp or a dtype that is another library's, are a TypeError."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(TypeError, match="weight is an array of numpy but bias is one of torch"):
        an.LayerNorm(3, weight=np.ones(3), bias=torch.ones(3))
    with pytest.raises(TypeError, match="xp names numpy, but weight has torch"):
        an.LayerNorm(3, weight=torch.ones(3), xp=np)
    with pytest.raises(TypeError, match="numpy's own dtype"):
        an.LayerNorm(3, dtype=torch.float32)
    with pytest.raises(ValueError, match="device names meta, but weight has cpu"):
        an.LayerNorm(3, weight=torch.ones(3), device="meta")
    with pytest.raises(TypeError, match=r"the layer holds arrays of numpy.*layer\.to\(torch\)"):
        an.BatchNorm(3)(torch.ones(2, 3))


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_dtypes_that_a_library_lacks() -> None:
    """float64 on JAX without 64 bits, or float16 on array-api-strict, is an error instead of another dtype."""
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    with pytest.raises(ValueError, match="array_api_strict has no float16"):
        an.LayerNorm(3, xp=strict, dtype="float16")
    with pytest.raises(ValueError, match="array_api_strict has no float64"):
        an.LayerNorm(3, xp=strict, dtype="float64", device=strict.Device("no_float64"))
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    with pytest.raises(ValueError, match=r"jax has no float64 here\. Set jax_enable_x64"):
        an.LayerNorm(3, xp=jnp, dtype="float64")


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (an.BatchNorm(4), r"BatchNorm: x of shape \(2, 3\) has 3 along axis 1, but the layer was made for 4"),
        (an.InstanceNorm(4), "has 3 along axis 1"),
        (an.GroupNorm(2, 4), "has 3 along axis 1"),
        (an.LayerNorm(4), "has 3 along axis -1"),
        (an.RMSNorm((1, 3)), r"has \(2, 3\) along axis \(-2, -1\), but the layer was made for \(1, 3\)"),
    ],
    ids=lambda tensor: type(tensor).__name__ if not isinstance(tensor, str) else "",
)
def test_x_of_other_lengths(layer: Any, words: str) -> None:
    """An x that the layer was not made for is a ValueError, also where nothing else would notice."""
    for call in (layer, layer.vjp):
        with pytest.raises(ValueError, match=words):
            call(np.ones((2, 3)))


def test_x_that_is_none() -> None:
    """What is no array, or has too few axes, is the same error as from the function."""
    with pytest.raises(TypeError, match="BatchNorm: x must be an array"):
        an.BatchNorm(3)([[1.0, 2.0, 3.0]])  # type: ignore[type-var]
    with pytest.raises(an.AxisError, match="channel_axis=1 is out of range"):
        an.BatchNorm(3)(np.ones(3))


def test_channels_elsewhere() -> None:
    """Where another axis has the layer's length, the error names it."""
    with pytest.raises(ValueError, match=r"Axis 3 has 6: if that is meant, name it when the layer is made"):
        an.BatchNorm(6)(np.ones((4, 5, 5, 6)))


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (an.BatchNorm(64), "BatchNorm(64, eps=1e-05, momentum=0.1)"),
        (an.BatchNorm(64, channel_axis=-1, bias=False), "BatchNorm(64, channel_axis=-1, eps=1e-05, momentum=0.1, bias"),
        (an.InstanceNorm(3, weight=np.ones(3)), "InstanceNorm(3, eps=1e-05, momentum=0.1, weight=True)"),
        (an.LayerNorm((2, 3), axis=(1, 2)), "LayerNorm((2, 3), axis=(1, 2), eps=1e-05)"),
        (an.RMSNorm(3), "RMSNorm((3,), eps=1e-06)"),
        (an.GroupNorm(2, 4, batch_axis=None), "GroupNorm(2, 4, batch_axis=None, eps=1e-05)"),
    ],
    ids=lambda tensor: type(tensor).__name__ if not isinstance(tensor, str) else "",
)
def test_repr(layer: Any, shown: str) -> None:
    """A layer shows what it was made with, as a call that makes its like."""
    assert repr(layer).startswith(shown)
    assert repr(eval(repr(layer), vars(an).copy())) == repr(layer)
