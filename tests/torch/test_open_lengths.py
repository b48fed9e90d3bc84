"""Lengths that torch.compile and torch.export leave open: one graph for all of them, and the contract at each.

Fixed lengths, and what large sets lose in machine code, are test_ways_torch.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from inputs import Case, Norm, verify
from libraries import ArrayLibrary, each_library
from torch_compiler import COMPILES

import anynorm as an

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = COMPILES

on_torch = each_library(["torch"])


@pytest.fixture(autouse=True)
def first_tensor(fresh_compiler: None) -> None:  # noqa: ARG001
    """Let anynorm meet a tensor, as the first one costs a graph."""
    an.layer_norm(torch.ones(2))


# Norms with the axes of (N, C, H, W) of which torch leaves the length open, all of them reduced but the first.
OPEN = {
    "batch": (Norm("batch", "batch_norm"), (0,)),
    "batch-images": (Norm("batch", "batch_norm"), (0, 2, 3)),
    "batch-last": (Norm("batch", "batch_norm", {"channel_axis": -1}), (0, 1, 2)),
    "layer": (Norm("layer", "layer_norm"), (0, 3)),
    "layer-leading": (Norm("layer", "layer_norm", {"axis": (0, 1)}), (0, 1)),
    "rms": (Norm("rms", "rms_norm"), (3,)),
    "group": (Norm("group", "group_norm", groups=(2,)), (0, 2, 3)),
    "instance": (Norm("instance", "instance_norm"), (0, 2, 3)),
}

# On both sides of whatever a sum in blocks may decide by; the first is the one that is traced.
SIZES = ((6, 4, 9, 7), (2, 4, 2, 2), (33, 4, 3, 64), (64, 4, 8, 65), (3, 4, 40, 100), (5, 4, 2, 2049), (1100, 4, 2, 3))


# float64 takes another way, which is slow to compile.
each_open = pytest.mark.parametrize(
    ("kind", "dtype"), [*[(kind, "float32") for kind in OPEN], ("batch-images", "float64"), ("layer", "float64")]
)


def _open_cases(kind: str, dtype: str) -> Iterator[Case]:
    """Yield cases whose shapes differ along the open axes alone."""
    norm, axes = OPEN[kind]
    for sizes in SIZES:
        shape = [
            size if axis in axes else first for axis, (size, first) in enumerate(zip(sizes, SIZES[0], strict=True))
        ]
        yield Case(norm, {"x": np.random.default_rng(5).normal(300, 2, size=shape).astype(dtype)})


@pytest.mark.feature("compiled")
@each_open
@on_torch
def test_compile_with_open_lengths(library: ArrayLibrary, kind: str, dtype: str) -> None:
    """With dynamic=True one graph serves all lengths, reduced ones too, and the contract holds at each."""
    graphs = []

    def counting(graph: Any, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    first, *others = _open_cases(kind, dtype)
    compiled = torch.compile(first.function(), fullgraph=True, backend=counting, dynamic=True)
    for case in (first, *others):
        verify(library.to_numpy(compiled(library.make_all(case.arrays))), case.arrays["x"], case.reference())
    assert len(graphs) == 1


@pytest.mark.feature("compiled")
@on_torch
def test_compile_images_of_many_sizes(library: ArrayLibrary) -> None:
    """Left to itself torch compiles anew for the second size, and then no more."""
    graphs = []

    def counting(graph: Any, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    compiled = torch.compile(an.batch_norm, fullgraph=True, backend=counting)
    for size in (20, 33, 32, 57, 64, 65, 100, 3, 224):
        x = library.make(np.random.default_rng(size).normal(300, 2, size=(size % 7 + 2, 3, size, size + 1)))
        torch.testing.assert_close(compiled(x), an.batch_norm(x), rtol=1e-9, atol=1e-9)
    assert len(graphs) == 2


class Calling(torch.nn.Module):  # type: ignore[misc]
    """A function as a module, which is what torch.export takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """Call it."""
        return self.function(*args)


@pytest.mark.feature("compiled")
@each_open
@on_torch
def test_export_with_open_lengths(library: ArrayLibrary, kind: str, dtype: str) -> None:
    """torch.export takes open lengths, reduced ones too, and the program keeps the contract at each, as eager does."""
    first, *others = _open_cases(kind, dtype)
    lengths = {axis: torch.export.Dim(f"length{axis}") for axis in OPEN[kind][1]}
    shapes = {"args": ({"x": lengths},)}
    exported = torch.export.export(Calling(first.function()), (library.make_all(first.arrays),), dynamic_shapes=shapes)
    program = exported.module()
    for case in (first, *others):
        for y in (program(library.make_all(case.arrays)), case.run(library)):
            verify(library.to_numpy(y), case.arrays["x"], case.reference())


@pytest.mark.feature("compiled")
@pytest.mark.parametrize("strict", [False, True], ids=["fake", "dynamo"])
@on_torch
def test_export_a_training_step(library: ArrayLibrary, strict: bool) -> None:
    """A step that merges and tracks moments exports with an open batch, whose length is then their n."""

    def step(x: Any, mean: Any, var: Any) -> Any:
        y, batch = an.batch_norm(x, return_moments=True)
        return y, *an.update_running(mean, var, batch + batch)

    def arguments(length: int) -> tuple[Any, ...]:
        x = np.random.default_rng(length).normal(3, 2, size=(length, 4, 3))
        return tuple(library.make(tensor) for tensor in (x, np.zeros(4), np.ones(4)))

    shapes = {"args": ({0: torch.export.Dim("length")}, None, None)}
    exported = torch.export.export(Calling(step), arguments(6), dynamic_shapes=shapes, strict=strict).module()
    for length in (2, 6, 65, 300):
        torch.testing.assert_close(exported(*arguments(length)), step(*arguments(length)), rtol=1e-9, atol=1e-9)


@pytest.mark.feature("compiled")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@on_torch
def test_poison_stays_in_its_set_of_open_length(library: ArrayLibrary, dtype: str) -> None:
    """Where lengths are open too, a NaN or infinity leaves every bit of the other sets."""
    compiled = torch.compile(an.layer_norm, fullgraph=True, backend="aot_eager", dynamic=True)
    x = np.random.default_rng(5).normal(300, 2, size=(3, 71)).astype(dtype)
    clean = library.to_numpy(compiled(library.make(x.copy())))
    for poison in (np.nan, np.inf):
        x[1, -1] = poison
        y = library.to_numpy(compiled(library.make(x.copy())))
        assert np.isnan(y[1]).all()
        assert y[[0, 2]].tobytes() == clean[[0, 2]].tobytes()
