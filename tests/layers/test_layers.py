"""Layers as objects: what they compute beside the functions and torch's modules, modes, parameters, gradients.

Running statistics in detail are test_layer_batch_norm.py's, states and files test_layer_state.py's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from layer_cases import CASES, Case, axis_of, batch, each_case, make_layer, namespace_of, ordered
from libraries import ArrayLibrary, NumPyArray, each_library_and_dtype, numpy_dtype

import anynorm as an

# Libraries by how long a step takes, and the cases that the slow ones run.
QUICK, SLOW = ("numpy", "torch"), ("jax", "dask", "strict_device1")
FOUR = ("layer", "rms-channels", "group", "instance-tracked")


def _close(found: Any, exact: Any, library: ArrayLibrary, dtype: str, roundings: int) -> None:
    """Raise unless within so many roundings of the largest value."""
    got = library.to_numpy(found).astype("float64")
    exact = np.asarray(exact, "float64")
    assert got.shape == exact.shape
    bound = roundings * float(np.finfo(dtype).eps) * max(1.0, float(abs(exact).max(initial=0)))
    assert abs(got - exact).max(initial=0) <= bound


@pytest.mark.quick
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
    layer, axis = make_layer(case, library, last), axis_of(case, last)
    x, dy = [library.make(ordered(batch(step), last).astype("float32")) for step in (0, 1)]
    y = layer(x, update=False)
    again, pullback = layer.vjp(x, update=False)
    dx, grads = pullback(dy)
    expected = library.to_numpy(case.function(layer, x, axis))
    for tensor in (y, again):
        np.testing.assert_array_equal(library.to_numpy(tensor), expected)
    assert type(dx) is type(x)
    assert set(grads) == set(layer.params)
    for name, tensor in grads.items():
        assert type(tensor) is type(getattr(layer, name))
        assert tuple(tensor.shape) == tuple(getattr(layer, name).shape)
        assert tensor.dtype == getattr(layer, name).dtype


def _torch_step(module: Any, torch: Any, mode: str, x: NumPyArray, dy: NumPyArray) -> tuple[Any, Any, dict[str, Any]]:
    """Return torch's y, dx and gradients by name; `freeze` is torch's recipe for it."""
    module.train(mode == "train")
    for parameter in module.parameters():
        parameter.requires_grad_(mode != "freeze")
        parameter.grad = None
    tensor = torch.tensor(x, requires_grad=True)
    y = module(tensor)
    y.backward(torch.tensor(dy))
    named = {
        name: named_parameter.grad.numpy()
        for name, named_parameter in module.named_parameters()
        if named_parameter.grad is not None
    }
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
    layer, module = make_layer(case, library, last, dtype), case.module(torch).double()
    ours = {name: library.to_numpy(value) for name, value in layer.state_dict().items()}
    module.load_state_dict({n: torch.tensor(_back(our, last)) for n, our in ours.items()}, strict="weight" in ours)
    if "weight" not in ours and getattr(module, "weight", None) is not None:
        torch.nn.init.ones_(module.weight)  # batch-untracked: a bias alone, which torch does not have
    for step, mode in enumerate(MODES):
        x = batch(step, samples=2 + step % 2).astype(dtype)
        dy = batch(-1 - step, samples=2 + step % 2).astype(dtype)
        exact = _torch_step(module, torch, mode, x.astype("float64"), dy.astype("float64"))
        found = _our_step(layer, library, mode, ordered(x, last), ordered(dy, last))
        roundings = 64 * (step + 1)
        for got, want in zip(found[:2], exact[:2], strict=True):
            _close(got, ordered(want, last), library, dtype, roundings)
        wanted = {name: value for name, value in exact[2].items() if name in ours}
        assert set(found[2]) == set(wanted)
        for name, want in wanted.items():
            _close(found[2][name], ordered(want, last), library, dtype, roundings)
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
    layer = layer.to(namespace_of(library))
    for other in dict.fromkeys((dtype, "float32")):
        x = library.make(np.random.default_rng(0).normal(size=(4, 3)).astype(numpy_dtype(other)))
        y, pullback = layer.vjp(x)
        dx, grads = pullback(y)
        assert y.dtype == dx.dtype == x.dtype
        assert grads["weight"].dtype == layer.running_mean.dtype == layer.weight.dtype
        assert library.to_numpy(layer.weight).dtype.name == dtype


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
    with pytest.raises(TypeError, match=r"got 2.0 of type float\. Pass|Convert it first, e\.g\. numpy\.asarray\(bias"):
        layer.params = {"weight": good, "bias": 2.0}
    assert all(layer.params[name] is value for name, value in before.items())
    layer.params = {"bias": good, "weight": good + 1}
    assert layer.bias is good
    assert layer.weight.tolist() == [4, 5]


@each_case
def test_frozen_until_unfrozen(case: Case) -> None:
    """While frozen, a layer has no params and no gradients but dx, and learns nothing, whatever its mode."""
    layer = case.make(axis_of(case, last=False))
    names, x = list(layer.params), batch(0)
    before = {name: value.copy() for name, value in layer.state_dict().items()}
    assert layer.freeze() is layer
    for mode in (True, False, True):
        _, pullback = layer.train(mode).vjp(x)
        dx, grads = pullback(x)
        assert (layer.frozen, layer.training) == (True, mode)
        assert grads == layer.params == {}
        assert dx.shape == x.shape
    assert all((layer.state_dict()[name] == value).all() for name, value in before.items())
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
    layer = case.make(axis_of(case, last=False))
    first, second, dy = batch(0), batch(1), batch(2)
    _, alone = layer.vjp(first)
    expected = alone(dy)
    _, pull_first = layer.vjp(first)
    _, pull_second = layer.vjp(second)
    layer.params = {name: parameter * 7 for name, parameter in layer.params.items()}
    layer.eval()(second)
    layer.freeze()
    pull_second(dy)
    for _ in range(2):
        dx, grads = pull_first(dy)
        np.testing.assert_array_equal(dx, expected[0])
        assert list(grads) == list(expected[1])
        for name, grad in grads.items():
            np.testing.assert_array_equal(grad, expected[1][name])


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
