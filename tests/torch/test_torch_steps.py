"""The four steps of executables on tensors apart: measure, apply, gradient_sums, gradient."""

from __future__ import annotations

import pytest
from engine_forms import FORMS, Form
from engine_runs import SERVED, in_threads
from inputs import verify
from libraries import ALL_DTYPES, LIBRARIES

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("numba", reason="numba is not installed")

from steps import check_steps_are_one_pass, passes, same_bits  # noqa: E402

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
