"""activation="relu" on tensors: what autograd records and differentiates again is the norm followed by torch's ReLU."""

from __future__ import annotations

from typing import Any

import pytest

import anynorm as an

torch: Any = pytest.importorskip("torch")

CALLS: dict[str, Any] = {
    "batch": lambda x, weight, bias, **more: an.batch_norm(x, weight=weight, bias=bias, **more),
    "group": lambda x, weight, bias, **more: an.group_norm(x, 2, weight, bias, **more),
    "instance": lambda x, weight, bias, **more: an.instance_norm(x, weight=weight, bias=bias, **more),
    "given": lambda x, weight, bias, **more: an.batch_norm(
        x, weight=weight, bias=bias, mean=torch.full((4,), 0.3), var=torch.full((4,), 2.0), **more
    ),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
each_engine = pytest.mark.parametrize("fast", [True, False], ids=["engine", "formula"])


def _leaves(dtype: Any = None, last: bool = False) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 4, 6, 7, generator=generator, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    leaves = [x, *[torch.randn(4, generator=generator, dtype=dtype) for _ in range(2)]]
    return [leaf.requires_grad_() for leaf in leaves]


@each_engine
@pytest.mark.parametrize("last", [False, True], ids=["", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@each_call
def test_one_call_is_two(call: Any, dtype: Any, last: bool, fast: bool) -> None:
    """y and all gradients are those of the norm and torch.relu: bit for bit by the engine, else to rounding."""
    leaves = _leaves(dtype, last)
    dy = torch.linspace(-1, 2, leaves[0].numel(), dtype=dtype).reshape(leaves[0].shape)
    with an.fast_paths(fast):
        two = torch.relu(call(*leaves))
        one = call(*leaves, activation="relu")
        expected = torch.autograd.grad(two, leaves, dy)
        found = torch.autograd.grad(one, leaves, dy)
    assert torch.equal(one, two)
    close = {"rtol": 0, "atol": 0} if fast else {}
    torch.testing.assert_close(found, expected, **close)


@each_call
def test_second_gradients(call: Any) -> None:
    """The gradient of a gradient is that of the norm followed by torch.relu."""
    leaves = _leaves(torch.float64)

    def second(function: Any) -> Any:
        (dx,) = torch.autograd.grad(function().square().sum(), leaves[:1], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaves)

    expected = second(lambda: torch.relu(call(*leaves)))
    torch.testing.assert_close(second(lambda: call(*leaves, activation="relu")), expected)


@each_call
def test_a_bias_that_changed_is_noticed(call: Any) -> None:
    """The mask depends on bias: one written to between the passes is autograd's error and not a wrong gradient."""
    x, weight, bias = _leaves()
    y = call(x, weight, bias, activation="relu")
    with torch.no_grad():
        bias += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_call
def test_compiled(call: Any) -> None:
    """torch.compile makes one graph of it, and vmap and grad of torch.func take it."""
    leaves = [leaf.detach() for leaf in _leaves()]
    expected = torch.relu(call(*leaves))
    compiled = torch.compile(lambda *a: call(*a, activation="relu"), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*leaves), expected)
    gradients = torch.func.grad(lambda *a: call(*a, activation="relu").sum(), argnums=(0, 1, 2))(*leaves)
    plain = torch.func.grad(lambda *a: torch.relu(call(*a)).sum(), argnums=(0, 1, 2))(*leaves)
    torch.testing.assert_close(gradients, plain)
