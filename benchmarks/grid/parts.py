"""Which calls belong to which part of the grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.grid import common, layers
from benchmarks.grid.case import Case


def of(part: str) -> Iterator[Case]:
    """Yield the calls of a part. Only the libraries that it needs are imported."""
    if part in ("numpy", "numpy_alone"):
        library = replace(common.NUMPY, name=part)
        yield from common.everything(library)
        yield from layers.cases(library)
    elif part == "torch":
        from benchmarks.grid import torch_calls

        yield from torch_calls.cases()
        yield from layers.cases(torch_calls.TORCH)
    elif part == "errors":
        from benchmarks.grid import wrong

        yield from wrong.cases()
    else:
        from benchmarks.grid import lazy_calls

        yield from {"jax": lazy_calls.jax_cases, "dask": lazy_calls.dask_cases, "strict": lazy_calls.strict_cases}[
            part
        ]()
