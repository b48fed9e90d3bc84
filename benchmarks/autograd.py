"""python -m benchmarks autograd: what recording an operation for torch's autograd takes, in every supported way.

Each way makes an operation of x, weight and bias that computes nothing: its results are new memory. So a row is what
the way itself costs of a call, and of a call with its backward pass, beside torch's own layer norm, which computes too.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.timing import interleaved

SHAPE = (8, 64)
_SECONDS = 0.002


class Row(NamedTuple):
    """Microseconds of a call, and of a call and its backward pass; and these divided by torch's own."""

    way: str
    forward: float
    both: float
    forward_ratio: float
    both_ratio: float


def measure(rounds: int) -> Iterator[Row]:
    """Time every way in turn with torch's own layer norm, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.randn(SHAPE, requires_grad=True)
    weight, bias = [torch.nn.Parameter(torch.ones(SHAPE[-1])) for _ in range(2)]
    dy = torch.randn(SHAPE)

    def with_backward(call: Callable[..., Tensor]) -> Callable[[], None]:
        def both() -> None:
            call(x, weight, bias).backward(dy)  # type: ignore[no-untyped-call]
            x.grad = weight.grad = bias.grad = None

        return both

    own = _own()
    for name, way in ways().items():
        forward = interleaved(partial(way, x, weight, bias), partial(own, x, weight, bias), **_at(rounds))
        both = interleaved(with_backward(way), with_backward(own), **_at(rounds))
        yield Row(name, forward.ours * 1e6, both.ours * 1e6, 1 / forward.ratio, 1 / both.ratio)
    torch.set_num_threads(threads)


def _at(rounds: int) -> dict[str, Any]:
    return {"rounds": rounds, "at_least": _SECONDS}


def _own() -> Callable[..., Tensor]:
    return lambda x, weight, bias: torch.nn.functional.layer_norm(x, SHAPE[-1:], weight, bias)


def ways() -> dict[str, Callable[..., Tensor]]:
    """Return an operation that computes nothing, by how it is recorded; and two that compute."""
    import anynorm

    return {
        "torch's layer norm": _own(),
        "anynorm's layer norm": anynorm.layer_norm,
        "Function, called as anynorm does": _function(direct=True),
        "Function.apply": _function(),
        "Function that saves nothing": _function(direct=True, saves=False),
        "Function, set_materialize_grads(False)": _function(direct=True, materializes=False),
        "Function, once_differentiable": _function(direct=True, once=True),
        "Library.impl for AutogradCPU, of a Function": _library(),
        "custom_op, register_autograd": _custom(),
    }


def _gradients(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _function(
    *, direct: bool = False, saves: bool = True, materializes: bool = True, once: bool = False
) -> Callable[..., Tensor]:
    """Return an `autograd.Function`'s apply; `direct` is without the wrapper that looks for functional transforms."""
    kept = torch.empty(SHAPE), torch.empty(SHAPE[-1])

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG004
            if saves:
                ctx.save_for_backward(x, weight)
            if not materializes:
                ctx.set_materialize_grads(False)
            return torch.empty_like(x)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Any:  # noqa: ARG004
            return _gradients(*(ctx.saved_tensors if saves else kept))

    if once:
        decorated: Any = torch.autograd.function.once_differentiable(Nothing.backward)
        Nothing.backward = staticmethod(decorated)  # type: ignore[method-assign]
    apply: Any = super(torch.autograd.Function, Nothing).apply if direct else Nothing.apply
    return apply  # type: ignore[no-any-return]


_library_of_ops: list[torch.library.Library] = []  # an operator lives as long as the library that defines it


def _library() -> Callable[..., Tensor]:
    function = _function(direct=True)
    if not _library_of_ops:
        library: Any = torch.library.Library("anynorm_benchmark", "DEF")  # type: ignore[no-untyped-call]
        _library_of_ops.append(library)
        library.define("nothing(Tensor x, Tensor weight, Tensor bias) -> Tensor")
        library.impl("nothing", lambda x, weight, bias: torch.empty_like(x), "CPU")  # noqa: ARG005
        library.impl("nothing", function, "AutogradCPU")
    operator: Callable[..., Tensor] = torch.ops.anynorm_benchmark.nothing.default
    return operator


def _custom() -> Callable[..., Tensor]:
    def nothing(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
        return torch.empty_like(x)

    def save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
        ctx.save_for_backward(*inputs[:2])

    schema = "(Tensor x, Tensor weight, Tensor bias) -> Tensor"
    operator = torch.library.custom_op("anynorm_benchmark::custom", nothing, mutates_args=(), schema=schema)
    operator.register_fake(nothing)
    operator.register_autograd(lambda ctx, dy: _gradients(*ctx.saved_tensors), setup_context=save)  # noqa: ARG005
    return operator


def report(rows: Iterator[Row]) -> None:
    """Print the table as it comes."""
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, x of {SHAPE}")
    print(f"{'way':46}{'forward µs':>11}{'/ torch':>9}{'both µs':>9}{'/ torch':>9}")
    for row in rows:
        times = f"{row.forward:11.1f}{row.forward_ratio:9.2f}{row.both:9.1f}{row.both_ratio:9.2f}"
        print(f"{row.way:46}{times}", flush=True)
