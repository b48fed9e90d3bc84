"""anynorm_torch.nn's layers as torch programs call them: by autocast, compiled, exported, functional, copied."""

from __future__ import annotations

import copy
import io
import re
from contextlib import nullcontext
from typing import Any

import pytest
from torch_compiler import COMPILES
from torch_layers import SETUPS, Setup, check_states_agree, each_setup, one_of_each_kind

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.utils.checkpoint import checkpoint  # noqa: E402

import anynorm_torch.nn  # noqa: E402

pytestmark = COMPILES


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # torch's RMS norm
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@one_of_each_kind
def test_autocast(setup: Setup, dtype: str) -> None:
    """Under autocast on a CPU the result has x's dtype, as torch's has, and keeps its accuracy."""
    ours, theirs = setup.pair()
    x = setup.x(dtype=getattr(torch, dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, array = ours(x), theirs(x)
    assert y.dtype == array.dtype == x.dtype
    torch.testing.assert_close(y, array)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@one_of_each_kind
def test_compile(setup: Setup, training: bool) -> None:
    """torch.compile takes a layer into one graph, gradients and running statistics included."""
    layers = [layer.train(training) for layer in setup.pair()]
    compiled = torch.compile(layers[0], fullgraph=True, backend="aot_eager")
    for step in range(2):
        y, expected = [layer(setup.x(step)) for layer in (compiled, layers[1])]
        torch.testing.assert_close(y, expected)
        for result in (y, expected):
            (result * result.detach().cos()).sum().backward()
    check_states_agree(*layers)
    for mine, array in zip(*[layer.parameters() for layer in layers], strict=True):
        torch.testing.assert_close(mine.grad, array.grad, rtol=1e-4, atol=1e-5)


def test_compile_cumulative_average() -> None:
    """momentum=None, whose weight is counted in a tensor, needs no break of the graph."""
    layers = SETUPS["batch2d-cumulative"].pair()
    compiled = torch.compile(layers[0], fullgraph=True, backend="eager")
    for step in range(3):
        for layer in (compiled, layers[1]):
            layer(SETUPS["batch2d-cumulative"].x(step))
    check_states_agree(*layers)


@each_setup("batch2d", "instance2d-tracked", "layer")
def test_compile_batches_of_other_lengths(setup: Setup) -> None:
    """A compiled layer in training takes shorter batches, where the compiler begins to treat lengths as symbols."""
    layers = setup.pair()
    compiled = torch.compile(layers[0], fullgraph=True, backend="eager")
    for length in (4, 3, 2):
        y, expected = [layer(setup.x(length)[:length]) for layer in (compiled, layers[1])]
        torch.testing.assert_close(y, expected)
    check_states_agree(*layers)


@one_of_each_kind
def test_export(setup: Setup) -> None:
    """torch.export takes a layer in evaluation mode."""
    ours, theirs = [layer.eval() for layer in setup.pair()]
    exported = torch.export.export(ours, (setup.x(),)).module()
    torch.testing.assert_close(exported(setup.x(1)), theirs(setup.x(1)))


@one_of_each_kind
def test_functional_call(setup: Setup) -> None:
    """In evaluation, functional_call under torch.func.vmap and grad gives the gradients per sample of torch's layer."""
    x = torch.stack([setup.x(seed, torch.float64) for seed in range(3)])

    def per_sample(layer: Any) -> Any:
        parameters = {name: named_parameter.detach() for name, named_parameter in layer.named_parameters()}

        def loss(parameters: Any, x: Any) -> Any:
            y = torch.func.functional_call(layer, parameters, (x,))
            return (y * y.detach().cos()).sum()

        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)

    ours, theirs = [per_sample(layer.eval()) for layer in setup.pair(torch.float64)]
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected)


@one_of_each_kind
def test_copies_and_files(setup: Setup) -> None:
    """A deep copy, a replica and a saved layer read back are anynorm's, of the same state, and work alone."""
    ours, _ = setup.pair()
    ours(setup.x())
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    assert set(re.findall(rb"anynorm[\w.]*", file.getvalue())) == {b"anynorm_torch.nn"}
    for copied in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        assert type(copied) is type(ours)
        check_states_agree(copied, ours, rtol=0, atol=0)
        torch.testing.assert_close(copied(setup.x(1)), copy.deepcopy(ours)(setup.x(1)), rtol=0, atol=0)
    assert type(ours._replicate_for_data_parallel()) is type(ours)


@each_setup("group", "batch2d", "instance2d")
def test_channels_last(setup: Setup) -> None:
    """The result of an input in channels_last is in channels_last."""
    ours, theirs = setup.pair()
    x = setup.x().to(memory_format=torch.channels_last)
    y = ours(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, theirs(x))


@each_setup("batch2d", "instance2d-tracked")
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "not-frozen"])
def test_activation_checkpointing(setup: Setup, frozen: bool) -> None:
    """A checkpoint's repeated forward pass updates once more, as torch's layer does, unless statistics are frozen."""
    ours, theirs = setup.pair()
    block = torch.nn.Sequential(ours, torch.nn.Softplus())  # what it saves makes torch repeat the layer to its end

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), anynorm_torch.nn.frozen_statistics(block) if frozen else nullcontext()

    x = setup.x().requires_grad_()
    checkpoint(block, x, use_reentrant=False, context_fn=contexts).square().sum().backward()
    for _ in range(1 if frozen else 2):
        theirs(setup.x())
    check_states_agree(ours, theirs)
    assert x.grad is not None
    assert ours.track_running_stats


def test_frozen_statistics_end() -> None:
    """After the block, also one that an error ended, layers track as before, and those that did not still do not."""
    model = torch.nn.ModuleList([SETUPS[name].pair()[0] for name in ("batch2d", "batch2d-untracked")])
    with pytest.raises(KeyError), anynorm_torch.nn.frozen_statistics(model):  # noqa: PT012
        model[0](SETUPS["batch2d"].x())
        assert model[0].num_batches_tracked == 0
        raise KeyError
    model[0](SETUPS["batch2d"].x())
    assert model[0].num_batches_tracked == 1
    assert not model[1].track_running_stats
