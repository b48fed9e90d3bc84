"""How anynorm and each peer run the same norm on the same data on a GPU, as their users do. Times nothing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anynorm as an
from benchmarks.gpu_arrays import MEMORY_OF_JAX
from benchmarks.gpu_problems import FORWARD, HOST_BOTH, HOST_FORWARD
from benchmarks.gpu_timing import Entrant
from benchmarks.machine import installed
from benchmarks.peers import EPS, Unsupported, bind_native
from benchmarks.problems import Arrays, Problem
from benchmarks.ways import bind

Binds = Callable[[Any, Any, Any], Callable[[], Any]]


@dataclass(frozen=True)
class Task:
    """A problem's inputs, in the order of memory, and what is to be done with each."""

    problem: Problem
    direction: str
    library: Any  # of gpu_arrays
    inputs: Sequence[Arrays]

    @property
    def eps(self) -> float:
        """Return anynorm's default."""
        return EPS.get(self.problem.norm, 1e-5)


@dataclass(frozen=True)
class Peer:
    """Someone to be compared with on arrays of a library."""

    name: str
    arrays: str
    missing: Callable[[], str | None]
    prepare: Callable[[Task], Entrant]  # raises Unsupported


def ours(task: Task) -> Entrant:
    """Return anynorm on the task's arrays."""
    problem = task.problem
    if task.library.name == "torch":
        return _on_torch(task, partial(bind, problem, channel_axis=1))
    calls: list[Callable[[], Any]] = []
    for x, dy, weight, bias in task.inputs:
        call = bind(problem, x, weight, bias, channel_axis=problem.channel_axis)
        if task.direction in (FORWARD, HOST_FORWARD):
            calls.append(call)
        elif task.direction == HOST_BOTH:
            calls.append(partial(_there_and_back, dy, call.func, *call.args, **call.keywords))
        else:
            _, pullback = an.vjp(call.func, *call.args, **call.keywords)
            calls.append(partial(pullback, dy))
    return Entrant(lambda i: calls[i](), _several)


def _there_and_back(dy: Any, *arguments: Any, **options: Any) -> Any:
    y, pullback = an.vjp(*arguments, **options)
    return (y, *pullback(dy))


def _several(result: Any) -> tuple[Any, ...]:
    return tuple([array for array in result if array is not None]) if isinstance(result, tuple) else (result,)


def _on_torch(task: Task, binds: Binds, *, as_stored: bool = False) -> Entrant:
    """Return a function that `binds` x, weight and bias to a call; its gradients by torch's autograd.

    Backward alone runs again and again over one record of forward, which is made here.
    """
    torch: Any = importlib.import_module("torch")
    problem, library = task.problem, task.library
    calls: list[Callable[[], Any]] = []
    for arrays in task.inputs:
        x, dy, weight, bias = arrays if as_stored else library.seen(problem, arrays)
        if task.direction in (FORWARD, HOST_FORWARD):
            calls.append(binds(x, weight, bias))
            continue
        leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
        wanted = [leaf for leaf in leaves if leaf is not None]
        forward = binds(*leaves)
        if task.direction == HOST_BOTH:
            calls.append(partial(_grad, torch, forward, wanted, dy))
        else:
            calls.append(partial(torch.autograd.grad, forward(), wanted, dy, retain_graph=True))

    def read(result: Any) -> tuple[Any, ...]:
        first, *rest = _several(result)
        return (first if as_stored else library.stored(problem, first), *rest)

    return Entrant(lambda i: calls[i](), read)


def _grad(torch: Any, forward: Callable[[], Any], wanted: Sequence[Any], dy: Any) -> Any:
    return torch.autograd.grad(forward(), wanted, dy)


def _plain(task: Task) -> Entrant:
    """Return the formula as one writes it with CuPy; backward starts from what its forward has computed."""
    cupy: Any = importlib.import_module("cupy")
    problem = task.problem
    view, axes, column = problem.seen()
    shared = tuple([axis for axis in range(-len(view), 0) if axis < -len(column) or column[axis] == 1])

    def unit_of(x: Any) -> tuple[Any, Any]:
        if not problem.has_bias:
            r = 1 / cupy.sqrt((x * x).mean(axis=axes, keepdims=True) + task.eps)
            return x * r, r
        mean = x.mean(axis=axes, keepdims=True)
        r = 1 / cupy.sqrt(x.var(axis=axes, keepdims=True) + task.eps)
        return (x - mean) * r, r

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        if not problem.has_bias:
            return x / cupy.sqrt((x * x).mean(axis=axes, keepdims=True) + task.eps) * weight
        mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
        return (x - mean) / cupy.sqrt(var + task.eps) * weight + bias

    def backward(unit: Any, r: Any, dy: Any, weight: Any) -> Any:
        g = dy * weight
        dx = g - unit * (g * unit).mean(axis=axes, keepdims=True)
        if not problem.has_bias:
            return r * dx, (dy * unit).sum(axis=shared)
        dx = r * (dx - g.mean(axis=axes, keepdims=True))
        return dx, (dy * unit).sum(axis=shared), dy.sum(axis=shared)

    def both(x: Any, dy: Any, weight: Any, bias: Any) -> Any:
        unit, r = unit_of(x)
        return (unit * weight if bias is None else unit * weight + bias, *backward(unit, r, dy, weight))

    calls: list[Callable[[], Any]] = []
    for arrays in task.inputs:
        x, dy = (tensor.reshape(view) for tensor in arrays[:2])
        weight, bias = (None if tensor is None else tensor.reshape(column) for tensor in arrays[2:])
        if task.direction in (FORWARD, HOST_FORWARD):
            calls.append(partial(forward, x, weight, bias))
        elif task.direction == HOST_BOTH:
            calls.append(partial(both, x, dy, weight, bias))
        else:
            calls.append(partial(backward, *unit_of(x), dy, weight))

    def read(result: Any) -> tuple[Any, ...]:
        first, *rest = _several(result)
        return (first.reshape(problem.stored), *[other.reshape(-1) for other in rest])

    return Entrant(lambda i: calls[i](), read)


def _native(task: Task) -> Entrant:
    return _on_torch(task, partial(bind_native, task.problem))


def _compiled(task: Task) -> Entrant:
    """Return the formula as one writes it with torch, compiled for this very shape."""
    torch: Any = importlib.import_module("torch")
    problem, eps = task.problem, task.eps
    view, axes, column = problem.seen()

    def formula(x: Any, weight: Any, bias: Any) -> Any:
        z = x.reshape(view).float()
        if bias is not None:
            z = z - z.mean(axes, keepdim=True)
        y = z * torch.rsqrt((z * z).mean(axes, keepdim=True) + eps) * weight.reshape(column)
        y = y if bias is None else y + bias.reshape(column)
        return y.to(x.dtype).reshape(x.shape)

    torch._dynamo.reset()  # else the eighth shape of one function is no longer compiled
    functorch: Any = importlib.import_module("torch._functorch.config")
    functorch.donated_buffer = False  # else backward runs only once over a record
    compiled = torch.compile(formula, fullgraph=True, dynamic=False)

    return _on_torch(task, lambda *leaves: partial(compiled, *leaves), as_stored=True)


def _liger(task: Task) -> Entrant:
    problem, eps = task.problem, task.eps
    if problem.channels_last or problem.norm not in ("layer_norm", "rms_norm", "group_norm"):
        msg = "it has layer norm, RMS norm and group norm alone, with the channels second"
        raise Unsupported(msg)
    functional: Any = importlib.import_module("liger_kernel.transformers.functional")

    def binds(x: Any, weight: Any, bias: Any) -> Callable[[], Any]:
        match problem.norm:
            case "layer_norm":
                return partial(functional.liger_layer_norm, x, weight, bias, eps)
            case "rms_norm":  # not in place: dy is used again
                return partial(functional.liger_rms_norm, x, weight, eps, in_place=False)
            case _:
                return partial(functional.liger_group_norm, x, weight, bias, problem.shape[1], problem.groups, eps)

    return _on_torch(task, binds)


def _quack(task: Task) -> Entrant:
    problem, eps = task.problem, task.eps
    if problem.norm not in ("layer_norm", "rms_norm"):
        msg = "it has layer norm and RMS norm alone"
        raise Unsupported(msg)
    quack: Any = importlib.import_module("quack.rmsnorm")
    if problem.norm == "rms_norm":
        return _on_torch(task, lambda x, weight, _: partial(quack.rmsnorm, x, weight, eps=eps))
    if task.direction not in (FORWARD, HOST_FORWARD):
        msg = "its layer norm has no gradients"
        raise Unsupported(msg)
    # Its layer norm takes float32 parameters alone.
    return _on_torch(
        task, lambda x, weight, bias: partial(quack.layernorm_fwd, x, weight.float(), bias.float(), eps=eps)
    )


def _jax(task: Task) -> Entrant:
    """Return the formula compiled by JAX, on the very memory of torch's tensors."""
    jax, torch = _import_jax(), importlib.import_module("torch")
    problem, eps = task.problem, task.eps
    view, axes, column = problem.seen()

    def forward(x: Any, weight: Any, *bias: Any) -> Any:
        z = x.reshape(view).astype("float32")
        if bias:
            z = z - z.mean(axis=axes, keepdims=True)
        y = z * jax.lax.rsqrt((z * z).mean(axis=axes, keepdims=True) + eps) * weight.reshape(column)
        return (y + bias[0].reshape(column) if bias else y).astype(x.dtype).reshape(x.shape)

    there, back = jax.jit(forward), jax.jit(lambda pullback, dy: pullback(dy))
    record = jax.jit(partial(jax.vjp, forward))
    calls: list[Callable[[], Any]] = []
    for arrays in task.inputs:
        x, dy, *parameters = [jax.dlpack.from_dlpack(array) for array in arrays if array is not None]
        if task.direction == FORWARD:
            calls.append(partial(there, x, *parameters))
        else:
            calls.append(partial(back, record(x, *parameters)[1], dy))

    def read(result: Any) -> tuple[Any, ...]:
        return tuple([torch.from_dlpack(array) for array in _several(result)])

    return Entrant(lambda i: calls[i](), read, wait=jax.block_until_ready)


def _import_jax() -> Any:
    """Import JAX, told to take memory as it needs it: else it takes three quarters of all at once."""
    torch: Any = importlib.import_module("torch")
    if torch.cuda.is_available():
        part = MEMORY_OF_JAX / torch.cuda.mem_get_info()[1]
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{min(part, 1.0):.4f}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return importlib.import_module("jax")


def _no_package(package: str) -> str | None:
    return None if installed(package) else f"{package} is not installed"


def _no_cuda_jax() -> str | None:
    missing = _no_package("jax")
    if missing is None and _import_jax().default_backend() != "gpu":
        missing = f"jax {installed('jax')} finds no CUDA device"
    return missing


def _no_triton() -> str | None:
    return _no_package("triton")


NOBODY = "nobody"  # named as the peer where anynorm's own time is the number

PLAIN = Peer("plain CuPy", "cupy", lambda: None, _plain)
NATIVE = Peer("torch", "torch", lambda: None, _native)
COMPILED = Peer("torch.compile", "torch", _no_triton, _compiled)
JAX = Peer("jax.jit", "torch", _no_cuda_jax, _jax)
LIGER = Peer("Liger-Kernel", "torch", partial(_no_package, "liger-kernel"), _liger)
QUACK = Peer("quack", "torch", partial(_no_package, "quack-kernels"), _quack)
PEERS = {peer.name: peer for peer in (PLAIN, NATIVE, COMPILED, JAX, LIGER, QUACK)}
