"""Layers as objects: what they compute beside the functions and torch's modules, modes, parameters, copies and errors.

Running statistics in detail are test_layer_batch_norm.py's, states and files test_layer_state.py's.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from libraries import ArrayLibrary, NumPyArray, each_library, each_library_and_dtype, numpy_dtype

import anynorm as an

SHAPE = (4, 6, 5, 3)  # N, C, H, W


class Case(NamedTuple):
    """A layer in one of its settings, the function it calls in training, and torch's module of the same meaning."""

    last: int | tuple[int, ...]  # channel_axis, or axis, for (N, H, W, C)
    make: Callable[..., Any]
    function: Callable[[Any, Any, Any], Any]  # of the layer, x and the axis
    module: Callable[[Any], Any]  # of torch


CASES = {
    "layer": Case(
        (1, 2, 3),
        lambda axis, **home: an.LayerNorm(_lengths(axis), axis=axis, **home),
        lambda layer, x, axis: an.layer_norm(x, layer.weight, layer.bias, axis=axis),
        lambda torch: torch.nn.LayerNorm(SHAPE[1:]),
    ),
    "layer-channels": Case(
        -1,
        lambda axis, **home: an.LayerNorm(6, axis=axis, eps=1e-3, **home),
        lambda layer, x, axis: an.layer_norm(x, layer.weight, layer.bias, axis=axis, eps=1e-3),
        lambda torch: _over_channels(torch, torch.nn.LayerNorm(6, eps=1e-3)),
    ),
    "rms-channels": Case(
        -1,
        lambda axis, **home: an.RMSNorm(6, axis=axis, **home),
        lambda layer, x, axis: an.rms_norm(x, layer.weight, axis=axis),
        lambda torch: _over_channels(torch, torch.nn.RMSNorm(6, eps=1e-6)),
    ),
    "group": Case(
        -1,
        lambda axis, **home: an.GroupNorm(3, 6, channel_axis=axis, **home),
        lambda layer, x, axis: an.group_norm(x, 3, layer.weight, layer.bias, channel_axis=axis),
        lambda torch: torch.nn.GroupNorm(3, 6),
    ),
    "instance": Case(
        -1,
        lambda axis, **home: an.InstanceNorm(6, channel_axis=axis, **home),
        lambda _, x, axis: an.instance_norm(x, channel_axis=axis),
        lambda torch: torch.nn.InstanceNorm2d(6),
    ),
    "instance-tracked": Case(
        -1,
        lambda axis, **home: an.InstanceNorm(
            6, channel_axis=axis, weight=True, bias=True, track_running_stats=True, momentum=0.3, **home
        ),
        lambda layer, x, axis: an.instance_norm(x, weight=layer.weight, bias=layer.bias, channel_axis=axis),
        lambda torch: torch.nn.InstanceNorm2d(6, affine=True, track_running_stats=True, momentum=0.3),
    ),
    "batch": Case(
        -1,
        lambda axis, **home: an.BatchNorm(6, channel_axis=axis, **home),
        lambda layer, x, axis: an.batch_norm(x, weight=layer.weight, bias=layer.bias, channel_axis=axis),
        lambda torch: torch.nn.BatchNorm2d(6),
    ),
    "batch-cumulative": Case(
        -1,
        lambda axis, **home: an.BatchNorm(6, channel_axis=axis, momentum=None, eps=1e-3, **home),
        lambda layer, x, axis: an.batch_norm(x, weight=layer.weight, bias=layer.bias, channel_axis=axis, eps=1e-3),
        lambda torch: torch.nn.BatchNorm2d(6, momentum=None, eps=1e-3),
    ),
    "batch-untracked": Case(
        -1,
        lambda axis, **home: an.BatchNorm(6, channel_axis=axis, track_running_stats=False, weight=False, **home),
        lambda layer, x, axis: an.batch_norm(x, bias=layer.bias, channel_axis=axis),
        lambda torch: torch.nn.BatchNorm2d(6, track_running_stats=False),
    ),
}

# Libraries by how long a step takes, and the cases that the slow ones run.
QUICK, SLOW = ("numpy", "torch"), ("jax", "dask", "strict_device1")
FOUR = ("layer", "rms-channels", "group", "instance-tracked")

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _lengths(axis: tuple[int, ...]) -> tuple[int, ...]:
    return SHAPE[1:] if axis == (-3, -2, -1) else (*SHAPE[2:], SHAPE[1])


def _over_channels(torch: Any, module: Any) -> Any:
    """Return torch's module, which normalizes over the last axis, for channels first."""

    class OverChannels(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.weight = module.weight
            self.bias = getattr(module, "bias", None)

        def forward(self, x: Any) -> Any:
            return module(x.movedim(1, -1)).movedim(-1, 1)

    return OverChannels()


def _axis(case: Case, last: bool) -> Any:
    """Return the axis argument for either order of axes."""
    if isinstance(case.last, tuple):
        return case.last if last else (-3, -2, -1)
    return -1 if last else 1


def _ordered(array: NumPyArray, last: bool) -> NumPyArray:
    """Return an (N, C, H, W) array, or the lengths and the weight of layer norm's (C, H, W), in the wanted order."""
    return np.moveaxis(array, -3, -1) if last and array.ndim > 2 else array


def _make(case: Case, library: ArrayLibrary, last: bool, dtype: str = "float32", seed: int = 0) -> Any:
    """Return a layer whose parameters and statistics are those of a model in the midst of training."""
    layer = case.make(_axis(case, last), weight=True) if case is CASES["layer"] else case.make(_axis(case, last))
    rng = np.random.default_rng(seed)
    state = {}
    for name, its in layer.state_dict().items():
        if name == "num_batches_tracked":
            state[name] = library.make(np.asarray(its))
            continue
        values = rng.uniform(0.5, 1.5, (6, *SHAPE[2:]) if its.ndim == 3 else 6).astype(numpy_dtype(dtype))
        state[name] = library.make(np.ascontiguousarray(_ordered(values, last)))
    layer.params = {name: state[name] for name in layer.params}
    for name in set(state) - set(layer.params):
        setattr(layer, name, state[name])
    if "running_mean" in state:
        layer.num_batches_skipped = library.make(np.asarray(layer.num_batches_skipped))
    return layer


def _batch(step: int, samples: int = 4) -> NumPyArray:
    return np.random.default_rng(100 + step).normal(1.0, 2.0, (samples, *SHAPE[1:]))


def _close(found: Any, exact: Any, library: ArrayLibrary, dtype: str, roundings: int) -> None:
    """Raise unless within so many roundings of the largest value."""
    got = library.to_numpy(found).astype("float64")
    exact = np.asarray(exact, "float64")
    assert got.shape == exact.shape
    bound = roundings * float(np.finfo(dtype).eps) * max(1.0, float(abs(exact).max(initial=0)))
    assert abs(got - exact).max(initial=0) <= bound


@pytest.mark.parametrize(
    ("library", "case"),
    [
        *[pytest.param(library, case, id=f"{library}-{name}") for library in QUICK for name, case in CASES.items()],
        *[pytest.param(library, CASES[name], id=f"{library}-{name}") for library in SLOW for name in FOUR],
    ],
    indirect=["library"],
)
def test_a_layer_is_its_function(library: ArrayLibrary, case: Case) -> None:
    """A call, and vjp, give bit for bit what the function gives; the gradients have the names of the parameters."""
    last = library.name in ("numpy", "jax")
    layer, axis = _make(case, library, last), _axis(case, last)
    x, dy = [library.make(_ordered(_batch(step), last).astype("float32")) for step in (0, 1)]
    y = layer(x, update=False)
    again, pullback = layer.vjp(x, update=False)
    dx, grads = pullback(dy)
    expected = library.to_numpy(case.function(layer, x, axis))
    for its in (y, again):
        np.testing.assert_array_equal(library.to_numpy(its), expected)
    assert type(dx) is type(x)
    assert set(grads) == set(layer.params)
    for name, its in grads.items():
        assert type(its) is type(getattr(layer, name))
        assert tuple(its.shape) == tuple(getattr(layer, name).shape)
        assert its.dtype == getattr(layer, name).dtype


def _torch_step(module: Any, torch: Any, mode: str, x: NumPyArray, dy: NumPyArray) -> tuple[Any, Any, dict[str, Any]]:
    """Return torch's y, dx and gradients by name; `freeze` is torch's recipe for it."""
    module.train(mode == "train")
    for parameter in module.parameters():
        parameter.requires_grad_(mode != "freeze")
        parameter.grad = None
    tensor = torch.tensor(x, requires_grad=True)
    y = module(tensor)
    y.backward(torch.tensor(dy))
    named = {name: its.grad.numpy() for name, its in module.named_parameters() if its.grad is not None}
    return y.detach().numpy(), tensor.grad.numpy(), named


def _our_step(layer: Any, library: ArrayLibrary, mode: str, x: NumPyArray, dy: NumPyArray) -> Any:
    """Return the layer's y, dx and gradients by name."""
    layer.unfreeze().train(mode == "train")
    if mode == "freeze":
        layer.train().freeze()
    y, pullback = layer.vjp(library.make(x))
    dx, grads = pullback(library.make(dy))
    return y, dx, grads


MODES = ["train"] * 4 + ["eval", "train", "freeze", "freeze", "train", "eval", "eval", "train", "train", "freeze"]
MODES += ["eval", "train", "train", "train", "freeze", "train"]


# Everything on NumPy; elsewhere, where a step takes long, what differs there.
TWENTY = [("numpy", "float64", name, last) for name in CASES for last in (False, True)]
TWENTY += [("numpy", "float32", name, True) for name in CASES]
TWENTY += [("torch", "float32", name, True) for name in ("layer", "instance-tracked", "batch")]
TWENTY += [(library, "float64", "batch-cumulative", True) for library in ("torch", "jax_x64", "strict_CPU_DEVICE")]
TWENTY += [("strict_CPU_DEVICE", "float64", "instance-tracked", False)]


@pytest.mark.parametrize(
    ("library", "dtype", "case", "last"),
    [
        pytest.param(*of, CASES[name], last, id="-".join([*of, name, "channels-last" if last else "channels-first"]))
        for *of, name, last in TWENTY
    ],
    indirect=["library"],
)
def test_twenty_mixed_steps_beside_torch(library: ArrayLibrary, dtype: str, case: Case, last: bool) -> None:
    """Training, evaluation and freezing, with gradient descent between, go as torch.nn's modules do in float64."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer, module = _make(case, library, last, dtype), case.module(torch).double()
    ours = {name: library.to_numpy(its) for name, its in layer.state_dict().items()}
    module.load_state_dict({n: torch.tensor(_back(its, last)) for n, its in ours.items()}, strict="weight" in ours)
    if "weight" not in ours and getattr(module, "weight", None) is not None:
        torch.nn.init.ones_(module.weight)  # batch-untracked: a bias alone, which torch does not have
    for step, mode in enumerate(MODES):
        x = _batch(step, samples=2 + step % 2).astype(dtype)
        dy = _batch(-1 - step, samples=2 + step % 2).astype(dtype)
        exact = _torch_step(module, torch, mode, x.astype("float64"), dy.astype("float64"))
        found = _our_step(layer, library, mode, _ordered(x, last), _ordered(dy, last))
        roundings = 64 * (step + 1)
        for got, want in zip(found[:2], exact[:2], strict=True):
            _close(got, _ordered(want, last), library, dtype, roundings)
        wanted = {name: its for name, its in exact[2].items() if name in ours}
        assert set(found[2]) == set(wanted)
        for name, want in wanted.items():
            _close(found[2][name], _ordered(want, last), library, dtype, roundings)
            rate = library.make(np.asarray(0.01, dtype))
            setattr(layer, name, getattr(layer, name) - rate * found[2][name])
            with torch.no_grad():
                getattr(module, name).sub_(0.01 * torch.tensor(want))
        _same_statistics(layer, module, library, dtype, roundings)


def _back(array: NumPyArray, last: bool) -> NumPyArray:
    """Return an array in torch's order, in float64 where it is not a count."""
    if last and array.ndim == 3:
        array = np.moveaxis(array, -1, 0)
    return np.ascontiguousarray(array).astype("float64" if array.dtype.kind != "i" else "int64")


def _same_statistics(layer: Any, module: Any, library: ArrayLibrary, dtype: str, roundings: int) -> None:
    """Raise unless the running statistics are torch's."""
    if getattr(module, "running_mean", None) is None:
        assert "running_mean" not in layer.state_dict()
        return
    _close(layer.running_mean, module.running_mean, library, dtype, roundings)
    _close(layer.running_var, module.running_var, library, dtype, roundings)
    assert int(layer.num_batches_skipped) == 0
    # torch's instance norm has the count in its state and never counts.
    if isinstance(layer, an.BatchNorm):
        assert int(layer.num_batches_tracked) == int(module.num_batches_tracked)


@each_library_and_dtype(["numpy", "torch", "jax"], ["float16", "bfloat16", "float32"])
def test_dtypes(library: ArrayLibrary, dtype: str) -> None:
    """A layer of any dtype normalizes x of any other: y has x's dtype, gradients the parameters'."""
    layer = an.BatchNorm(3, dtype=dtype)
    assert layer.weight.dtype == layer.running_var.dtype == numpy_dtype(dtype)
    layer = layer.to(_namespace(library))
    for other in dict.fromkeys((dtype, "float32")):
        x = library.make(np.random.default_rng(0).normal(size=(4, 3)).astype(numpy_dtype(other)))
        y, pullback = layer.vjp(x)
        dx, grads = pullback(y)
        assert y.dtype == dx.dtype == x.dtype
        assert grads["weight"].dtype == layer.running_mean.dtype == layer.weight.dtype
        assert library.to_numpy(layer.weight).dtype.name == dtype


def _namespace(library: ArrayLibrary) -> Any:
    if library.package == "dask":
        return pytest.importorskip("dask.array")
    return pytest.importorskip("jax.numpy" if library.package == "jax" else library.package)


@pytest.mark.feature("layers")
@each_library(["numpy", "torch", "jax", "dask", "strict_CPU_DEVICE"])
def test_first_values(library: ArrayLibrary) -> None:
    """weight and running_var start as ones, bias and running_mean as zeros, counts as 0-d integers, where xp says."""
    layer = an.BatchNorm(3, xp=_namespace(library))
    for name, value in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
        its = getattr(layer, name)
        assert type(its) is type(library.make(np.zeros(1, "float32")))
        assert library.to_numpy(its).dtype == np.float32
        assert library.to_numpy(its).tolist() == [value] * 3
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
    for its in (layer.bias, layer.running_mean, layer.running_var):
        assert type(its) is type(weight)
        assert its.dtype == weight.dtype
        assert its.device == weight.device
    assert layer.num_batches_tracked.device == weight.device


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: an.LayerNorm(0), ValueError, "shape must be at least 1"),
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
        (lambda: an.BatchNorm(3, xp="torch"), TypeError, "pass the module itself"),
        (lambda: an.BatchNorm(3, dtype="int32"), TypeError, "float16, bfloat16, float32, float64"),
        (lambda: an.BatchNorm(3, device="gpu"), ValueError, "numpy cannot place arrays on device='gpu'"),
        (lambda: an.BatchNorm(3, weight=np.ones(4)), ValueError, r"weight has shape \(4,\)"),
        (lambda: an.BatchNorm(3, weight=[1.0]), TypeError, "weight must be an array"),  # type: ignore[arg-type]
        (lambda: an.BatchNorm(3, weight=np.ones(3, int)), TypeError, "real floating dtype"),
        (lambda: an.BatchNorm(3, weight=np.ones(3), dtype="float32"), ValueError, "weight has float64"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    """What is wrong with a layer's arguments is said when it is made."""
    with pytest.raises(error, match=words):
        make()


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
    ids=lambda its: type(its).__name__ if not isinstance(its, str) else "",
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


def test_params() -> None:
    """Params is a new dict each time; it takes exactly its own names and shapes, all or none."""
    layer = an.LayerNorm(2)
    layer.params["weight"] = None
    before = layer.params
    assert before["weight"] is layer.weight
    good = np.asarray([3.0, 4.0])
    for bad in ({"weight": good}, {"weight": good, "bias": good, "scale": good}):
        with pytest.raises(ValueError, match="must have the names"):
            layer.params = bad
    with pytest.raises(ValueError, match=r"bias has shape \(3,\)"):
        layer.params = {"weight": good, "bias": np.ones(3)}
    with pytest.raises(TypeError, match="bias must be an array"):
        layer.params = {"weight": good, "bias": 1.0}
    with pytest.raises(TypeError, match="params must be a dict"):
        layer.params = [good, good]  # type: ignore[assignment, unused-ignore]
    assert all(layer.params[name] is its for name, its in before.items())
    layer.params = {"bias": good, "weight": good + 1}
    assert layer.bias is good
    assert layer.weight.tolist() == [4, 5]


@each_case
def test_frozen_until_unfrozen(case: Case) -> None:
    """While frozen, a layer has no params and no gradients but dx, and learns nothing, whatever its mode."""
    layer = case.make(_axis(case, last=False))
    names, x = list(layer.params), _batch(0)
    before = {name: its.copy() for name, its in layer.state_dict().items()}
    assert layer.freeze() is layer
    for mode in (True, False, True):
        _, pullback = layer.train(mode).vjp(x)
        dx, grads = pullback(x)
        assert (layer.frozen, layer.training) == (True, mode)
        assert grads == layer.params == {}
        assert dx.shape == x.shape
    assert all((layer.state_dict()[name] == its).all() for name, its in before.items())
    assert list(layer.unfreeze().params) == names
    assert list(layer.vjp(x)[1](x)[1]) == names


def test_modes() -> None:
    """Train and eval set the mode and return the layer; anything but a bool is a TypeError."""
    layer = an.BatchNorm(3)
    assert layer.eval() is layer
    assert not layer.training
    assert layer.train() is layer
    assert layer.training
    with pytest.raises(TypeError, match="train takes True or False"):
        layer.train("eval")


@each_case
def test_several_forwards_before_a_backward(case: Case) -> None:
    """Each pullback belongs to its own forward pass, whatever happens to the layer in between."""
    layer = case.make(_axis(case, last=False))
    first, second, dy = _batch(0), _batch(1), _batch(2)
    _, alone = layer.vjp(first)
    expected = alone(dy)
    _, pull_first = layer.vjp(first)
    _, pull_second = layer.vjp(second)
    layer.params = {name: its * 7 for name, its in layer.params.items()}
    layer.eval()(second)
    layer.freeze()
    pull_second(dy)
    for _ in range(2):
        dx, grads = pull_first(dy)
        np.testing.assert_array_equal(dx, expected[0])
        assert list(grads) == list(expected[1])
        for name, its in grads.items():
            np.testing.assert_array_equal(its, expected[1][name])


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
    layer = _make(CASES["batch-cumulative"], library, last=True)
    x = library.make(_ordered(_batch(0), last=True).astype("float32"))
    layer(x)
    layer.eval().freeze()
    other = duplicate(layer)
    assert (repr(other), other.training, other.frozen) == (repr(layer), False, True)
    before = {name: library.to_numpy(its).copy() for name, its in layer.state_dict().items()}
    np.testing.assert_array_equal(library.to_numpy(other(x)), library.to_numpy(layer(x)))
    assert other._lock is not layer._lock
    other.unfreeze().train()(x)
    assert (int(other.num_batches_tracked), int(layer.num_batches_tracked)) == (2, 1)
    for name, its in before.items():
        np.testing.assert_array_equal(library.to_numpy(layer.state_dict()[name]), its)


@pytest.mark.parametrize("name", ["deepcopy", "pickle", "to"])
def test_deep_copies_share_no_memory(name: str) -> None:
    """Writing into the arrays of a deep copy leaves the layer as it was."""
    layer = an.BatchNorm(3)
    other = COPIES[name](layer)
    for its in other.state_dict().values():
        its += 5
    assert layer.weight.tolist() == [1, 1, 1]
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert int(layer.num_batches_tracked) == 0


@each_library_and_dtype(["numpy", "torch", "jax", "dask", "strict_CPU_DEVICE", "strict_device1"])
def test_to_another_library(library: ArrayLibrary, dtype: str) -> None:
    """`to` carries every value, mode and count into any other library, and back."""
    layer = _make(CASES["instance-tracked"], library, last=False, dtype=dtype).eval()
    layer.num_batches_skipped = library.make(np.asarray(3))
    for name in ("numpy", "torch", "dask.array"):
        xp = pytest.importorskip(name)
        moved = layer.to(xp)
        assert type(moved) is type(layer)
        assert type(moved.weight) is type(xp.ones(1))
        assert not moved.training
        assert int(moved.num_batches_skipped) == 3
        back = moved.to(_namespace(library))
        for key, its in layer.state_dict().items():
            assert back.state_dict()[key].dtype == its.dtype
            np.testing.assert_array_equal(library.to_numpy(back.state_dict()[key]), library.to_numpy(its))


def test_to_another_dtype_or_device() -> None:
    """`to` casts parameters and statistics but no counts, and moves to a device of the same library."""
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    layer = an.BatchNorm(3).to(dtype="float64")
    assert layer.weight.dtype == layer.running_var.dtype == np.float64
    assert layer.num_batches_tracked.dtype == np.int64
    moved = layer.to(strict, device=strict.Device("no_x64"), dtype="float32")
    for its in moved.state_dict().values():
        assert its.device == strict.Device("no_x64")
    assert moved.num_batches_tracked.dtype == strict.int32
    assert moved.to(device=strict.Device("device1")).bias.device == strict.Device("device1")
    with pytest.raises(ValueError, match="array_api_strict has no float64"):
        moved.to(dtype="float64", device=strict.Device("no_x64"))
    with pytest.raises(TypeError, match="pass the module itself"):
        layer.to("torch")
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
    ids=lambda its: type(its).__name__ if not isinstance(its, str) else "",
)
def test_repr(layer: Any, shown: str) -> None:
    """A layer shows what it was made with, as a call that makes its like."""
    assert repr(layer).startswith(shown)
    assert repr(eval(repr(layer), vars(an).copy())) == repr(layer)


def test_autograd_goes_through_a_layer() -> None:
    """On torch tensors that require a gradient, a layer is differentiated as its function is, and learns constants."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = an.BatchNorm(3, weight=torch.ones(3, requires_grad=True))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, pullback = layer.vjp(x)
    (y * y).sum().backward()
    dx, grads = pullback(2 * y.detach())
    torch.testing.assert_close(x.grad, dx)
    torch.testing.assert_close(layer.weight.grad, grads["weight"])
    assert not layer.running_mean.requires_grad


def test_frozen_is_constant_to_automatic_differentiation() -> None:
    """torch derives no gradient of a frozen layer's parameters, and JAX zeros."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    jax: Any = pytest.importorskip("jax", reason="jax is not installed")
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    weight = torch.ones(3, requires_grad=True)
    layer = an.LayerNorm(3, weight=weight, bias=torch.zeros(3)).freeze()
    assert not layer(torch.from_numpy(x)).requires_grad
    slopes = jax.grad(lambda layer: (layer(jax.numpy.asarray(x)) ** 3).sum())
    frozen = slopes(an.LayerNorm(3, xp=jax.numpy).freeze())
    np.testing.assert_array_equal(frozen.weight, 0)
    assert np.abs(slopes(an.LayerNorm(3, xp=jax.numpy)).weight).max() > 0


def test_channels_elsewhere() -> None:
    """Where another axis has the layer's length, the error speaks of channel_axis."""
    with pytest.raises(ValueError, match=r"If 6 is another axis of x, .* -1 for channels last"):
        an.BatchNorm(6)(np.ones((4, 5, 5, 6)))
