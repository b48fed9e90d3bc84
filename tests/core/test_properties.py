"""Any shape, any axes, any shapes of weight and bias, drawn by hypothesis: within the contract, on every library."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from inputs import Case, Norm, check, make_case
from libraries import EACH_WAY, ArrayLibrary, each_library, numpy_dtype

import anynorm as an

# JAX compiles and Dask schedules each example anew.
EXAMPLES = {"numpy": 300, "numpy_alone": 200, "torch": 100, "strict_CPU_DEVICE": 100, "dask": 12, "jax": 50}
EXAMPLES["jax_xla"] = 12


@st.composite
def _parameter_shape(draw: st.DrawFn, shape: tuple[int, ...], along: tuple[int, ...]) -> tuple[int, ...] | None:
    """Draw no parameter, one laid along `along`, or one that broadcasts to x."""
    kind = draw(st.sampled_from(["none", "laid", "broadcast"]))
    if kind == "none":
        return None
    if kind == "laid":
        return tuple([shape[axis] for axis in along])
    return tuple([draw(st.sampled_from([1, length])) for length in shape])


@st.composite
def _subset(draw: st.DrawFn, axes: range, least: int) -> tuple[int, ...]:
    """Draw distinct axes in any order, counted from either end."""
    chosen = draw(st.lists(st.sampled_from(axes), min_size=least, unique=True))
    return tuple([axis - len(axes) if draw(st.booleans()) else axis for axis in chosen])


@st.composite
def _over_axes(draw: st.DrawFn, function: str, shape: tuple[int, ...]) -> Norm:
    """Draw the arguments of layer_norm or rms_norm."""
    axes = draw(_subset(range(len(shape)), 1))
    along = tuple(sorted(axis % len(shape) for axis in axes))
    axis = draw(st.sampled_from([axes, axes[0] if len(axes) == 1 else axes, None if len(axes) == len(shape) else axes]))
    parameters = {name: draw(_parameter_shape(shape, along)) for name in ("weight", "bias")}
    return Norm(
        "",
        function,
        {"axis": axis},
        {name: parameter for name, parameter in parameters.items() if parameter is not None},
    )


@st.composite
def _by_channel(draw: st.DrawFn, function: str, shape: tuple[int, ...]) -> Norm:
    """Draw the arguments of group_norm, instance_norm or batch_norm."""
    ndim = len(shape)
    channel = draw(st.integers(-ndim, ndim - 1))
    options: dict[str, Any] = {"channel_axis": channel}
    if function != "batch_norm":
        batch = tuple(axis for axis in draw(_subset(range(ndim), 0)) if axis % ndim != channel % ndim)
        options["batch_axis"] = draw(st.sampled_from([batch, batch[0] if len(batch) == 1 else batch, batch or None]))
    parameters = {name: draw(_parameter_shape(shape, (channel,))) for name in ("weight", "bias")}
    channels = shape[channel]
    alone = function == "batch_norm" and np.prod(shape) == channels  # one value per channel: only with given statistics
    if function == "batch_norm" and (alone or draw(st.booleans())):
        parameters |= {"mean": (channels,), "var": (channels,)}
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    present = {name: parameter for name, parameter in parameters.items() if parameter is not None}
    return Norm("", function, options, present, (groups,) if function == "group_norm" else ())


@st.composite
def _calls(draw: st.DrawFn) -> tuple[Norm, tuple[int, ...], int, float, float]:
    """Draw a norm, the shape of x, a seed for its numbers, their offset and their scale."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=5)))
    function = draw(st.sampled_from(["layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm"]))
    norm = draw((_over_axes if function in ("layer_norm", "rms_norm") else _by_channel)(function, shape))
    norm.options["eps"] = draw(st.sampled_from([0.0, 1e-30, 1e-5, 1.0]))
    offset = draw(st.sampled_from([0.0, 1.0, 100.0, -3e4]))
    return norm, shape, draw(st.integers(0, 2**32 - 1)), offset, draw(st.sampled_from([1e-3, 1.0, 30.0]))


def _arrays(norm: Norm, shape: tuple[int, ...], dtype: str, seed: int, offset: float, scale: float) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    arrays = {"x": (offset + scale * random.normal(size=shape)).astype(numpy_dtype(dtype))}
    for name, parameter in norm.parameters.items():
        drawn = random.uniform(0.1, 10, size=parameter) if name == "var" else random.normal(size=parameter)
        arrays[name] = drawn.astype(numpy_dtype(dtype))
    return arrays


@each_library(EACH_WAY)
def test_any_shape_and_axes(library: ArrayLibrary) -> None:
    """Whatever is reduced, kept or split, and wherever weight and bias lie, the contract holds."""

    @settings(max_examples=EXAMPLES.get(library.name, 100), suppress_health_check=[HealthCheck.too_slow])
    @given(call=_calls(), dtype=st.sampled_from(library.dtypes))
    def holds(call: Any, dtype: str) -> None:
        norm, *drawn = call
        check(Case(norm, _arrays(norm, drawn[0], dtype, *drawn[1:])), library)

    holds()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_library(EACH_WAY)
def test_relations_between_norms(library: ArrayLibrary, dtype: str) -> None:
    """Group norm of one group is layer norm of the sample, of one channel each instance norm; and so on."""
    x = library.make(make_case(Norm("relations", "layer_norm"), dtype).arrays["x"])
    pairs = (
        (an.group_norm(x, 1), an.layer_norm(x, axis=(1, 2, 3))),
        (an.group_norm(x, 6), an.instance_norm(x)),
        (an.instance_norm(x), an.layer_norm(x, axis=(2, 3))),
        (an.batch_norm(x), an.layer_norm(x, axis=(0, 2, 3))),
        (an.batch_norm(x, channel_axis=-1), an.instance_norm(x, channel_axis=-1, batch_axis=None)),
    )
    tolerance = 100 * float(np.finfo(dtype).eps)
    for one, other in pairs:
        np.testing.assert_allclose(library.to_numpy(one), library.to_numpy(other), rtol=tolerance, atol=tolerance)
