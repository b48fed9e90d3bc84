"""Running statistics that the CPU engine moves: what the formula moves, in one kernel."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import anynorm as an
import anynorm_torch.nn
from anynorm._core.dispatch import bound, forward
from anynorm.backend import Executable, RunningStatistics

CHANNELS = 5
DTYPES = ["float16", "float32", "float64"]


def batches(dtype: str, count: int = 3, channels: int = CHANNELS) -> list[Any]:
    """Return some batches (4, channels, 3), of a mean beside which their spread is small in the last channel."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(count, 4, channels, 3)) * np.arange(1, channels + 1)[:, None]
    x[:, :, -1] += 300
    return list(x.astype(dtype))


def exact(x: Any, correction: int) -> tuple[list[Fraction], list[Fraction]]:
    """Return the mean and the variance of each channel, exactly."""
    means, variances = [], []
    for channel in range(x.shape[1]):
        values = [Fraction(float(value)) for value in x[:, channel].ravel()]
        mean = sum(values, Fraction()) / len(values)
        means.append(mean)
        variances.append(sum([(value - mean) ** 2 for value in values], Fraction()) / (len(values) - correction))
    return means, variances


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that tells of every update, whether the engine made it."""
    from anynorm_numba.engine import ForwardSteps

    own, told = ForwardSteps.update_running, []

    def update_running(self: Executable[Any], *arguments: Any, **options: Any) -> RunningStatistics | None:
        found = own(self, *arguments, **options)  # type: ignore[arg-type]
        told.append(found is not None)
        return found

    monkeypatch.setattr(ForwardSteps, "update_running", update_running)
    return told


@pytest.mark.parametrize("momentum", [0.1, 0.0, 0.5, 0.9, 1.0, None])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact(dtype: str, correction: int, momentum: float | None, moves: list[bool]) -> None:
    """Each update is within 2 ulp of the exact one, relative to old and new value, and counted."""
    compute = "float64" if dtype == "float64" else "float32"
    layer = an.BatchNorm(CHANNELS, momentum=momentum, correction=correction, xp=np, dtype=getattr(np, compute))
    for number, x in enumerate(batches(dtype)):
        old = layer.running_mean, layer.running_var
        kept = copy.deepcopy(old)
        layer(x)
        share = Fraction(1, number + 1) if momentum is None else Fraction(momentum)
        for before, unchanged, after, new in zip(
            old, kept, (layer.running_mean, layer.running_var), exact(x, correction), strict=True
        ):
            assert (before == unchanged).all()  # replaced, not written to
            assert after.dtype == compute
            for channel in range(CHANNELS):
                first, second = Fraction(float(before[channel])), new[channel]
                wanted = (1 - share) * first + share * second
                room = 2 * Fraction(float(np.finfo(compute).eps)) * (abs(first) + abs(second))
                assert abs(Fraction(float(after[channel])) - wanted) <= room
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (3, 0)
    assert moves == [True] * 3


@pytest.mark.parametrize("momentum", [0.1, 0.0, 0.9, None])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rejected(dtype: str, value: float, momentum: float | None, moves: list[bool]) -> None:
    """A batch that is not finite in one channel changes no bit of any and is counted as skipped."""
    compute = "float64" if dtype == "float64" else "float32"
    layer = an.BatchNorm(CHANNELS, momentum=momentum, xp=np, dtype=getattr(np, compute))
    good, bad, _ = batches(dtype)
    bad[1, 2, 0] = value
    layer(good)
    before = layer.running_mean, layer.running_var
    with np.errstate(all="ignore"):
        layer(bad)
    assert (layer.running_mean == before[0]).all()
    assert (layer.running_var == before[1]).all()
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (1, 1)
    assert moves == [True, True]


def test_few(moves: list[bool]) -> None:
    """A batch of n <= correction changes nothing, and beyond the largest float32 none enters."""
    layer = an.BatchNorm(2, correction=8, xp=np, dtype=np.float32)
    layer(np.ones((4, 2, 2), np.float32))
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (0, 1)
    layer = an.BatchNorm(2, xp=np, dtype=np.float32)
    layer(np.asarray([[[1e30, -1e30], [1, 2]]], np.float32))  # its variance is 2e60
    assert (int(layer.num_batches_tracked), int(layer.num_batches_skipped)) == (0, 1)
    assert layer.running_var.tolist() == [1, 1]
    layer = an.BatchNorm(2, xp=np, dtype=np.float64)
    layer(np.asarray([[[1e150, -1e150], [1, 2]]]))
    assert layer.running_var[0] == pytest.approx(2e299)
    assert moves == [True] * 3


def test_constants_stay(moves: list[bool]) -> None:
    """Statistics that are those of every batch stay bit for bit, whatever the momentum."""
    value = np.float32(0.1)
    for momentum in (0.1, 0.3, 0.5, 0.7, None):
        layer = an.BatchNorm(3, momentum=momentum, correction=0, xp=np, dtype=np.float32)
        layer.running_mean = np.full(3, value)
        layer.running_var = np.zeros(3, np.float32)
        for _ in range(5):
            layer(np.full((2, 3, 7), value))
        assert (layer.running_mean == value).all()
        assert (layer.running_var == 0).all()
    assert all(moves)


def test_other_layouts(moves: list[bool]) -> None:
    """Channels last, reversed channels and statistics with gaps give what the formula gives."""
    x = batches("float32")[0]
    last = np.ascontiguousarray(x.transpose(0, 2, 1)).transpose(0, 2, 1)
    rows = np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(CHANNELS, -1)
    for laid_out, axis in ((x, 1), (np.asfortranarray(x), 1), (last, 1), (rows[::-1], 0)):
        found, formula = [an.BatchNorm(CHANNELS, channel_axis=axis, xp=np, dtype=np.float32) for _ in range(2)]
        found(laid_out)
        with an.fast_paths(False):
            formula(laid_out)
        np.testing.assert_allclose(found.running_mean, formula.running_mean, rtol=5e-7, atol=1e-7)
        np.testing.assert_allclose(found.running_var, formula.running_var, rtol=5e-7)
    layer = an.BatchNorm(CHANNELS, xp=np, dtype=np.float32)
    layer.running_mean = np.zeros(2 * CHANNELS, np.float32)[::2]
    layer(x)
    assert (layer.running_mean != 0).all()
    assert moves == [True, True, True, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_in_place(dtype: torch.dtype, moves: list[bool]) -> None:
    """A module writes into its own buffers, as autograd sees, and needs no other memory for them."""
    compute = torch.promote_types(dtype, torch.float32)
    ours, theirs = [of.BatchNorm1d(CHANNELS, dtype=compute) for of in (anynorm_torch.nn, torch.nn)]
    buffers = dict(ours.named_buffers())
    addresses = {name: buffer.data_ptr() for name, buffer in buffers.items()}
    versions = [buffer._version for buffer in buffers.values()]
    for number, x in enumerate(batches("float64")):
        given = torch.from_numpy(x).to(dtype)
        ours(given)
        theirs(given.to(compute))
        assert [buffer._version for buffer in buffers.values()] == [version + number + 1 for version in versions]
    for name, buffer in ours.named_buffers():
        assert buffer is buffers[name]
        assert buffer.data_ptr() == addresses[name]
        torch.testing.assert_close(buffer, getattr(theirs, name), rtol=1e-5, atol=1e-6)
    assert moves == [True] * 3


def test_torch_others(moves: list[bool]) -> None:
    """Buffers that the kernel cannot write to are moved all the same, in place; those of wrong length are refused."""
    x = torch.from_numpy(batches("float32")[0])
    wanted = anynorm_torch.nn.BatchNorm1d(CHANNELS)
    wanted(x)
    for change in (
        lambda layer: layer.double(),
        lambda layer: setattr(layer, "running_var", torch.ones(2 * CHANNELS)[::2]),
        lambda layer: setattr(layer, "num_batches_tracked", torch.tensor(0, dtype=torch.int32)),
    ):
        layer = anynorm_torch.nn.BatchNorm1d(CHANNELS, affine=False)
        change(layer)
        buffers = list(layer.buffers())
        layer(x)
        assert all(own is kept for own, kept in zip(layer.buffers(), buffers, strict=True))
        torch.testing.assert_close(layer.running_var, wanted.running_var, check_dtype=False)
        assert layer.num_batches_tracked == 1
    layer = anynorm_torch.nn.BatchNorm1d(CHANNELS + 1, affine=False)
    with pytest.raises(ValueError, match=r"has 5 channels .* made for 6"):
        layer(x)
    assert moves == [True, False, False, False, False]


def test_inference_tensors() -> None:
    """A buffer made under inference_mode is not written to outside of it."""
    with torch.inference_mode():
        layer = anynorm_torch.nn.BatchNorm1d(CHANNELS)
        layer(torch.ones(3, CHANNELS))
    assert layer.num_batches_tracked == 1
    with pytest.raises(RuntimeError, match="inference"):
        layer(torch.ones(3, CHANNELS))
    assert layer.num_batches_tracked == 1


def test_average_without_a_count() -> None:
    """The average of all batches is not the kernel's where nothing counts them: it would read no memory of ours."""
    call = bound(an.batch_norm, (batches("float32")[0],), {})
    _, residuals = forward(call)
    running = RunningStatistics(np.zeros(CHANNELS, np.float32), np.ones(CHANNELS, np.float32))
    assert call.entry.executable.update_running(residuals, running, None, 1, in_place=False) is None
    assert call.entry.executable.update_running(residuals, running, 0.1, 1, in_place=False) is not None
