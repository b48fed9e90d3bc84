"""Gradients as torch defines them: its own operators and sample inputs, differentiated in float64 by its autograd.

These guard the meaning of an argument, on each way that a call can take; accuracy in every dtype is test_vjp.py's.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
from gradients import NAMES, cotangent, exact_gradients, pull, verify_gradients
from inputs import Case, Norm
from libraries import BOTH_NUMPY, ArrayLibrary, NumPyArray, each_library_and_dtype, numpy_dtype

torch = pytest.importorskip("torch", reason="torch is not installed")

OPERATORS = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm")


def _arguments(operator: str, sample: Any) -> dict[str, Any]:
    """Return the arguments of one of torch's samples by torch's own names."""
    if operator == "rms_norm":
        names = ("input", "normalized_shape", "weight", "eps")
        return {**dict(zip(names, (sample.input, *sample.args), strict=False)), **sample.kwargs}
    signature = inspect.signature(getattr(torch.nn.functional, operator))
    return {**signature.bind(sample.input, *sample.args, **sample.kwargs).arguments}


def _outside_the_rules(operator: str, given: dict[str, Any]) -> bool:
    """Say whether a sample of torch's is an error in anynorm. Nothing else is left out."""
    x = given["input"]
    negative = (given.get("eps") or 0) < 0
    return negative or (
        operator == "batch_norm" and (x.ndim < 2 or (bool(given.get("training")) and x.numel() == x.shape[1]))
    )


def _narrowed(operator: str, given: dict[str, Any], dtype: str) -> dict[str, NumPyArray]:
    """Return the arrays among the arguments as NumPy's, rounded to a dtype, by anynorm's names."""
    names = {"input": "x", "weight": "weight", "bias": "bias"}
    if operator == "batch_norm" and not given.get("training"):
        names |= {"running_mean": "mean", "running_var": "var"}
    tensors = {ours: given.get(theirs) for theirs, ours in names.items()}
    return {
        name: tensor.detach().numpy().astype(numpy_dtype(dtype))
        for name, tensor in tensors.items()
        if tensor is not None
    }


def _norm(operator: str, given: dict[str, Any]) -> Norm:
    """Return how anynorm spells a call of torch's."""
    options = {"eps": given["eps"]} if given.get("eps") is not None else {}
    if "normalized_shape" in given:
        options["axis"] = tuple(range(-len(given["normalized_shape"]), 0))
    groups = (given["num_groups"],) if "num_groups" in given else ()
    return Norm("", operator, options, {}, groups)


def _by_torch(operator: str, given: dict[str, Any], case: Case, dy: NumPyArray) -> dict[str, NumPyArray]:
    """Return the gradients of torch's own operator in float64, on the very numbers of the case."""
    wide = {name: torch.from_numpy(tensor.astype("float64")) for name, tensor in case.arrays.items()}
    leaves = {name: wide[name].requires_grad_() for name in NAMES if name in wide}
    theirs = {"input": "x", "weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    arguments = given | {name: wide.get(ours) for name, ours in theirs.items() if name in given}
    y = getattr(torch.nn.functional, operator)(arguments.pop("input"), **arguments)
    found = torch.autograd.grad(y, list(leaves.values()), torch.from_numpy(dy.astype("float64")))
    return {name: result.numpy() for name, result in zip(leaves, found, strict=True)}


# torch imports its own deprecated modules.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.feature("gradients")
@pytest.mark.parametrize("operator", OPERATORS)
@each_library_and_dtype([*BOTH_NUMPY, "torch", "jax", "strict_CPU_DEVICE", "cupy", "torch_cuda"], ["float32"])
def test_torch_sample_inputs(library: ArrayLibrary, dtype: str, operator: str) -> None:
    """On torch's own sample inputs, vjp is within the bound of torch's autograd in float64 on the same numbers."""
    pytest.importorskip("expecttest", reason="expecttest, which torch's sample inputs need, is not installed")
    op_db = importlib.import_module("torch.testing._internal.common_methods_invocations").op_db
    (op,) = [op for op in op_db if op.name == f"nn.functional.{operator}" and not op.variant_test_name]
    compared = 0
    for sample in op.sample_inputs("cpu", torch.float64):
        given = _arguments(operator, sample)
        if _outside_the_rules(operator, given):
            continue
        if operator == "rms_norm":
            given["eps"] = given.get("eps") or 1e-5  # torch's default depends on the dtype
        case = Case(_norm(operator, given), _narrowed(operator, given, dtype))
        dy = cotangent(case)
        reference = exact_gradients(case, dy, case.flushes(library))
        by_torch = _by_torch(operator, given, case, dy)
        judged = reference._replace(
            **{name: getattr(reference, name)._replace(exact=value) for name, value in by_torch.items()}
        )
        verify_gradients(pull(case, library, dy), case, judged)
        compared += 1
        if library.family == "jax" and compared == 2:
            break  # JAX compiles each of them
    assert compared
