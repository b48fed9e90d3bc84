"""Memory that is not aligned to its elements, in another byte order or freed: no kernel reads or writes it.

Every operand, in every way of calling; of a kind that was met before with aligned memory too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from libraries import NumPyArray

import anynorm as an

pytest.importorskip("numba")

# Where each address stands among the arguments that the engine is run with, behind the job.
FORWARD = {"x": 0, "y": 1, "weight": 2, "bias": 3, "residuals": 4}
MEASURE = {"x": 0, "residuals": 1}
BACKWARD = {"x": 0, "dy": 1, "dx": 2, "weight": 3, "residuals": 4, "dweight": 5, "dbias": 6}
ELEMENTS = {"x", "y", "dy", "dx"}

batch_norm: Any = an.batch_norm  # for calls with what `**` spreads

SHAPES = {"x": (6, 5, 7), "weight": (5,), "bias": (5,), "mean": (5,), "var": (5,), "out": (6, 5, 7), "dy": (6, 5, 7)}


@contextmanager
def aligned_alone() -> Iterator[list[str]]:
    """Raise where the engine is run on an address that its elements do not divide; note each run."""
    from anynorm_numba import _engine, engine
    from anynorm_numba._configs import SIZES

    runs: list[str] = []

    def checking(name: str, places: dict[str, int]) -> Callable[..., None]:
        run = getattr(_engine, name)

        def checked(job: Any, *args: Any, **options: Any) -> None:
            size, number = SIZES[job.dtype]
            for which, place in places.items():
                assert args[place] % (size if which in ELEMENTS else number) == 0, which
            runs.append(name)
            run(job, *args, **options)

        return checked

    take, upcast = engine.take_given, engine.upcast_halves

    def checked_take(kind: str, n: int, mean: int, var: int, *rest: Any) -> None:
        assert (mean | var) % SIZES[kind][1] == 0
        take(kind, n, mean, var, *rest)

    def checked_upcast(kind: str, n: int, source: int, target: int, other: int, other_source: int, *rest: int) -> None:
        assert (source | other_source) % 2 == 0
        upcast(kind, n, source, target, other, other_source, *rest)

    with (
        mock.patch.multiple(engine, forward=checking("forward", FORWARD), apply=checking("apply", FORWARD)),
        mock.patch.multiple(engine, backward=checking("backward", BACKWARD)),
        mock.patch.multiple(_engine, measure=checking("measure", MEASURE)),
        mock.patch.multiple(engine, take_given=checked_take, upcast_halves=checked_upcast),
    ):
        yield runs


def numbers(name: str) -> NumPyArray:
    """Return an operand's values, which half precision holds."""
    values = np.random.default_rng(len(name)).integers(-8, 9, SHAPES[name]) / 4
    return np.asarray(np.abs(values) + 0.25 if name == "var" else values)


def exact(names: set[str]) -> Any:
    """Return batch norm of these operands in float64, eps 0.5."""
    x = numbers("x")
    mean, var = x.mean((0, 2)), x.var((0, 2))
    if "mean" in names:
        mean, var = numbers("mean"), numbers("var")
    y = (x - mean[:, None]) / np.sqrt(var[:, None] + 0.5)
    if "weight" in names:
        y = y * numbers("weight")[:, None] + numbers("bias")[:, None]
    return y


def exact_gradients() -> tuple[NumPyArray, NumPyArray, NumPyArray]:
    """Return the gradients of batch norm with weight and bias."""
    xhat, dy = exact(set()), numbers("dy")
    g = dy * numbers("weight")[:, None]
    r = 1 / np.sqrt(numbers("x").var((0, 2)) + 0.5)[:, None]
    shares = g.mean((0, 2))[:, None] + xhat * (g * xhat).mean((0, 2))[:, None]
    return r * (g - shares), (dy * xhat).sum((0, 2)), dy.sum((0, 2))


def close(found: Any, expected: NumPyArray, dtype: str) -> None:
    """Compare to the rounding of a dtype."""
    rounding = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-14}[dtype]
    found = np.asarray(found, "float64")
    np.testing.assert_allclose(found, expected, rtol=rounding, atol=rounding * max(1.0, np.abs(expected).max()))


torch: Any = None


@pytest.fixture
def _torch() -> None:
    """Import torch where a test needs it."""
    global torch
    torch = pytest.importorskip("torch")


def tensor(name: str, dtype: str, shift: int) -> Any:
    """Return an operand as a tensor that lies so many bytes beside where its elements would be aligned."""
    kind = getattr(torch, dtype)
    memory = bytearray(int(np.prod(SHAPES[name])) * kind.itemsize + 64)
    begin = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 16 + shift
    laid = torch.frombuffer(memory, dtype=kind, offset=begin, count=int(np.prod(SHAPES[name]))).reshape(SHAPES[name])
    return laid.copy_(torch.from_numpy(numbers(name)))


def wide(tensor: Any) -> NumPyArray:
    """Return a tensor's values."""
    values: NumPyArray = tensor.detach().double().numpy()
    return values


each_dtype = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])

CALLS = {
    "x": ["x"],
    "x-of-affine": ["x", "weight", "bias"],
    "weight": ["x", "weight", "bias"],
    "bias": ["x", "weight", "bias"],
    "mean": ["x", "mean", "var"],
    "var": ["x", "mean", "var"],
    "out": ["x", "out"],
    "in-place": ["x"],
}


@pytest.mark.usefixtures("_torch")
@each_dtype
@pytest.mark.parametrize("which", CALLS)
def test_tensors(which: str, dtype: str) -> None:
    """Whatever operand is not aligned, the formula serves the call and `explain` says why, known before or not.

    Of half precision, weight, bias, mean and var are cast before the engine reads them.
    """
    cast = which in ("weight", "bias", "mean", "var") and dtype in ("float16", "bfloat16")

    def arrays(shift: int) -> dict[str, Any]:
        odd = "x" if which in ("x-of-affine", "in-place") else which
        made = {name: tensor(name, dtype, shift if name == odd else 0) for name in CALLS[which]}
        if which == "in-place":
            made["out"] = made["x"]
        return {**made, "eps": 0.5}

    def call(given: dict[str, Any]) -> Any:
        x = given.pop("x")
        return batch_norm(x, **given), an.explain(batch_norm, x, **given)

    expected = exact(set(CALLS[which]))
    with aligned_alone() as runs:
        for shift in (1, 0, 0, 1, 0):
            served = len(runs)
            y, route = call(arrays(shift))
            close(wide(y), expected, dtype)
            assert len(runs) - served == (cast or shift == 0)
            if shift and not cast:
                assert route == an.Route("formula", "a tensor's memory is not aligned to its elements")
            else:
                assert route.path == "anynorm_numba"


@pytest.mark.usefixtures("_torch")
@each_dtype
@pytest.mark.parametrize("which", ["dy", "out", "weight", "x"])
def test_pullback_on_tensors(which: str, dtype: str) -> None:
    """Nor is such memory read or written by a pullback."""
    expected = exact_gradients()
    with aligned_alone():
        for shift in (0, 0, 1):
            x, weight, bias, dy, out = [
                tensor(name, dtype, shift if name == which else 0) for name in ("x", "weight", "bias", "dy", "out")
            ]
            _, pullback = an.vjp(an.batch_norm, x, weight=weight, bias=bias, eps=0.5)
            found = pullback(dy, out=out)
            assert found.x is out
            for result, right in zip(found, expected, strict=True):
                close(wide(result), right, dtype)


@pytest.mark.usefixtures("_torch")
@each_dtype
@pytest.mark.parametrize("which", ["dy", "weight", "x", "saved"])
def test_autograd(which: str, dtype: str) -> None:
    """Nor by autograd, be it a gradient or what hooks bring back of what was saved."""

    def moved(tensor: Any) -> Any:
        """Return a copy that is not aligned."""
        memory = bytearray(tensor.nbytes + 1)
        return (
            torch.frombuffer(memory, dtype=tensor.dtype, offset=1, count=tensor.numel())
            .reshape(tensor.shape)
            .copy_(tensor)
        )

    expected = exact_gradients()
    with aligned_alone():
        for shift in (0, 0, 1, 0):
            leaves = [tensor(name, dtype, shift if name == which else 0) for name in ("x", "weight", "bias")]
            for leaf in leaves:
                leaf.requires_grad_()
            bring = moved if which == "saved" and shift else lambda array: array
            with torch.autograd.graph.saved_tensors_hooks(lambda array: array.detach(), bring):
                y = an.batch_norm(leaves[0], weight=leaves[1], bias=leaves[2], eps=0.5)
            dy = tensor("dy", dtype, shift if which == "dy" else 0)
            for array, right in zip(torch.autograd.grad(y, leaves, dy), expected, strict=True):
                close(wide(array), right, dtype)


@pytest.mark.usefixtures("_torch")
def test_moments_of_a_tensor() -> None:
    """Nor where x is only measured."""
    with aligned_alone():
        for shift in (0, 1):
            found = an.moments(tensor("x", "float32", shift), axis=(0, 2))
            close(wide(found.mean), numbers("x").mean((0, 2)), "float32")


def odd(values: NumPyArray, dtype: str, how: str) -> Any:
    """Return values as an array that no kernel may read."""
    if how == "swapped":
        return values.astype(np.dtype(dtype).newbyteorder("S"))
    size = np.dtype(dtype).itemsize
    memory = np.zeros(values.size * size + 64, np.uint8)
    begin = -memory.ctypes.data % 16 + 1
    laid = memory[begin : begin + values.size * size].view(dtype).reshape(values.shape)
    laid[...] = values
    return laid


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("how", ["unaligned", "swapped"])
@pytest.mark.parametrize("which", CALLS)
def test_arrays(which: str, how: str, dtype: str) -> None:
    """Of NumPy's arrays neither operands that are not aligned nor those in another byte order are read as they are."""
    expected = exact(set(CALLS[which]))
    name = "x" if which in ("x-of-affine", "in-place") else which
    with aligned_alone():
        for strange in (False, False, True, True):
            given = {call: numbers(call).astype(dtype) for call in CALLS[which]}
            if strange:
                given[name] = odd(given[name], dtype, how)
            if which == "in-place":
                given["out"] = given["x"]
            x = given.pop("x")
            if strange and how == "swapped" and which == "out":  # another dtype than x's
                with pytest.raises(TypeError, match="out must have x's dtype"):
                    batch_norm(x, **given, eps=0.5)
            else:
                close(batch_norm(x, **given, eps=0.5), expected, dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("how", ["unaligned", "swapped"])
@pytest.mark.parametrize("which", ["dy", "out", "weight", "x"])
def test_pullback_on_arrays(which: str, how: str, dtype: str) -> None:
    """Nor by a pullback."""
    names = ("x", "weight", "bias", "dy", "out")
    with aligned_alone():
        x, weight, bias, dy, out = [
            odd(numbers(name), dtype, how) if name == which else numbers(name).astype(dtype) for name in names
        ]
        out = None if which == "x" or (which, how) == ("out", "swapped") else out
        _, pullback = an.vjp(an.batch_norm, x, weight=weight, bias=bias, eps=0.5)
        for value, right in zip(pullback(dy, out=out), exact_gradients(), strict=True):
            close(value, right, dtype)


# Everything is written past the caches, as a result of 32 MiB is.
PAST_CACHES = """
import torch, anynorm as an
from anynorm_numba import _configs
_configs.PAST_CACHES = 0
def odd():
    memory = bytearray(4 * 64 * 96 + 64)
    begin = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 64 + 1
    return torch.frombuffer(memory, dtype=torch.float32, offset=begin, count=64 * 96).reshape(64, 96)
x = torch.randn(64, 96)
for function in (an.layer_norm, an.batch_norm):
    y, pullback = an.vjp(function, x)
    for _ in range(3):
        place = odd().copy_(x)
        assert (function(x, out=odd()) - y).abs().max() < 1e-5
        assert (function(place, out=place) - y).abs().max() < 1e-5
        assert (pullback(x, out=odd()).x - pullback(x).x).abs().max() < 1e-5
        assert (function(x) - y).abs().max() == 0
"""


@pytest.mark.usefixtures("_torch")
def test_past_the_caches() -> None:
    """A result that is written past the caches may lie anywhere: it does not end the process."""
    there = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", PAST_CACHES], cwd=there, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def freed(shape: tuple[int, ...], left: int, offset: int) -> Any:
    """Return a tensor that begins so far into a storage of which so many bytes are left."""
    memory = torch.ones(offset + int(np.prod(shape)))
    laid = memory[offset:].reshape(shape)
    memory.untyped_storage().resize_(left)
    return laid


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("which", ["x", "weight", "out"])
@pytest.mark.parametrize("offset", [0, 3000])
def test_freed_tensors(offset: int, which: str) -> None:
    """A view into a storage that was freed, as sharding does, is an error, of a known kind too."""
    shapes = {"x": (4, 96), "weight": (96,), "out": (4, 96)}
    given = {name: torch.ones(shape) for name, shape in shapes.items()}
    for _ in range(3):
        an.layer_norm(given["x"], given["weight"], out=given["out"])
    for _ in range(2):
        broken = given | {which: freed(shapes[which], 0, offset)}
        with pytest.raises(ValueError, match="it was freed or cut"):
            an.layer_norm(broken["x"], broken["weight"], out=broken["out"])


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("which", ["x", "weight"])
def test_freed_before_backward(which: str) -> None:
    """So it is where the gradient needs it."""
    memory = torch.ones(5000)
    leaves = {"x": torch.ones(4, 96), "weight": torch.ones(96)}
    for _ in range(2):
        given = leaves | {which: memory[3000 : 3000 + leaves[which].numel()].reshape(leaves[which].shape)}
        y = an.layer_norm(given["x"].requires_grad_(), given["weight"])
    memory.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="it was freed or cut"):
        y.sum().backward()


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("which", ["x", "out"])
@pytest.mark.parametrize("offset", [0, 3000])
def test_cut_tensors_of_a_known_kind(offset: int, which: str) -> None:
    """A storage of x or out that is an element too short is an error in later calls too; one that suffices is none."""
    shapes = {"x": (4, 98), "out": (4, 98)}
    weight = torch.ones(98)
    for left in (-4, 0, -4):
        given = {name: torch.ones(shape) for name, shape in shapes.items()}
        for _ in range(3):
            an.layer_norm(given["x"], weight)
            an.layer_norm(given["x"], weight, out=given["out"])
        given[which] = freed(shapes[which], 4 * (offset + 4 * 98) + left, offset)
        for out in (given["out"], None) if which == "x" else (given["out"],):
            with pytest.raises(ValueError, match="it was freed or cut") if left else nullcontext():
                an.layer_norm(given["x"], weight, out=out)


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("which", ["x", "weight"])
def test_cut_tensors(which: str) -> None:
    """A storage that is shorter than its tensor is an error where a kind of call is first met."""
    shapes = {"x": (4, 97), "weight": (97,)}
    given = {name: torch.ones(shape) for name, shape in shapes.items()}
    given[which] = freed(shapes[which], 4 * 96, 0)
    with pytest.raises(ValueError, match="it was freed or cut"):
        an.layer_norm(given["x"], given["weight"])


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("which", ["dy", "out"])
@pytest.mark.parametrize("left", [0, 4])
def test_freed_for_a_pullback(left: int, which: str) -> None:
    """So it is for what a pullback is given."""
    _, pullback = an.vjp(an.layer_norm, torch.ones(4, 96))
    given = {"dy": torch.ones(4, 96), "out": torch.ones(4, 96), which: freed((4, 96), left, 3000)}
    with pytest.raises(ValueError, match="it was freed or cut"):
        pullback(given["dy"], out=given["out"])


@pytest.mark.parametrize("name", ["mean", "var", "bias"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_dx_over_an_argument(library: str, name: str) -> None:
    """Of a pullback `out` overlaps no argument, given statistics and bias among them."""
    xp = pytest.importorskip(library)
    given = {value: xp.ones(8) for value in ("weight", "bias", "mean", "var")}
    x = xp.ones((1, 8), dtype=given["mean"].dtype)
    _, pullback = an.vjp(batch_norm, x, **given)
    with pytest.raises(ValueError, match=f"out overlaps {name} in memory"):
        pullback(x + 1, out=given[name].reshape(1, 8))
