"""Layers in JAX programs: as pytrees, under jit, in Equinox modules, and where a tracer would stay behind."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anynorm as an

jax: Any = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy

LAYERS: dict[str, Any] = {
    "layer": lambda: an.LayerNorm((3, 4), xp=jnp),
    "rms": lambda: an.RMSNorm(4, xp=jnp),
    "group": lambda: an.GroupNorm(3, 3, xp=jnp),
    "instance": lambda: an.InstanceNorm(3, xp=jnp),
    "instance-tracked": lambda: an.InstanceNorm(3, weight=True, track_running_stats=True, xp=jnp),
    "batch": lambda: an.BatchNorm(3, xp=jnp),
    "batch-untracked": lambda: an.BatchNorm(3, track_running_stats=False, bias=False, xp=jnp),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
STATISTICS = ["running_mean", "running_var", "num_batches_tracked", "num_batches_skipped"]


def _x(seed: int = 0, samples: int = 5) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(1.0, 2.0, (samples, 3, 4)).astype("float32"))


@each_layer
def test_round_trip(make: Any) -> None:
    """Flattening gives the arrays by name; unflattening gives back a layer that does the same."""
    layer = make().eval().freeze()
    paths, tree = jax.tree_util.tree_flatten_with_path(layer)
    arrays = layer._arrays()
    assert {path[-1].name: value for path, value in paths} == arrays
    leaves, same = jax.tree.flatten(layer)
    assert tree == same
    again = jax.tree.unflatten(tree, leaves)
    assert type(again) is type(layer)
    assert (repr(again), again.training, again.frozen) == (repr(layer), False, True)
    assert all(again._arrays()[name] is tensor for name, tensor in arrays.items())
    assert again.unfreeze().train() is again  # its lock and modes are there
    assert (layer.training, layer.frozen) == (False, True)
    again(_x())


@each_layer
def test_leaves_may_be_anything(make: Any) -> None:
    """JAX puts objects, None and tracers in place of arrays; the shape of the tree stays what it was."""
    layer = make()
    leaves = jax.tree.leaves(layer)
    for stand_in in (object(), "leaf", jax.ShapeDtypeStruct((2,), jnp.float32)):
        assert jax.tree.leaves(jax.tree.map(lambda _, tensor=stand_in: tensor, layer)) == [stand_in] * len(leaves)
    hollow = jax.tree.map(lambda _: None, layer)
    shapes = [jax.tree.structure(value, is_leaf=lambda leaf: leaf is None) for value in (hollow, layer)]
    assert shapes[0] == shapes[1]
    assert jax.tree.leaves(hollow) == []


def test_map() -> None:
    """jax.tree.map reaches parameters and statistics, and leaves the rest."""
    layer = an.BatchNorm(3, momentum=None, xp=jnp)
    doubled = jax.tree.map(lambda tensor: 2 * tensor, layer)
    assert doubled.weight.tolist() == doubled.running_var.tolist() == [2, 2, 2]
    assert repr(doubled) == repr(layer)
    assert jax.tree.structure(doubled) == jax.tree.structure(layer)


def test_the_tree_tells_layers_apart() -> None:
    """What is not an array is part of the tree's structure, which can be hashed: another mode compiles anew."""
    layer = an.BatchNorm(3, xp=jnp)
    structure = jax.tree.structure(layer)
    assert hash(structure) == hash(jax.tree.structure(copy.deepcopy(layer)))
    assert structure != jax.tree.structure(copy.deepcopy(layer).eval())
    assert structure != jax.tree.structure(copy.deepcopy(layer).freeze())
    assert structure != jax.tree.structure(an.BatchNorm(3, eps=1e-3, xp=jnp))


@each_layer
def test_evaluation_under_jit(make: Any) -> None:
    """A layer in evaluation is an argument of a jitted function like any other, and may be returned from it."""
    layer = make().eval()
    x = _x()
    y, same = jax.jit(lambda layer, x: (layer(x), layer))(layer, x)
    np.testing.assert_allclose(y, layer(x), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(same) == jax.tree.structure(layer)


@pytest.mark.parametrize("name", ["rms", "batch"])
def test_gradients_under_jit(name: str) -> None:
    """jax.grad through a layer under jit gives what the layer's own pullback gives."""
    layer, x = LAYERS[name]().eval(), _x()
    slope: Any = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(layer(x)))))
    dx = slope(x)
    y, pullback = layer.vjp(x)
    np.testing.assert_allclose(dx, pullback(jnp.cos(y))[0], rtol=1e-4, atol=1e-5)


def test_one_compilation_for_layers_of_a_kind() -> None:
    """Layers of equal settings share what was compiled."""
    traces = []

    def predict(layer: Any, x: Any) -> Any:
        traces.append(1)
        return layer(x)

    compiled = jax.jit(predict)
    for seed in range(3):
        layer = an.BatchNorm(3, xp=jnp)
        layer(_x(seed))
        compiled(layer.eval(), _x())
    assert len(traces) == 1


@pytest.mark.parametrize("cls", [an.BatchNorm, an.InstanceNorm])
@pytest.mark.parametrize("how", ["jit", "grad", "vmap", "parameters", "layer"])
def test_training_while_traced(how: str, cls: Any) -> None:
    """Training under jit, grad or vmap raises, names the pure functions and leaves the layer as it was."""
    layer = cls(3, weight=True, track_running_stats=True, xp=jnp)
    before, x = layer.state_dict(), _x()

    def with_weight(weight: Any) -> Any:
        traced = copy.copy(layer)
        traced.weight = weight
        return traced(x)

    calls: dict[str, Any] = {
        "jit": lambda: jax.jit(layer)(x),
        "grad": lambda: jax.grad(lambda x: layer(x).sum())(x),
        "vmap": lambda: jax.vmap(layer.vjp)(x[None]),
        "parameters": lambda: jax.jit(with_weight)(layer.weight),
        "layer": lambda: jax.jit(lambda layer: layer(x))(layer),
    }
    with pytest.raises(RuntimeError, match=r"return_moments=True\) and update_running"):
        calls[how]()
    assert all(layer.state_dict()[name] is value for name, value in before.items())


def test_what_may_be_traced_in_training() -> None:
    """A layer that learns nothing may be traced: untracked, frozen, or told not to update."""
    x = _x()
    for layer in (an.BatchNorm(3, track_running_stats=False, xp=jnp), an.BatchNorm(3, xp=jnp).freeze()):
        np.testing.assert_allclose(jax.jit(layer)(x), layer(x), rtol=1e-5, atol=1e-6)
    layer = an.BatchNorm(3, xp=jnp)
    y = jax.jit(partial(layer, update=False))(x)
    np.testing.assert_allclose(y, an.batch_norm(x), rtol=1e-5, atol=1e-6)
    assert int(layer.num_batches_tracked) == 0


def test_a_jitted_training_step() -> None:
    """Steps jitted through the pure functions, gradients shaped like `params`, go as the layer's own steps do."""

    def loss(params: Any, x: Any, target: Any) -> Any:
        y, batch = an.batch_norm(x, **params, return_moments=True)
        return jnp.mean((y - target) ** 2), batch

    def step(params: Any, running_mean: Any, running_var: Any, x: Any, target: Any) -> Any:
        (value, batch), grads = jax.value_and_grad(loss, has_aux=True)(params, x, target)
        params = jax.tree.map(lambda tensor, slope: tensor - 0.1 * slope, params, grads)
        return params, an.update_running(running_mean, running_var, batch), value

    compiled = jax.jit(step)
    jitted, own = an.BatchNorm(3, xp=jnp), an.BatchNorm(3, xp=jnp)
    losses = []
    for seed in range(6):
        x, target = _x(seed), jnp.sin(3 * _x(seed))
        jitted.params, (jitted.running_mean, jitted.running_var), value = compiled(
            jitted.params, jitted.running_mean, jitted.running_var, x, target
        )
        y, pullback = own.vjp(x)
        _, grads = pullback(2 * (y - target) / y.size)
        own.params = {name: parameter - 0.1 * grads[name] for name, parameter in own.params.items()}
        losses.append(float(value))
    assert losses[-1] < losses[0]
    for name in ("weight", "bias", "running_mean", "running_var"):
        np.testing.assert_allclose(getattr(jitted, name), getattr(own, name), rtol=1e-4, atol=1e-5)


# Programs in which JAX meets a layer for the first time: each ends with `layer`, whose leaves are looked for.
FIRST_MEETINGS = {
    "made of JAX's arrays": "import jax.numpy as jnp; layer = an.LayerNorm(3, xp=jnp)",
    "made of NumPy's arrays": "import jax; layer = an.LayerNorm(3)",
    "another class": "layer = an.LayerNorm(3); import jax; an.BatchNorm(3)",
    "moved": "layer = an.LayerNorm(3); import jax.numpy as jnp; layer = layer.to(jnp)",
    "copied": "layer = an.LayerNorm(3); import jax, copy; layer = copy.copy(layer)",
    "params": """
layer = an.LayerNorm(3)
import jax.numpy as jnp
layer.params = dict.fromkeys(layer.params, jnp.ones(3))
""",
    "loaded": "layer = an.LayerNorm(3); import jax; layer.load_state_dict(layer.state_dict())",
    "called": """
layer = an.LayerNorm(3)
import jax.numpy as jnp
layer.weight = layer.bias = jnp.ones(3)
layer(jnp.ones((2, 3)))
""",
    "unpickled": f"import pickle; layer = pickle.loads({pickle.dumps(an.LayerNorm(3, xp=jnp))!r})",
}


@pytest.mark.parametrize("program", FIRST_MEETINGS.values(), ids=FIRST_MEETINGS)
def test_when_jax_first_meets_a_layer(program: str) -> None:
    """Whichever comes first, JAX or the layer: where the layer came from or was touched last, JAX knows its class."""
    _run(f"""
import anynorm as an
{program}
import jax
assert len(jax.tree.leaves(layer)) == 2, jax.tree.leaves(layer)
other = jax.jit(lambda layer: jax.tree.map(lambda leaf: leaf + 2, layer))(layer)
assert other.weight.tolist() == [3, 3, 3]
""")


def test_torch_compiles_layers_that_jax_has_not_met() -> None:
    """While JAX is loaded and knows no layer, torch.compile takes one that is made or copied into one graph."""
    pytest.importorskip("torch", reason="torch is not installed")
    _run("""
import copy, torch, anynorm as an
old = an.LayerNorm(3, xp=torch)
import jax
made = torch.compile(lambda x: an.LayerNorm(3, xp=torch)(x), fullgraph=True, backend="eager")
copied = torch.compile(lambda x: copy.copy(old)(x), fullgraph=True, backend="eager")
x = torch.randn(4, 3)
assert torch.equal(made(x), copied(x))
""")


def test_layers_do_not_load_jax() -> None:
    """A layer of other arrays loads neither JAX nor the adapter for it; nor does JAX's being there load the adapter."""
    script = "import sys, anynorm as an; an.BatchNorm(3); assert 'jax' not in sys.modules\n"
    _run(f"{script}import jax; jax.tree.leaves(an.BatchNorm(3)); assert 'anynorm_jax' not in sys.modules")


def _run(script: str) -> None:
    """Run a program in a process of its own, where nothing is registered yet."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_equinox() -> None:
    """A layer is a field of an Equinox module as it is: filtered, partitioned, combined and trained."""
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")

    class Block(eqx.Module):  # type: ignore[misc, name-defined, unused-ignore]
        linear: Any
        norm: an.LayerNorm

        def __call__(self, x: Any) -> Any:
            return self.norm(jax.vmap(self.linear)(x))

    block = Block(eqx.nn.Linear(4, 3, key=jax.random.key(0)), an.LayerNorm(3, xp=jnp))
    arrays, rest = eqx.partition(block, eqx.is_inexact_array)
    assert eqx.tree_equal(eqx.combine(arrays, rest), block)

    def step(block: Any, x: Any, target: Any) -> Any:
        value, grads = eqx.filter_value_and_grad(lambda block: jnp.mean((block(x) - target) ** 2))(block)
        return eqx.apply_updates(block, jax.tree.map(lambda slope: -0.1 * slope, grads)), value

    compiled = eqx.filter_jit(step)
    x = _x()[:, 0]
    target = jnp.sin(x[:, :3])
    losses = []
    for _ in range(10):
        block, value = compiled(block, x, target)
        losses.append(float(value))
    assert losses[-1] < 0.9 * losses[0]
    assert block.norm.weight.tolist() != [1, 1, 1]


def test_equinox_with_statistics() -> None:
    """A module with batch norm in evaluation is filtered by kind of array: counts are no parameters."""
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    layer = an.BatchNorm(3, xp=jnp).eval()
    inexact, rest = eqx.partition(layer, eqx.is_inexact_array)
    assert inexact.num_batches_tracked is None
    assert rest.weight is None
    assert int(rest.num_batches_tracked) == 0
    both = eqx.combine(inexact, rest)
    np.testing.assert_array_equal(both(_x()), layer(_x()))


def test_mapped_layers() -> None:
    """vmap over a stack of layers, one per member of an ensemble, evaluates each with its own arrays."""
    layers = [an.BatchNorm(3, xp=jnp) for _ in range(2)]
    for seed, layer in enumerate(layers):
        layer(_x(seed))
        layer.eval()
    stacked = jax.tree.map(lambda *tensors: jnp.stack(tensors), *layers)
    ys = jax.vmap(lambda layer, x: layer(x), in_axes=(0, None))(stacked, _x(2))
    for y, layer in zip(ys, layers, strict=True):
        np.testing.assert_allclose(y, layer(_x(2)), rtol=1e-5, atol=1e-6)


def test_names_of_the_leaves() -> None:
    """The paths that JAX shows for leaves are the names of the attributes."""
    paths, _ = jax.tree_util.tree_flatten_with_path({"norm": an.BatchNorm(3, xp=jnp)})
    shown = [jax.tree_util.keystr(path) for path, _ in paths]
    assert shown == [f"['norm'].{name}" for name in ("weight", "bias", *STATISTICS)]


def test_the_page_about_layers() -> None:
    """Every Python block of docs/layers.md runs, one after the other, and what they assert holds."""
    for package in ("torch", "safetensors", "equinox", "flax"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    page = (Path(__file__).parents[2] / "docs" / "layers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 10
    names: dict[str, Any] = {"__name__": "layers_page"}
    for block in blocks:
        exec(compile(block, "docs/layers.md", "exec"), names)
    assert float(names["value"]) > 0
