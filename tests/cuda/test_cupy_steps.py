"""The four steps apart on CuPy's arrays, without a GPU: measure, apply, gradient_sums, gradient, by the engine."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cuda_host
import cupy_on_host
import pytest
from cuda_numpy import RTX
from cupy_on_host import LIBRARY, Host, on_host, viewed
from engine_forms import FORMS

if cupy_on_host.missing() is not None:
    pytest.skip(str(cupy_on_host.missing()), allow_module_level=True)

from steps import check_steps_are_one_pass, passes, same_bits

cupy: Any = importlib.import_module("cupy")

CHUNKED = (4, 30_000)  # sets that no thread group holds, and their length


@pytest.fixture
def host(cuda_programs: Path) -> Iterator[Host]:
    """Let CuPy's arrays be served on the CPU, as on a device with little shared memory."""
    with on_host(cuda_host.launcher(cuda_programs), RTX) as device:
        yield device


@pytest.mark.parametrize("parameters", [("weight", "bias"), ("bias",), ()], ids=["both", "bias", "none"])
@pytest.mark.parametrize("name", ["rows", "rms", "batch", "batch-last", "rms-columns"])
def test_steps_have_the_bits_of_one_pass(name: str, parameters: tuple[str, ...], host: Host) -> None:
    """Of sets in chunks, each step runs the kernels of its half of the pass, and leaves the bits of the pass."""
    found = passes(FORMS[name].case("float32", *CHUNKED, parameters), LIBRARY)
    assert found.engines == ("anynorm_cuda", "anynorm_cuda")
    before = len(host.launches)
    check_steps_are_one_pass(found, LIBRARY)

    kernels = [launch.kernel.name for launch in host.launches[before:]]
    family = kernels[0].partition("_")[0]
    assert kernels[:3] == [f"{family}_measure", "finalize_statistics", f"{family}_apply"]
    assert kernels[3:5] == [f"{family}_gradient_sums", "finalize_gradient_sums"]
    assert kernels[-1] == f"{family}_gradient"
    assert ("parameter_sums" in kernels) == bool(parameters)


@pytest.mark.parametrize("name", ["rows", "batch-last", "group-last"])
def test_y_of_sets_that_are_held(name: str, host: Host) -> None:
    """Of sets that one kernel normalizes, measured and applied apart, y has the bits of the pass, at any alignment."""
    found = passes(FORMS[name].case("float32", 6, 90), LIBRARY)
    x = found.arrays["x"]
    moved = cupy.ndarray((x.size + 1,), x.dtype)[1:].reshape(x.shape)
    viewed(moved)[...] = viewed(x)
    for array in (x, moved):
        found.arrays["x"] = array
        before = len(host.launches)
        assert same_bits(found.applied(found.measured()), found.y, LIBRARY)
        family, kernels = ("rows" if name == "rows" else "columns"), host.launches[before:]
        assert [launch.kernel.name for launch in kernels] == [f"{family}_forward", f"{family}_apply"]
