"""Correct code makes no NaN on its way to a result that has none: what watches for NaN finds nothing to raise.

`jax.debug_nans`, NumPy's `errstate(all="raise")` and torch's anomaly detection raise where one appears, in any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from libraries import BOTH_NUMPY, ArrayLibrary, NumPyArray, each_library

import anynorm as an

SPREAD = np.random.default_rng(0).normal(size=(4, 6, 5)).astype("float32")
INPUTS = {
    "spread": SPREAD,
    "constant": np.full_like(SPREAD, 3),
    "zeros": np.zeros_like(SPREAD),
    "tiny": SPREAD * np.float32(1e-30),
    "huge": SPREAD * np.float32(1e18),
}

each_input = pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)


def _calls(x: Any, w: Any) -> Iterator[Callable[[], Any]]:
    """Return calls whose results are finite, at eps=0 wherever there is one."""
    yield lambda: an.layer_norm(x, eps=0)
    yield lambda: an.rms_norm(x, eps=0)
    yield lambda: an.group_norm(x, 2, w, w, eps=0)
    yield lambda: an.instance_norm(x, weight=w, eps=0)
    yield lambda: an.batch_norm(x, mean=w, var=w, eps=0)
    yield lambda: an.batch_norm(x, eps=0, return_moments=True)[1].std(1)
    for function in (an.layer_norm, an.rms_norm, an.batch_norm):
        yield partial(_gradients, function, x)
    yield lambda: an.moments(x, axis=(0, 2)).var()
    parts = [an.moments(value, axis=(0, 2)) for value in (x[:1], x[1:], x[:0])]
    yield lambda: an.Moments.merge(parts).var(1)
    for part in (*parts, an.moments(x[:1, :, :1], axis=(0, 2))):
        yield partial(an.update_running, w, w, part)


def _gradients(function: Any, x: Any) -> Any:
    return an.vjp(function, x, eps=0)[1](x)


def _layers(x: Any, w: Any) -> None:
    """Train and evaluate layers that track statistics."""
    for layer in (
        an.BatchNorm(6, dtype="float32"),
        an.BatchNorm(6, momentum=None, dtype="float32"),
        an.InstanceNorm(6, track_running_stats=True, dtype="float32"),
    ):
        names = ("weight", "bias", "running_mean", "running_var")
        layer._assign({name: w for name in names if getattr(layer, name) is not None})
        counts = {name: w.astype("int32")[0] for name in ("num_batches_tracked", "num_batches_skipped")}
        layer._assign(counts)
        layer(x)
        _, pull = layer.vjp(x)
        pull(x)
        layer.eval()(x)


@each_input
@each_library(["jax"])
def test_debug_nans(library: ArrayLibrary, x: NumPyArray) -> None:
    """Nothing raises under jax.debug_nans, nor under debug_infs: eager calls, merges, running statistics, layers."""
    import jax

    with jax.debug_nans(True), jax.debug_infs(True):
        made, w = library.make(x), library.make(np.ones(6, "float32"))
        for call in _calls(made, w):
            call()
        _layers(made, w)


@each_input
@each_library(["jax"])
def test_derivatives_under_debug_nans(library: ArrayLibrary, x: NumPyArray) -> None:
    """Nor do gradients, of a deviation of 0 too, which is 0; and forward mode where the changes are in range."""
    import jax
    import jax.numpy as jnp

    def merged(x: Any) -> Any:
        return jnp.sum((an.moments(x, axis=(0, 2)) + an.moments(x[:1], axis=(0, 2))).std())

    with jax.debug_nans(True):
        made = library.make(x)
        gradient = np.asarray(jax.grad(merged)(made))
        assert np.isfinite(gradient).all()
        if x is INPUTS["constant"] or x is INPUTS["zeros"]:
            assert not gradient.any()
        jax.jit(jax.grad(lambda x: jnp.sum(an.layer_norm(x, eps=0) ** 2)))(made)
        jax.jvp(merged, (made,), (made,))
        jax.jvp(lambda x: an.moments(x).var(), (library.make(INPUTS["zeros"]),), (jnp.ones(x.shape),))


@each_input
@each_library(BOTH_NUMPY)
def test_errstate(library: ArrayLibrary, x: NumPyArray) -> None:
    """Nothing raises where NumPy is told to raise at overflow, underflow, division by 0 and invalid values."""
    with np.errstate(all="raise"):
        w = np.ones(6, "float32")
        for call in _calls(library.make(x), w):
            call()
        _layers(library.make(x), w)


@pytest.mark.parametrize("fast", [True, False], ids=["engine", "formula"])
@each_input
@each_library(["torch"])
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_anomaly_detection(library: ArrayLibrary, x: NumPyArray, fast: bool) -> None:
    """torch finds no NaN in the backward pass of norms, variances and merged deviations."""
    import torch

    functions: list[Callable[[Any], Any]] = [
        lambda x: an.layer_norm(x, eps=0),
        lambda x: an.rms_norm(x, eps=0),
        lambda x: an.batch_norm(x, eps=0),
        lambda x: (an.moments(x, axis=(0, 2)) + an.moments(x[1:], axis=(0, 2))).std(),
    ]
    # Not of the huge: half way to the slope of their variance lies 2¹⁶⁰, which no float32 is.
    if x is not INPUTS["huge"]:
        functions.append(lambda x: an.moments(x, axis=(0, 2)).var(1))
    with torch.autograd.set_detect_anomaly(True), an.fast_paths(fast):
        for function in functions:
            made = library.make(x.copy()).requires_grad_()
            function(made).sum().backward()
            assert torch.isfinite(made.grad).all()
