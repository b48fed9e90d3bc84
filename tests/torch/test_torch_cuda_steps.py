"""The four steps apart on tensors that count as a device's: measure, apply, gradient_sums, gradient, by the engine."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cuda_host
import numpy as np
import pytest
import torch_on_device
from cuda_numpy import RTX
from engine_forms import FORMS, Form
from gradients import exact_gradients, verify_gradients
from inputs import Case, Norm, verify
from torch_on_device import TORCH, Seen, on_device

if torch_on_device.missing() is not None:
    pytest.skip(str(torch_on_device.missing()), allow_module_level=True)

from steps import Passes, check_steps_are_one_pass, passes, same_bits

import anynorm as an
from anynorm._core.dispatch import bound
from anynorm.backend import Statistics

torch: Any = importlib.import_module("torch")

each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

# Sets and their length: a thread group holds the first, chunks of a small device the second.
HELD, CHUNKED = (6, 90), (4, 30_000)


@pytest.fixture
def seen(cuda_programs: Path) -> Iterator[Seen]:
    """Let tensors count as those of a device with little shared memory."""
    with on_device(cuda_host.launcher(cuda_programs), RTX) as device:
        yield device


def ran(seen: Seen, found: Passes) -> list[str]:
    """Return the kernels that the steps of a case run, y and dx checked to be those of the passes."""
    before = len(seen.launches)
    check_steps_are_one_pass(found, TORCH)
    return seen.ran[before:]


@each_form
def test_steps_have_the_bits_of_one_pass(form: Form, seen: Seen) -> None:
    """Of sets in chunks, each step runs the kernels of its half of the pass, and leaves the bits of the pass."""
    found = passes(form.case("float32", *CHUNKED), TORCH)
    assert found.engines == ("anynorm_cuda", "anynorm_cuda")
    kernels = ran(seen, found)

    family = kernels[0].partition("_")[0]
    first, second = (
        [f"{family}_measure", "finalize_statistics", f"{family}_apply"],
        [f"{family}_gradient_sums", "finalize_gradient_sums", "parameter_sums", f"{family}_gradient"],
    )
    if form.name in ("rows", "rms"):  # whose weight lies along lines too long for one thread group
        second.insert(2, "long_parameters")
    assert kernels == first + second


@each_form
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_of_sets_that_are_held(form: Form, dtype: str, seen: Seen) -> None:
    """Of sets that one kernel normalizes, y by the steps has the bits of the pass; gradients are the formula's."""
    case = form.case(dtype, *HELD)
    found = passes(case, TORCH)
    before = len(seen.launches)
    y = found.applied(found.measured())
    kernels = seen.ran[before:]
    sums = found.sums()
    dx = found.dx(sums)

    family = kernels[0].partition("_")[0]
    assert kernels == [f"{family}_forward", f"{family}_apply"]
    assert seen.ran[before:] == kernels
    assert same_bits(y, found.y, TORCH)
    dy = TORCH.to_numpy(found.dy)
    gradients = [
        TORCH.to_numpy(gradient).reshape(case.arrays[name].shape).astype(case.arrays[name].dtype)
        for name, gradient in (("x", dx), ("weight", sums.dweight), ("bias", sums.dbias))
    ]
    verify_gradients(an.Gradients(*gradients), case, exact_gradients(case, dy))


def test_statistics_of_another_origin(seen: Seen) -> None:
    """Statistics that no engine measured are applied by the engine within the bound, whatever their dtype and eps."""
    case = FORMS["batch-last"].case("float32", *HELD)
    found = passes(case, TORCH)
    n, *fields = found.measured()
    before = len(seen.launches)
    for statistics in (Statistics(n, *fields), Statistics(n, *[field.double() for field in fields])):
        verify(TORCH.to_numpy(found.applied(statistics)), case.arrays["x"], case.reference())
    assert seen.ran[before:] == ["columns_apply"] * 2


def test_statistics_in_another_order_than_memory(seen: Seen) -> None:
    """Statistics and sums reach the sets they are of where axes have another order in memory than in the shape."""
    x = np.random.default_rng(0).normal(3, 2, size=(5, 7, 20_000)).astype("float32").transpose(2, 1, 0)
    case = Case(Norm("permuted", "layer_norm", {"axis": 0}), {"x": x})
    found = passes(case, TORCH)
    assert found.arrays["x"].stride() == (1, 20_000, 140_000)
    assert found.engines == ("anynorm_cuda", "anynorm_cuda")
    assert "finalize_gradient_sums" in ran(seen, found)
    n, *fields = found.measured()
    verify(TORCH.to_numpy(found.applied(Statistics(n, *fields))), case.arrays["x"], case.reference())


def test_a_dy_in_another_layout(seen: Seen) -> None:
    """A dy that the kernels cannot read as it lies is copied in the steps too."""
    case = FORMS["batch"].case("float32", *CHUNKED)
    whole = passes(case, TORCH)
    other = passes(case, TORCH, whole.dy.transpose(0, 2).contiguous().transpose(0, 2))
    assert other.dy.stride() != whole.dy.stride()
    assert "rows_gradient" in ran(seen, other)
    assert same_bits(other.gradients[0], whole.gradients[0], TORCH)


def test_out(seen: Seen) -> None:
    """y and dx go into `out`, whose version counts the write, and the caller's stream is told of to the residuals."""
    found = passes(FORMS["rows"].case("float32", *CHUNKED), TORCH)
    x, weight, bias = [found.arrays[name] for name in ("x", "weight", "bias")]
    y, dx = torch.empty_like(x), torch.empty_like(x)
    assert found.launch.apply(x, weight, bias, found.eps, found.measured(), y) is y
    before = len(seen.used)
    assert found.gradient.gradient(found.dy, x, weight, found.residuals, found.sums(), dx) is dx
    assert same_bits(y, found.y, TORCH)
    assert same_bits(dx, found.gradients[0], TORCH)
    assert (y._version, dx._version) == (1, 1)
    assert [tensor.data_ptr() for tensor in seen.used[before:]] == [found.residuals.array.data_ptr()] * 2


@pytest.mark.parametrize("step", ["measured", "applied", "sums", "dx"])
def test_a_refused_kernel(step: str, seen: Seen) -> None:
    """Where the device refuses a kernel of a step, the formula serves it, and says why from then on."""
    found = passes(FORMS["rows"].case("float32", *CHUNKED), TORCH)
    statistics, sums = found.measured(), found.sums()
    arguments = {"applied": (statistics,), "dx": (sums,)}.get(step, ())
    seen.fails = {"launch": RuntimeError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources")}
    name = {"measured": "measure", "applied": "apply", "sums": "gradient_sums", "dx": "gradient"}[step]
    with mock.patch(f"anynorm._core.formula.{name}", return_value="by the formula"):
        assert getattr(found, step)(*arguments) == "by the formula"
    served = found.launch if step in ("measured", "applied") else found.gradient
    assert served.engine == "formula"
    assert "OUT_OF_RESOURCES" in str(served.reason)


@pytest.mark.usefixtures("seen")
def test_steps_of_what_requires_grad() -> None:
    """Where a gradient is wanted, the steps are recorded: y by them has the gradient of y in one pass."""
    found = passes(FORMS["rows"].case("float32", 20, 90), TORCH)
    x, weight, bias = [found.arrays[name].clone().requires_grad_() for name in ("x", "weight", "bias")]
    executable = bound(an.layer_norm, (x, weight, bias), {}).entry.executable
    y = executable.apply(x, weight, bias, found.eps, executable.measure(x, found.eps), None)
    assert executable.engine == "anynorm_cuda"
    for apart, whole in zip(torch.autograd.grad(y, (x, weight, bias), found.dy), found.gradients, strict=True):
        torch.testing.assert_close(apart, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [HELD[1], CHUNKED[1]], ids=["held", "chunks"])
@pytest.mark.parametrize("name", ["batch", "batch-last"])
def test_where_statistics_are_given(name: str, length: int, seen: Seen) -> None:
    """What normalizes with given statistics measures x and applies any statistics with the bits of what measures."""
    case = FORMS[name].case("float32", 4, length)
    own = passes(case, TORCH)
    statistics = {key: np.ones(4, "float32") for key in ("mean", "var")}
    given = passes(Case(case.norm, case.arrays | statistics), TORCH)
    assert given.launch.plan.given
    before = len(seen.launches)
    assert same_bits(given.applied(given.measured()), own.y, TORCH)
    family = "rows" if name == "batch" else "columns"
    measure = [f"{family}_forward"] if length == HELD[1] else [f"{family}_measure", "finalize_statistics"]
    assert seen.ran[before:] == [*measure, f"{family}_apply"]
