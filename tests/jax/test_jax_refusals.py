"""Arrays of JAX that hold no numbers, or other numbers than they say: refused, in words that help."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from libraries import ArrayLibrary, each_library

import anynorm as an
from anynorm._core import backends

jax = pytest.importorskip("jax", reason="jax is not installed")


@each_library(["jax"])
def test_random_keys(library: ArrayLibrary) -> None:
    """Keys are no numbers, and no cast makes them any."""
    keys = jax.random.split(jax.random.key(0), 4)
    with pytest.raises(TypeError, match="layer_norm: x holds random keys"):
        an.layer_norm(keys)
    with pytest.raises(TypeError, match="rms_norm: weight holds random keys"):
        an.rms_norm(library.make(np.ones((2, 4), "float32")), keys)


@each_library(["jax"])
def test_float64_where_jax_has_it_switched_off(library: ArrayLibrary) -> None:
    """A float64 array made elsewhere is refused: JAX would round it to float32 on the way."""
    with jax.enable_x64(True):
        x = library.make(np.ones((2, 4)))
        assert an.layer_norm(x).dtype == np.float64
    for call in (an.layer_norm, an.moments, jax.jit(an.layer_norm), lambda x: an.vjp(an.rms_norm, x)):
        with pytest.raises(TypeError, match="x is float64, which JAX has switched off"):
            call(x)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int4", "complex64", "bool", "int32"])
@each_library(["jax"])
def test_other_dtypes(library: ArrayLibrary, dtype: str) -> None:  # noqa: ARG001  for its setting
    """What is none of the four floating dtypes is refused before any work, traced or not."""
    x: Any = jax.numpy.zeros((2, 3), dtype)
    for call in (an.layer_norm, an.moments, jax.jit(an.layer_norm)):
        with pytest.raises(TypeError, match="must have a real floating dtype"):
            call(x)


@mock.patch.dict(backends.by_type, clear=True)
def test_an_array_of_float0_is_numpys() -> None:
    """What JAX gives as the gradient of an integer is refused, and NumPy's arrays after it are still NumPy's."""
    with pytest.raises(TypeError, match="must have a real floating dtype"):
        an.layer_norm(np.zeros((2, 3), jax.dtypes.float0))
    assert type(an.layer_norm(np.ones((2, 3)))) is np.ndarray


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [
        (an.group_norm, "num_groups", 3),
        (an.layer_norm, "axis", 1),
        (an.layer_norm, "axis", (0, 1)),
        (an.layer_norm, "eps", 0.1),
        (an.batch_norm, "channel_axis", 2),
        (an.batch_norm, "return_moments", True),
        (an.instance_norm, "return_moments", True),
        (an.moments, "keepdims", True),
    ],
)
def test_numbers_that_jit_traces(function: Any, name: str, value: Any) -> None:
    """A number or flag that JAX traces is to be static, or in a closure: both give what the call alone gives."""
    x = jax.numpy.arange(24.0).reshape(2, 6, 2)
    args, options = ((value,), {}) if name == "num_groups" else ((), {name: value})
    with pytest.raises(
        TypeError, match=rf"^{function.__name__}: {name} must be .*static_argnames.* static_argnums.* clos"
    ):
        jax.jit(function)(x, *args, **options)
    static: Any = {"static_argnums": 1} if args else {"static_argnames": name}
    expected = jax.tree.leaves(function(x, *args, **options))
    for made in (jax.jit(function, **static)(x, *args, **options), jax.jit(lambda x: function(x, *args, **options))(x)):
        for leaf, own in zip(jax.tree.leaves(made), expected, strict=True):
            np.testing.assert_allclose(leaf, own, rtol=1e-5, atol=1e-5)


def test_what_is_traced_cannot_leave_jax() -> None:
    """Beside a weight that JAX traces it is x that is to be converted, also by a layer."""
    x, weight = np.ones((2, 3), "float32"), jax.numpy.ones(3)
    with pytest.raises(TypeError, match="convert x to jax first"):
        jax.jit(lambda weight: an.layer_norm(x, weight))(weight)
    with pytest.raises(TypeError, match=r"converted silently: convert x\.(\n|$)"):
        jax.jit(lambda weight: an.LayerNorm(3, weight=weight)(x))(weight)
    assert jax.jit(lambda weight: an.layer_norm(jax.numpy.asarray(x), weight))(weight).shape == (2, 3)


def test_devices_by_name() -> None:
    """JAX has no devices by name, and its own message says nothing of that."""
    layer = an.LayerNorm(3)
    with pytest.raises(ValueError, match=r"device='cpu': pass one of jax\.devices\(\)\.$"):
        layer.to(jax.numpy, device="cpu")
    assert layer.to(jax.numpy, device=jax.devices()[0]).weight.shape == (3,)
