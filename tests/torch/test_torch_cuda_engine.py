"""torch tensors through the CUDA engine, its kernels run on the CPU: what the adapter hands over, and the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda_host
import numpy as np
import pytest
import torch_on_device
from gradients import cotangent, exact_gradients
from inputs import NORMS, Case, make_case, verify
from layouts import STRIDED
from libraries import numpy_dtype
from torch_on_device import TORCH, explained, judge, on_device

import anynorm as an

torch: Any = pytest.importorskip("torch")

if torch_on_device.missing() is not None:
    pytest.skip(str(torch_on_device.missing()), allow_module_level=True)

DTYPES = ("float32", "bfloat16", "float16")
BY_NAME = {norm.name: norm for norm in NORMS}
EACH = ("layer", "rms", "group", "instance", "batch")
ORDERS: tuple[cuda_host.Order, ...] = ("forward", "backward")


@pytest.fixture
def launch(cuda_programs: Path) -> Callable[..., None]:
    """Return what runs a kernel on the CPU."""
    return cuda_host.launcher(cuda_programs)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EACH)
def test_norms(name: str, dtype: str, order: cuda_host.Order, cuda_programs: Path) -> None:
    """Every norm is within the bounds, and so are its gradients, whichever threads go first."""
    case = make_case(BY_NAME[name], dtype)
    with on_device(cuda_host.launcher(cuda_programs, order=order)) as seen:
        assert explained(case, TORCH.make_all(case.arrays)) == ("anynorm_cuda", None)
        judge(case)
    assert [len(config.view.strides) for config in seen.configs] == [2, 3]


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in EACH])
def test_other_axes(name: str, launch: Callable[..., None]) -> None:
    """So is a norm over other axes, whoever serves it: what the kernels have not, the formula has."""
    case = make_case(BY_NAME[name], "float32", parameters="float16")
    with on_device(launch) as seen:
        path = explained(case, TORCH.make_all(case.arrays)).path
        judge(case)
    assert bool(seen.configs) == (path == "anynorm_cuda")


@pytest.mark.parametrize("layout", STRIDED)
@pytest.mark.parametrize("name", EACH)
def test_layouts(name: str, layout: str, launch: Callable[..., None]) -> None:
    """However x lies, results are within the bounds, and y and dx lie as torch's own would."""
    case = make_case(BY_NAME[name], "bfloat16", parameters="float32")
    x = torch_laid(case.arrays["x"], layout)
    arrays = TORCH.make_all(case.arrays) | {"x": x}
    with on_device(launch):
        judge(case, arrays)
        y, found = torch_on_device.recorded(case, arrays, torch.ones_like(x))
    assert y.stride() == found.x.stride() == torch.empty_like(x).stride()


def torch_laid(x: Any, layout: str) -> Any:
    """Return a tensor of NumPy's numbers in a layout of NumPy's."""
    wide = STRIDED[layout](x.astype(np.float32))
    strides = [step // 4 for step in wide.strides]
    memory = torch.full((1 + sum((n - 1) * step for n, step in zip(x.shape, strides, strict=True)),), torch.nan)
    tensor = memory.to(TORCH.make(x).dtype).as_strided(x.shape, strides)
    return tensor.copy_(TORCH.make(x))


# The adapter reads an address the same way for every norm; each alignment of each kernel is test_cuda_moves.py's.
SHIFTS = (("layer", 1), ("layer", 4), ("rms", 2), ("group", 4), ("instance", 1), ("batch", 2))


@pytest.mark.parametrize(("name", "shift"), SHIFTS)
def test_alignment(name: str, shift: int, launch: Callable[..., None]) -> None:
    """Tensors may begin anywhere: at addresses of which kernels can read few bytes at once."""
    case = make_case(BY_NAME[name], "float16")
    shifted = {name: shifted_by(shift, array) for name, array in TORCH.make_all(case.arrays).items()}
    with on_device(launch) as seen:
        judge(case)
        judge(case, shifted)
        judge(case, TORCH.make_all(case.arrays) | {"weight": shifted.get("weight")})
    assert len(seen.configs) == 6


def shifted_by(elements: int, tensor: Any) -> Any:
    """Return a copy of a tensor so many elements behind an address that any number of bytes can be read at."""
    memory = torch.empty(tensor.numel() + elements, dtype=tensor.dtype)
    return memory[elements:].reshape(tensor.shape).copy_(tensor)


def test_rows_of_uneven_length(launch: Callable[..., None]) -> None:
    """Lines that begin where no vector may be read are read as they lie: of channels, of groups, of a part of a row."""
    shapes: dict[str, tuple[int, ...]] = {"layer": (5, 9), "group": (3, 6, 7), "group-last": (3, 12), "rms": (4, 3)}
    for name, shape in shapes.items():
        case = make_case(BY_NAME[name], "float16")
        numbers = np.random.default_rng(1).normal(size=shape).astype(np.float16)
        length = shape[-1] if name != "group" else shape[1]
        of = {name: np.resize(array, length) for name, array in case.arrays.items() if name != "x"}
        with on_device(launch) as seen:
            judge(Case(case.norm, {"x": numbers, **of}))
        assert len(seen.configs) == 2, name


@pytest.mark.parametrize("parameters", ["float64", "float32", "float16"])
def test_dtypes_of_parameters(parameters: str, launch: Callable[..., None]) -> None:
    """Weight and bias are taken in their own dtype, in which their gradients come."""
    case = make_case(BY_NAME["layer"], "bfloat16", parameters=parameters)
    arrays = case.arrays | {"bias": case.arrays["bias"].astype(numpy_dtype("bfloat16"))}
    with on_device(launch) as seen:
        judge(Case(case.norm, arrays))
    types = dict(seen.configs[0].launches[0].kernel.macros)
    assert types["W"] == {"float64": "f32", "float32": "f32", "float16": "f16"}[parameters]
    assert types["B"] == "bf16"


@pytest.mark.parametrize("layout", ["transposed", "expanded", "other-dtype"])
def test_weight_that_lies_otherwise(layout: str, launch: Callable[..., None]) -> None:
    """A weight with gaps, or that repeats itself, is copied; the gradient has its shape."""
    case = make_case(BY_NAME["layer-trailing"], "float32")
    weight = TORCH.make(case.arrays["weight"])
    weight = {
        "transposed": lambda: weight.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "expanded": lambda: weight[:1, :1].expand(weight.shape),
        "other-dtype": lambda: weight.double().transpose(0, 2),
    }[layout]()
    if layout == "other-dtype":
        case = replace(case, arrays=case.arrays | {"weight": TORCH.to_numpy(weight.transpose(0, 2).contiguous())})
        weight = weight.transpose(0, 2)
    case = replace(case, arrays=case.arrays | {"weight": np.ascontiguousarray(TORCH.to_numpy(weight))})
    with on_device(launch) as seen:
        judge(case, TORCH.make_all(case.arrays) | {"weight": weight})
    assert len(seen.configs) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_given_statistics(given: str, dtype: str, launch: Callable[..., None]) -> None:
    """Batch norm takes statistics of any dtype, however they lie; they may change before the backward pass."""
    case = make_case(BY_NAME["batch-given"], dtype, parameters=given)
    case = replace(case, arrays=case.arrays | {"weight": case.arrays["weight"].astype(np.float32)})
    arrays = TORCH.make_all(case.arrays)
    arrays["mean"] = torch.stack([arrays["mean"], arrays["mean"]], dim=1)[:, 0]
    leaf = arrays["x"].requires_grad_()
    dy = cotangent(case)
    with on_device(launch) as seen:
        y = case.function()(arrays)
        verify(TORCH.to_numpy(y), case.arrays["x"], case.reference())
        arrays["mean"].fill_(torch.nan)
        (dx,) = torch.autograd.grad(y, leaf, TORCH.make(dy))
    assert seen.ran == ["given_statistics", "columns_apply"]
    units = exact_gradients(case, dy).x.units(TORCH.to_numpy(dx))
    assert units <= 1


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("where", ["x", "other", "strided"])
def test_out(name: str, where: str, launch: Callable[..., None]) -> None:
    """A result goes where it is wanted: over x, into another tensor, into one that lies otherwise."""
    case = make_case(BY_NAME[name], "float32")
    arrays = {name: array.clone() for name, array in TORCH.make_all(case.arrays).items()}
    out = {
        "x": lambda: arrays["x"],
        "other": lambda: torch.full_like(arrays["x"], torch.nan),
        "strided": lambda: torch.full((*arrays["x"].shape[:-1], 11), torch.nan)[..., 1:9],
    }[where]()
    version = out._version
    with on_device(launch) as seen:
        found = case.function(out=out)(arrays)
    assert found is out
    assert out._version == version + 1
    assert bool(seen.configs) or where == "strided"
    verify(TORCH.to_numpy(out), case.arrays["x"], case.reference())


@pytest.mark.parametrize("name", EACH)
def test_moments(name: str, launch: Callable[..., None]) -> None:
    """Statistics, alone or beside a result, are those that the formula has."""
    case = make_case(BY_NAME[name], "float16")
    x = TORCH.make(case.arrays["x"])
    axes = {"group": (2, 3), "instance": (2, 3), "batch": (0, 2, 3)}.get(name, (-1,))
    expected = an.moments(x.double(), axis=axes)
    with on_device(launch) as seen:
        found = an.moments(x, axis=axes)
        assert len(seen.configs) == 1
        if name in ("instance", "batch"):
            _, beside = getattr(an, f"{name}_norm")(x, return_moments=True)
            assert torch.equal(beside.mean.reshape(-1), found.mean.reshape(-1))
    torch.testing.assert_close(found.mean.double(), expected.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.m2.double(), expected.m2, rtol=1e-5, atol=1e-6)


def test_statistics_of_permuted_sets(launch: Callable[..., None]) -> None:
    """Statistics come in the order of x's axes, in whichever order the sets lie in memory."""
    x = (torch.randn(3, 2, 4, 8) * torch.arange(1, 4)[:, None, None, None]).transpose(0, 1)
    with on_device(launch) as seen:
        found = an.moments(x, axis=(2, 3))
    assert len(seen.configs) == 1
    torch.testing.assert_close(found.mean, x.mean(dim=(2, 3)), rtol=1e-5, atol=1e-6)
