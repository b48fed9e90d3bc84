"""The four steps of executables on tensors apart: measure, apply, gradient_sums, gradient."""

from __future__ import annotations

import numpy as np
import pytest
from engine_forms import FORMS, Form
from engine_runs import SERVED, in_threads
from inputs import Case, verify
from libraries import ALL_DTYPES, LIBRARIES

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("numba", reason="numba is not installed")

from steps import (  # noqa: E402
    check_other_steps,
    check_statistics_of_other_sets,
    check_steps_are_one_pass,
    check_steps_write_out,
    passes,
    same_bits,
)

import anynorm as an  # noqa: E402
from anynorm._core.dispatch import bound  # noqa: E402
from anynorm.backend import Statistics  # noqa: E402

TORCH = LIBRARIES["torch"]

each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@each_form
@each_dtype
def test_steps_have_the_bits_of_one_pass(form: Form, dtype: str) -> None:
    """Measured and applied apart, y is that of the forward pass; so are the gradients, summed and written apart."""
    for sets, length, threads in ((31, 90, 1), (2, 9001, 3)):
        with in_threads(threads):
            found = passes(form.case(dtype, sets, length), TORCH)
            assert found.engines == (SERVED, SERVED)
            check_steps_are_one_pass(found, TORCH)


def test_statistics_of_another_origin() -> None:
    """Statistics that no engine measured are applied within the bound, whatever their dtype."""
    case = FORMS["rows"].case("float32", 20, 90)
    found = passes(case, TORCH)
    n, mean, correction, m2, scale = found.measured()
    wider = [field.double() for field in (mean, correction, m2, scale)]
    for statistics in (Statistics(n, mean, correction, m2, scale), Statistics(n, *wider)):
        verify(TORCH.to_numpy(found.applied(statistics)), case.arrays["x"], case.reference())


def test_a_dy_in_another_layout() -> None:
    """A dy that the kernels cannot read as it lies has the gradients of its copy, in steps too."""
    case = FORMS["batch"].case("float32", 20, 90)
    whole = passes(case, TORCH)
    other = passes(case, TORCH, whole.dy.transpose(0, 2).contiguous().transpose(0, 2))
    assert other.dy.stride() != whole.dy.stride()
    check_steps_are_one_pass(other, TORCH)
    assert same_bits(other.gradients[0], whole.gradients[0], TORCH)


def test_steps_of_what_requires_grad() -> None:
    """Where a gradient is wanted, the steps are recorded: y by them has the gradient of y in one pass."""
    found = passes(FORMS["rows"].case("float64", 20, 90), TORCH)
    x, weight, bias = [found.arrays[name].clone().requires_grad_() for name in ("x", "weight", "bias")]
    executable = bound(an.layer_norm, (x, weight, bias), {}).entry.executable
    y = executable.apply(x, weight, bias, found.eps, executable.measure(x, found.eps), None)
    assert executable.engine == SERVED
    for apart, whole in zip(torch.autograd.grad(y, (x, weight, bias), found.dy), found.gradients, strict=True):
        torch.testing.assert_close(apart, whole, rtol=1e-10, atol=1e-10)


@each_form
@each_dtype
def test_steps_write_out_and_those_of_the_other_pass(form: Form, dtype: str) -> None:
    """Steps write into what they are given; an executable's other steps are the formula's."""
    found = passes(form.case(dtype, 30, 90), TORCH)
    check_steps_write_out(found, TORCH)
    check_other_steps(found, TORCH)


def test_statistics_of_other_sets() -> None:
    """Statistics that were measured of other sets, in another dtype, or replaced, are no residuals of the engine."""
    check_statistics_of_other_sets(FORMS["rows"].case, TORCH)


def test_parameters_that_the_plan_has_not() -> None:
    """Steps without a weight where the plan has one are the formula's."""
    case = FORMS["rows"].case("float32", 20, 90)
    bare = Case(case.norm, {"x": case.arrays["x"]})
    full, none = passes(case, TORCH), passes(bare, TORCH)
    x = full.arrays["x"]
    without = full.launch.apply(x, None, None, full.eps, full.measured(), None)
    torch.testing.assert_close(without, none.y, rtol=1e-5, atol=1e-5)
    sums = [found.gradient.gradient_sums(found.dy, x, None, found.residuals) for found in (full, none)]
    torch.testing.assert_close(sums[0].g.double(), sums[1].g, rtol=1e-5, atol=1e-4)


def test_wide_statistics_of_a_large_mean() -> None:
    """What a float64 mean loses as float32 goes into its correction."""
    x = np.random.default_rng(2).normal(1e6, 1, size=(6, 90)).astype(np.float32)
    case = Case(FORMS["rows"].case("float32", 6, 90, ()).norm, {"x": x})
    exact = x.astype(np.float64)
    mean = exact.mean(axis=1, keepdims=True)
    fields = [mean, np.zeros_like(mean), ((exact - mean) ** 2).sum(axis=1, keepdims=True), np.ones_like(mean)]
    found = passes(case, TORCH).applied(Statistics(90, *[torch.from_numpy(field) for field in fields]))
    verify(TORCH.to_numpy(found), x, case.reference())
