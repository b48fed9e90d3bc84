"""Layers taken by what their forward computes: copied, written to files, compiled, exported and mapped."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
from torch_compiler import COMPILES

torch = pytest.importorskip("torch", reason="torch is not installed")

from norm_conventions import each_convention, layer_and_input  # noqa: E402

from anynorm_torch.nn import accelerate  # noqa: E402

pytestmark = COMPILES


@each_convention
def test_copies_and_files(name: str) -> None:
    """A copy and a file of a taken layer are taken too, a state goes both ways, and undo gives the class back."""
    layer, inputs = layer_and_input(name)
    state = layer.state_dict()
    acceleration = accelerate(layer)
    expected = layer.eval()(*inputs)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert type(other) is type(layer)
        assert torch.equal(other(*inputs), expected)
    assert layer.state_dict().keys() == state.keys()
    layer.load_state_dict(state)
    acceleration.undo()
    layer.load_state_dict(state)


@each_convention
def test_compiles_and_exports(name: str) -> None:
    """A taken layer goes into one graph, compiled and exported, in training and evaluation."""
    layer, inputs = layer_and_input(name)
    accelerate(layer)
    for training in (True, False):
        layer.train(training)
        with torch.no_grad():
            expected = copy.deepcopy(layer)(*inputs)
            compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)(*inputs)
        torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5)
    exported = torch.export.export(layer.eval(), tuple(inputs)).module()(*inputs)
    torch.testing.assert_close(exported, layer(*inputs), rtol=0, atol=1e-5)
    mapped = torch.func.vmap(layer)(*[torch.stack([x, x + 1]) for x in inputs])
    torch.testing.assert_close(mapped[1], layer(*[x + 1 for x in inputs]), rtol=0, atol=1e-5)
