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
