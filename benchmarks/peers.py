"""How each peer runs the same norm on the same data, as its users use it, at its best. Times nothing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.machine import THREADS, installed
from benchmarks.numpy_alone import five_lines, five_lines_and_back
from benchmarks.problems import Arrays, Data, Problem
from benchmarks.ways import Run, on_torch, plain, statistics

EPS = {"rms_norm": 1e-6}  # anynorm's defaults; the others' is 1e-5


class Unsupported(Exception):  # noqa: N818 (it is an answer)
    """What a peer cannot do, in half a sentence."""


@dataclass(frozen=True)
class Peer:
    """A library to be compared with."""

    name: str
    package: str  # the distribution that has to be installed
    prepare: Callable[[Problem, Data, str], Run]  # raises Unsupported

    def missing(self) -> str | None:
        """Return why it cannot run here, or None."""
        return None if installed(self.package) else f"{self.package} is not installed"


def _torch(problem: Problem, data: Data, direction: str) -> Run:
    return on_torch(partial(bind_native, problem), problem, data, direction)


def bind_native(problem: Problem, x: Any, weight: Any, bias: Any) -> partial[Any]:
    """Return torch's own function with its arguments."""
    from torch.nn import functional

    eps, lengths = EPS.get(problem.norm, 1e-5), tuple(x.shape[1:])
    match problem.norm:
        case "layer_norm":
            return partial(functional.layer_norm, x, lengths, weight, bias, eps)
        case "rms_norm":
            return partial(functional.rms_norm, x, lengths, weight, eps)
        case "batch_norm":
            mean, var = statistics(weight, bias) if problem.given else (None, None)
            return partial(functional.batch_norm, x, mean, var, weight, bias, training=not problem.given, eps=eps)
        case "group_norm":
            return partial(functional.group_norm, x, problem.groups, weight, bias, eps)
        case _:
            return partial(functional.instance_norm, x, weight=weight, bias=bias, eps=eps)


def _five_lines(problem: Problem, data: Data, direction: str) -> Run:
    view, axes, column = problem.seen()
    x, dy, weight, bias = data.numpy
    x, dy, weight = x.reshape(view), dy.reshape(view), weight.reshape(column)

    def read(result: Any) -> tuple[Any, ...]:
        result = result if isinstance(result, tuple) else (result,)
        return tuple([large.reshape(problem.stored) for large in result[:2]] + [small.ravel() for small in result[2:]])

    if bias is None:
        if direction == "forward":
            return Run(partial(_rms_lines, x, weight), read)
        return Run(partial(_rms_lines_and_back, x, dy, weight), read)
    bias = bias.reshape(column)
    if direction == "forward":
        return Run(partial(five_lines, x, axes, weight, bias), read)
    return Run(partial(five_lines_and_back, x, dy, axes, weight, bias), read)


def _rms_lines(x: Any, weight: Any) -> Any:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS["rms_norm"]) * weight


def _rms_lines_and_back(x: Any, dy: Any, weight: Any) -> Any:
    r = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS["rms_norm"])
    unit = x * r
    g = dy * weight
    dx = r * (g - unit * (g * unit).mean(axis=-1, keepdims=True))
    return unit * weight, dx, (dy * unit).sum(axis=0)


def _jax(problem: Problem, data: Data, direction: str) -> Run:
    import jax
    import jax.numpy as jnp

    view, axes, column = problem.seen()
    x, dy, *parameters = [jnp.asarray(array) for array in data.numpy if array is not None]
    wait: Any = jax.block_until_ready

    def forward(x: Any, *parameters: Any) -> Any:
        z = x.reshape(view)
        if problem.has_bias:
            z = z - z.mean(axis=axes, keepdims=True)
        r = jax.lax.rsqrt((z * z).mean(axis=axes, keepdims=True) + EPS.get(problem.norm, 1e-5))
        y = z * r * parameters[0].reshape(column)
        return (y + parameters[1].reshape(column) if problem.has_bias else y).reshape(x.shape)

    def both(dy: Any, *arguments: Any) -> Any:
        y, pullback = jax.vjp(forward, *arguments)
        return y, *pullback(dy)

    chosen = partial(jax.jit(forward), x, *parameters)
    if direction == "both":
        chosen = partial(jax.jit(both), dy, x, *parameters)
    return Run(lambda: wait(chosen()), _several)


def _several(result: Any) -> tuple[Any, ...]:
    return tuple([np.asarray(array) for array in (result if isinstance(result, tuple) else (result,))])


# Operator, and the first version of ONNX's operators that has it in the form used here.
_ONNX = {
    "layer_norm": ("LayerNormalization", 17),
    "rms_norm": ("RMSNormalization", 23),
    "batch_norm": ("BatchNormalization", 15),
    "group_norm": ("GroupNormalization", 21),
    "instance_norm": ("InstanceNormalization", 22),
}


def _onnxruntime(problem: Problem, data: Data, direction: str) -> Run:
    if direction != "forward":
        msg = "it has no gradients"
        raise Unsupported(msg)
    if problem.channels_last:
        msg = "its operators have the channels second"
        raise Unsupported(msg)
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(_onnx_model(problem), options, providers=["CPUExecutionProvider"])
    # Bound, so that nothing is copied in or out.
    binding = session.io_binding()
    for session_input, value in zip(session.get_inputs(), _onnx_inputs(problem, data.numpy), strict=True):
        binding.bind_ortvalue_input(session_input.name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    binding.bind_output("y")

    def call() -> Any:
        session.run_with_iobinding(binding)
        return binding

    return Run(call, lambda bound: (bound.copy_outputs_to_cpu()[0],))


def _onnx_inputs(problem: Problem, arrays: Arrays) -> list[Any]:
    """Return x, weight, bias; batch norm in training updates a running mean and variance too."""
    inputs = [array for array in (arrays.x, arrays.weight, arrays.bias) if array is not None]
    running = [np.zeros_like(arrays.weight), np.ones_like(arrays.weight)]
    return inputs + running if problem.norm == "batch_norm" else inputs


def _onnx_model(problem: Problem) -> bytes:
    onnx = import_module("onnx")
    operator, version = _ONNX[problem.norm]
    attributes: dict[str, Any] = {"epsilon": EPS.get(problem.norm, 1e-5)}
    if problem.norm == "group_norm":
        attributes["num_groups"] = problem.groups
    channels, shapes = [problem.shape[1]], {"x": list(problem.shape)}
    shapes |= {"weight": channels} | ({"bias": channels} if problem.has_bias else {})
    outputs = ["y"]
    if problem.norm == "batch_norm":
        attributes["training_mode"] = 1
        shapes |= {"mean": channels, "var": channels}
        outputs += ["running_mean", "running_var"]

    def value(name: str, shape: list[int]) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    node = onnx.helper.make_node(operator, list(shapes), outputs, **attributes)
    inputs = [value(name, shape) for name, shape in shapes.items()]
    graph = onnx.helper.make_graph([node], problem.norm, inputs, [value("y", shapes["x"])])
    # The oldest format of the file that may hold them: onnxruntime is often behind onnx.
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def _keras(problem: Problem, data: Data, direction: str) -> Run:
    if direction != "forward":
        msg = "its NumPy backend has no gradients"
        raise Unsupported(msg)
    layers = _import_keras().layers
    axis, eps = problem.channel_axis, EPS.get(problem.norm, 1e-5)
    training = {}
    match problem.norm:
        case "layer_norm":
            layer = layers.LayerNormalization(epsilon=eps)
        case "rms_norm":
            layer = layers.RMSNormalization(epsilon=eps)
        case "batch_norm":
            layer, training = layers.BatchNormalization(axis=axis, epsilon=eps), {"training": True}
        case "group_norm":
            layer = layers.GroupNormalization(problem.groups, axis=axis, epsilon=eps)
        case _:
            layer = layers.GroupNormalization(-1, axis=axis, epsilon=eps)  # a group for each channel
    x, _, weight, bias = data.numpy
    layer.build(x.shape)
    for variable, array in zip(layer.trainable_variables, (weight, bias), strict=problem.has_bias):
        variable.assign(array)
    return Run(partial(layer, x, **training), plain)


def _import_keras() -> Any:
    before = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = "numpy"  # read once, by the import
    try:
        keras = import_module("keras")
    finally:
        del os.environ["KERAS_BACKEND"]
        if before is not None:
            os.environ["KERAS_BACKEND"] = before
    if keras.config.backend() != "numpy":
        msg = f"this process runs it on {keras.config.backend()}"
        raise Unsupported(msg)
    return keras


def _thinc(problem: Problem, data: Data, direction: str) -> Run:
    if problem.norm != "layer_norm":
        msg = "it has layer norm alone"
        raise Unsupported(msg)
    x, dy, weight, bias = data.numpy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its import has to say of other libraries
        layer = import_module("thinc.api").LayerNorm(problem.shape[1]).initialize()
    layer.set_param("G", weight)
    layer.set_param("b", bias)
    if direction == "forward":
        return Run(partial(layer.predict, x), plain)

    def both() -> Any:
        for name in layer.grad_names:  # its gradients add up from call to call
            layer.set_grad(name, np.zeros_like(weight))
        y, pullback = layer(x, is_train=True)
        dx = pullback(dy)
        return y, dx, layer.get_grad("G"), layer.get_grad("b")

    return Run(both, _several)


TORCH = Peer("torch", "torch", _torch)
FIVE_LINES = Peer("five lines of NumPy", "numpy", _five_lines)
OTHERS = (
    Peer("jax.jit", "jax", _jax),
    Peer("onnxruntime", "onnxruntime", _onnxruntime),
    Peer("Keras on NumPy", "keras", _keras),
    Peer("thinc", "thinc", _thinc),
)
PEERS = {peer.name: peer for peer in (TORCH, FIVE_LINES, *OTHERS)}
