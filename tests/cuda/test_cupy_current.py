"""CuPy computes on its current device alone: whatever is done with arrays of another is done while that is current.

Without a GPU, so that CuPy's own arithmetic, which cannot run, is only seen to be asked for at the right time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cuda_host
import cupy_on_host
import pytest
from cupy_on_host import Host, normal, on_host

import anynorm as an
from anynorm._core.backends import ops_of
from anynorm._core.dispatch import bound
from anynorm.backend import Residuals, Statistics
from anynorm.layers._running import accumulate, cumulative_share, over_samples

if cupy_on_host.missing() is not None:
    pytest.skip(str(cupy_on_host.missing()), allow_module_level=True)
cupy: Any = importlib.import_module("cupy")


class Elsewhere:
    """A thread that works on a device, and what stands for the formula while it asks which."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.made_current: list[int] = []
        self.asked: list[str] = []
        self.result = normal(4, 6)

    @contextmanager
    def device(self, device: int) -> Iterator[None]:
        """Make a device the current one."""
        self.made_current.append(device)
        self.host.current, before = device, self.host.current
        yield
        self.host.current = before

    def noted(self, name: str, answer: Callable[[], Any]) -> Callable[..., Any]:
        """Return a part of the formula."""

        def ask(*_: Any, **__: Any) -> Any:
            assert self.host.current == 0
            self.asked.append(name)
            return answer()

        return ask


class Watched:
    """What stands for a statistic, to see when it is computed with."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def __add__(self, other: Watched | int) -> Watched:
        assert self.host.current == 0
        return self

    __sub__ = __mul__ = __rtruediv__ = __add__

    def squeeze(self, axis: Any) -> Watched:  # noqa: ARG002
        """Be without some axes, which computes nothing."""
        return self


@pytest.fixture(params=[0, 1])
def elsewhere(request: pytest.FixtureRequest, cuda_programs: Path) -> Iterator[Elsewhere]:
    """Let arrays lie on device 0, and the thread work on it, or on another, before as after."""
    with on_host(cuda_host.launcher(cuda_programs)) as host:
        stand_in = Elsewhere(host)
        answers: dict[str, Callable[[], Any]] = {
            "forward": lambda: (stand_in.result, Residuals(*[stand_in.result] * 5)),
            "backward": lambda: (stand_in.result, None, None),
            "measure": lambda: Statistics(4, *[stand_in.result] * 4),
            "residuals_of_given": lambda: Residuals(*[stand_in.result] * 5),
        }
        noted: dict[str, Any] = {name: stand_in.noted(name, answer) for name, answer in answers.items()}
        with mock.patch("cupy.cuda.Device", stand_in.device), mock.patch.multiple("anynorm._core.formula", **noted):
            host.current = request.param
            yield stand_in
        assert host.current == request.param


def test_engine_and_formula(elsewhere: Elsewhere) -> None:
    """Both run while x's device is the current one, which is changed only if it is another: to compile, and to run."""
    x, wide = normal(5, 24), normal(4, 6, dtype="float64")
    for array in (x, wide):
        elsewhere.result = array
        for _ in range(2):
            y, pullback = an.vjp(an.layer_norm, array)
            assert y.data.device_id == pullback(y).x.data.device_id == 0
        an.layer_norm(array, out=y)
        _measured(array)
    assert elsewhere.asked == ["forward", "backward"] * 2 + ["forward", "measure"]
    # 12 calls; 7 signatures, since the gradient of what the formula computed is compiled for nowhere.
    assert elsewhere.made_current == [0] * ((12 + 7) * elsewhere.host.current)


CALLS: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "subclass": (lambda x: an.layer_norm(x.view(type("Own", (cupy.ndarray,), {}))), ["forward"]),
    "forward-off": (lambda x: _off(lambda: an.layer_norm(x)), ["forward"]),
    "out-off": (lambda x: _off(lambda: an.layer_norm(x, out=x)), ["forward"]),
    "pullback-off": (lambda x: _off(lambda: an.vjp(an.layer_norm, x))[1](x), ["forward", "backward"]),
    "moments-off": (lambda x: _off(lambda: _measured(x)), ["measure"]),
    "empty": (lambda x: an.layer_norm(x[:0]), ["forward"]),
    "given": (lambda x: an.batch_norm(x, mean=x[0], var=x[1]), []),
    "given-wide": (lambda x: an.batch_norm(normal(4, 6, dtype="float64"), mean=x[0], var=x[1]), ["forward"]),
    "pullback-given": (lambda x: an.vjp(an.batch_norm, x, mean=x[0], var=x[1])[1](x), ["backward"]),
}


def _measured(x: Any) -> Statistics:
    return bound(an.moments, (x,), {}).entry.executable.measure(x)


def _off(call: Callable[[], Any]) -> Any:
    with an.fast_paths(False):
        return call()


@pytest.mark.parametrize("which", CALLS)
def test_formula(which: str, elsewhere: Elsewhere) -> None:
    """So does the formula however it is come by: fast paths turned off, x a subclass or empty, statistics given."""
    call, asked = CALLS[which]
    call(normal(4, 6))
    assert elsewhere.asked == asked


MEASURED: dict[str, Callable[[Any], Any]] = {
    "moments": lambda x: an.moments(x, axis=0),
    "returned": lambda x: an.batch_norm(x, return_moments=True),
    "vjp": lambda x: an.vjp(an.batch_norm, x, return_moments=True),
}


@pytest.mark.parametrize("which", MEASURED)
def test_moments(which: str, elsewhere: Elsewhere) -> None:
    """What was measured is brought into x's own units there."""
    watched = Watched(elsewhere.host)
    packed = mock.Mock(statistics=lambda: Statistics(4, *[watched] * 4), **dict.fromkeys(Residuals._fields, watched))
    with (
        mock.patch("anynorm_cupy._launch.PackedResiduals", return_value=packed),
        mock.patch("anynorm_cuda._passes.PackedResiduals", return_value=packed),
        mock.patch("array_api_compat.cupy.squeeze", lambda array, axis: array.squeeze(axis)),
        mock.patch("array_api_compat.cupy.zeros_like", lambda array: array + 0),
    ):
        MEASURED[which](normal(4, 6))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_gradients_of_parameters(dtype: str, elsewhere: Elsewhere) -> None:
    """The gradient of a weight is brought into its dtype there."""
    xp = importlib.import_module("array_api_compat.cupy")
    astype, x, weight = xp.astype, normal(4, 6), normal(6, dtype=dtype)

    def watched(*args: Any, **options: Any) -> Any:
        assert elsewhere.host.current == 0
        return astype(*args, **options)

    _, pullback = an.vjp(an.layer_norm, x, weight)
    with mock.patch.object(xp, "astype", watched):
        assert pullback(x).weight.dtype == dtype


STATISTICS: dict[str, Callable[[an.Moments], Any]] = {
    "sum": lambda moments: moments + moments,
    "var": lambda moments: moments.var(1),
    "running": lambda moments: an.update_running(moments.mean, moments.m2, moments),
    "training": lambda moments: accumulate(moments.mean, moments.m2, moments, momentum=0.1),
    "share": lambda moments: cumulative_share(moments.mean, moments.mean, moments),
    "samples": lambda moments: over_samples(moments, (0,)),
}


@pytest.mark.parametrize("which", STATISTICS)
def test_statistics(which: str, elsewhere: Elsewhere) -> None:
    """Statistics are merged, read and carried on where they lie."""
    ops = ops_of("test", "x", normal(1))
    with mock.patch.object(ops, "on_device", lambda x, *_, **__: ("there", x.data.device_id)):
        assert STATISTICS[which](an.Moments(4, normal(6), normal(6))) == ("there", 0)
    assert not elsewhere.made_current
