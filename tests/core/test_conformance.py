"""The norms as others define them, on cases of their own: torch's operators and sample inputs, ONNX's node tests.

These guard the meaning of an argument (which axes, which order of groups, where eps goes); accuracy is the matrix's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from libraries import BOTH_NUMPY, ArrayLibrary, NumPyArray, each_library

import anynorm as an

# How anynorm spells a call of torch.nn.functional. Each takes torch's own arguments, by torch's own names.


def _layer_norm(x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    return an.layer_norm(x, weight, bias, axis=tuple(range(-len(normalized_shape), 0)), eps=eps)


def _rms_norm(x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    eps = float(np.finfo("float64").eps) if eps is None else eps
    return an.rms_norm(x, weight, axis=tuple(range(-len(normalized_shape), 0)), eps=eps)


def _group_norm(x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    return an.group_norm(x, num_groups, weight, bias, eps=eps)


def _instance_norm(x: Any, *_: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, **__: Any) -> Any:
    # Its running statistics are updated, which concerns no result, unless use_input_stats is False.
    return an.instance_norm(x, weight=weight, bias=bias, eps=eps)


def _batch_norm(
    x: Any,
    mean: Any,
    var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001  torch's running statistics are compared in test_running.py
    eps: float = 1e-5,
) -> Any:
    given = {} if training else {"mean": mean, "var": var}
    return an.batch_norm(x, weight=weight, bias=bias, eps=eps, **given)


TORCH: dict[str, Callable[..., Any]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
}


def _outside_the_rules(name: str, x: Any, options: dict[str, Any]) -> str | None:
    """Return why a sample of torch's is an error in anynorm, or None. Nothing else is left out."""
    if options.get("eps", 0) < 0:
        return "a negative eps"
    if name == "batch_norm" and x.ndim < 2:
        return "no channel axis"
    if name == "batch_norm" and options.get("training") and x.numel() == x.shape[1]:
        return "one value per channel"
    return None


# torch imports its own deprecated modules.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", list(TORCH))
@each_library(["torch"])
def test_torch_sample_inputs(library: ArrayLibrary, name: str) -> None:
    """On the sample inputs torch tests its operator with, anynorm gives the operator's result."""
    import torch

    pytest.importorskip("expecttest", reason="expecttest, which torch's sample inputs need, is not installed")
    op_db = importlib.import_module("torch.testing._internal.common_methods_invocations").op_db
    (op,) = [op for op in op_db if op.name == f"nn.functional.{name}" and not op.variant_test_name]
    compared = 0
    for sample in op.sample_inputs("cpu", torch.float64):
        if _outside_the_rules(name, sample.input, sample.kwargs) is not None:
            continue
        expected = op(sample.input.clone(), *sample.args, **sample.kwargs)
        found = TORCH[name](sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(library.to_numpy(found).shape, tuple(expected.shape))
        compared += 1
    assert compared >= 5


SHAPES = [(2, 6), (3, 6, 5), (2, 6, 5, 4), (2, 6, 3, 2, 5), (1, 6, 7, 1)]


def _torch_arguments(name: str, shape: tuple[int, ...]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (arrays, options) pairs for one of torch's functions, in torch's names."""
    random = np.random.default_rng(len(shape))
    x = random.normal(3, 2, size=shape)
    if name in ("layer_norm", "rms_norm"):
        calls = []
        for reduced in range(1, len(shape) + 1):
            size = shape[-reduced:]
            arrays = {"x": x, "weight": random.normal(size=size), "bias": random.normal(size=size)}
            calls.append((arrays, {"normalized_shape": size, "eps": 1e-3}))
        return calls
    arrays = {"x": x, "weight": random.normal(size=6), "bias": random.normal(size=6)}
    if name == "group_norm":
        return [(arrays, {"num_groups": groups}) for groups in (1, 2, 3, 6)]
    if name == "instance_norm":
        return [(arrays, {})]
    running = {"running_mean": random.normal(size=6), "running_var": random.uniform(1, 2, size=6)}
    return [(arrays | running, {"training": training, "eps": 0.1}) for training in (False, True)]


@pytest.mark.parametrize(
    ("library", "shape"),
    [
        pytest.param(name, shape, id=f"{name}-{shape}")
        for name in (*BOTH_NUMPY, "torch", "strict_CPU_DEVICE", "jax_x64", "dask")
        for shape in (SHAPES[2:3] if name in ("jax_x64", "dask") else SHAPES)  # these take their time over each shape
    ],
    indirect=["library"],
)
@pytest.mark.parametrize("name", list(TORCH))
def test_torch_operators_in_float64(library: ArrayLibrary, name: str, shape: tuple[int, ...]) -> None:
    """torch's own operator, in float64, gives what anynorm gives on every library."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if name == "instance_norm" and np.prod(shape[2:]) == 1:
        pytest.skip("torch refuses instances of one element")
    for arrays, options in _torch_arguments(name, shape):
        if name == "rms_norm":
            del arrays["bias"]
        tensors = {key: torch.from_numpy(tensor.copy()) for key, tensor in arrays.items()}
        expected = getattr(torch.nn.functional, name)(tensors.pop("x"), **tensors, **options)
        made = library.make_all(arrays)
        x = made.pop("x")
        if name == "batch_norm":
            made = {
                "mean": made["running_mean"],
                "var": made["running_var"],
                "weight": made["weight"],
                "bias": made["bias"],
            }
        found = TORCH[name](x, **made, **options)
        np.testing.assert_allclose(library.to_numpy(found), expected.numpy(), rtol=1e-12, atol=1e-12)


# The modules of onnx.backend.test.case.node that hold the norms; collecting all of its thousand cases takes seconds.
ONNX_MODULES = (
    "layernormalization",
    "rmsnormalization",
    "groupnormalization",
    "instance_normalization",
    "batch_normalization",
)


def _onnx_layer_norm(inputs: Any, attributes: dict[str, Any], ndim: int) -> Any:
    axis = tuple(range(attributes.get("axis", -1) % ndim, ndim))
    return an.layer_norm(*inputs, axis=axis, eps=attributes.get("epsilon", 1e-5))


def _onnx_rms_norm(inputs: Any, attributes: dict[str, Any], ndim: int) -> Any:
    axis = tuple(range(attributes.get("axis", -1) % ndim, ndim))
    return an.rms_norm(*inputs, axis=axis, eps=attributes.get("epsilon", 1e-5))


def _onnx_group_norm(inputs: Any, attributes: dict[str, Any], _: int) -> Any:
    x, weight, bias = inputs
    return an.group_norm(x, attributes["num_groups"], weight, bias, eps=attributes.get("epsilon", 1e-5))


def _onnx_instance_norm(inputs: Any, attributes: dict[str, Any], _: int) -> Any:
    x, weight, bias = inputs
    return an.instance_norm(x, weight=weight, bias=bias, eps=attributes.get("epsilon", 1e-5))


def _onnx_batch_norm(inputs: Any, attributes: dict[str, Any], _: int) -> Any:
    x, weight, bias, mean, var = inputs
    options = {"weight": weight, "bias": bias, "eps": attributes.get("epsilon", 1e-5)}
    if not attributes.get("training_mode", 0):
        return an.batch_norm(x, mean=mean, var=var, **options)
    y, batch = an.batch_norm(x, return_moments=True, **options)
    share = 1 - attributes.get("momentum", 0.9)  # ONNX weighs the old value, and tracks the biased variance
    return y, *an.update_running(mean, var, batch, momentum=share, correction=0)


ONNX: dict[str, Callable[[Any, dict[str, Any], int], Any]] = {
    "LayerNormalization": _onnx_layer_norm,
    "RMSNormalization": _onnx_rms_norm,
    "GroupNormalization": _onnx_group_norm,
    "InstanceNormalization": _onnx_instance_norm,
    "BatchNormalization": _onnx_batch_norm,
}


def _onnx_cases(operator: str) -> list[Any]:
    """Return ONNX's test cases of one operator: a model of one node, inputs, and recorded outputs."""
    node = importlib.import_module("onnx.backend.test.case.node")
    for module in ONNX_MODULES:
        importlib.import_module(f"{node.__name__}.{module}")
    found = [case for case in node._NodeTestCases if case.model.graph.node[0].op_type == operator]
    assert found, f"onnx has no test cases of {operator} in {ONNX_MODULES}"
    return found


def _tolerance(x: NumPyArray, y: NumPyArray) -> float:
    """Return how far ONNX's recorded outputs may lie from exact ones.

    They were computed in float32 by the definition: two sums of up to n terms, each with n/2 roundings at most, on
    numbers around 1; then a handful of operations.
    """
    return float(2.0**-24 * (x.size + 8) * max(1.0, float(np.abs(y).max())))


@pytest.mark.parametrize("operator", list(ONNX))
@each_library(["numpy", "torch", "strict_CPU_DEVICE"])  # what an argument means is decided before a library is
def test_onnx_node_tests(library: ArrayLibrary, operator: str) -> None:
    """ONNX's recorded outputs, running statistics included, are anynorm's."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    for case in _onnx_cases(operator):
        node = case.model.graph.node[0]
        attributes = {value.name: onnx.helper.get_attribute_value(value) for value in node.attribute}
        for inputs, outputs in case.data_sets:
            found = ONNX[operator]([library.make(np.asarray(tensor)) for tensor in inputs], attributes, inputs[0].ndim)
            # LayerNormalization also records mean and inverse standard deviation, which are no part of y.
            expected = outputs if isinstance(found, tuple) else outputs[:1]
            for one, other in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
                np.testing.assert_allclose(
                    library.to_numpy(one), other, rtol=0, atol=_tolerance(inputs[0], other), err_msg=case.name
                )
