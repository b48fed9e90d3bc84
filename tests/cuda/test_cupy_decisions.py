"""Which of CuPy's arrays the CUDA engine serves, without a GPU: what is decided, refused, remembered and explained.

The numbers are test_cupy_engine.py's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cuda_host
import cupy_on_host
import numpy as np
import pytest
from cupy_on_host import LIBRARY, Host, make, normal, on_host, to_numpy, viewed
from inputs import NORMS, make_case, verify
from layouts import LAYOUTS

import anynorm as an
from anynorm_cuda._thread_groups import Device

if cupy_on_host.missing() is not None:
    pytest.skip(str(cupy_on_host.missing()), allow_module_level=True)
cupy: Any = importlib.import_module("cupy")

FEW = {norm.name: norm for norm in NORMS if norm.name in ("layer", "rms", "group", "instance", "batch")}


@pytest.fixture
def host(cuda_programs: Path) -> Iterator[Host]:
    """Let CuPy's arrays be served on the CPU."""
    with on_host(cuda_host.launcher(cuda_programs)) as device:
        yield device


@pytest.mark.parametrize("name", FEW)
def test_known_calls(name: str, host: Host) -> None:
    """The second and later calls of a signature skip the checks and give the bits of the first."""
    case = make_case(FEW[name], "float32")
    arrays = LIBRARY.make_all(case.arrays)
    first = to_numpy(case.function()(arrays))
    case.function()(arrays)
    with mock.patch("anynorm._core.dispatch.checked_plan", side_effect=AssertionError):
        for _ in range(2):
            assert to_numpy(case.function()(arrays)).tobytes() == first.tobytes()
    assert len(host.kernels) == len({launch.kernel for launch in host.launches})


def test_alignment_is_that_of_lines(host: Host) -> None:
    """Neighbouring axes that are one in memory do not lower what is read at once; steps between lines do."""

    def widest(x: Any, call: Any, *args: Any, **options: Any) -> Any:
        call(x, *args, **options)
        return dict(host.launches[-1].kernel.macros)["LOAD"]

    assert widest(normal(2, 4, 14, 14), an.batch_norm) == 16
    assert widest(normal(2, 4, 9, 9), an.batch_norm) == 4
    assert widest(normal(2, 4, 9, 10), an.batch_norm) == 8
    assert widest(normal(2, 9, 40, dtype="float16"), an.group_norm, 4, channel_axis=2) == 16
    assert widest(normal(8, 24)[:, 4:], an.layer_norm) == 16
    assert widest(normal(8, 24)[:, 2:], an.layer_norm) == 8


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
@pytest.mark.usefixtures("host")
def test_out(layout: str) -> None:
    """`out` of any layout is written and returned, x itself too; what overlaps an argument is refused."""
    case = make_case(FEW["instance"], "float32")
    x, out = [make(LAYOUTS[layout](array)) for array in (case.arrays["x"], np.zeros_like(case.arrays["x"]))]
    arrays = LIBRARY.make_all(case.arrays) | {"x": x}
    for array in (out, x):
        assert case.function(out=array)(arrays) is array
        verify(to_numpy(array), case.arrays["x"], case.reference())


@pytest.mark.usefixtures("host")
def test_out_that_overlaps() -> None:
    """`out` may interleave with x, but share no element with an argument, and no two of its elements may be one."""
    rows = normal(7, 6)
    for overlapping, others in (
        (rows[1:], {}),
        (rows[::-1][:6], {}),
        (rows[:6].T, {}),
        (rows[1:], {"weight": rows[6]}),
    ):
        before = viewed(rows).tobytes()
        with pytest.raises(ValueError, match="out overlaps"):
            an.layer_norm(rows[:6], out=overlapping, **others)
        assert viewed(rows).tobytes() == before
    one_row = cupy.broadcast_to(normal(6), (6, 6))
    with pytest.raises(ValueError, match="one place in memory"):
        an.layer_norm(rows[:6], out=one_row)
    both = normal(6, 16)
    expected = to_numpy(an.layer_norm(both[:, :8]))
    an.layer_norm(both[:, :8], out=both[:, 8:])
    np.testing.assert_array_equal(viewed(both[:, 8:]), expected)


def _subclass(array: Any) -> Any:
    return array.view(type("Own", (cupy.ndarray,), {}))


UNSERVED: dict[str, tuple[Callable[[], Any], str]] = {
    "float64": (lambda: an.explain(an.rms_norm, normal(4, 6, dtype="float64")), "the kernels have no float64"),
    "subclass": (lambda: an.explain(an.rms_norm, _subclass(normal(4, 6))), "Own is a subclass of ndarray"),
    "weight": (lambda: an.explain(an.rms_norm, normal(4, 6), _subclass(normal(6))), "Own is a subclass of ndarray"),
    "reversed": (
        lambda: an.explain(an.rms_norm, normal(4, 6)[:, ::-1]),
        "runs backwards along an axis that is reduced",
    ),
    "sliced": (lambda: an.explain(an.rms_norm, normal(4, 6)[:, ::2]), "do not lie side by side"),
    "bytes": (lambda: an.explain(an.rms_norm, _between()), "not a multiple of its element"),
    "empty": (lambda: an.explain(an.rms_norm, normal(0, 6)), "x is empty"),
    "off": (lambda: _slowly(an.explain, an.rms_norm, normal(4, 6)), "fast paths are turned off"),
}


def _slowly(function: Callable[..., Any], *args: Any) -> Any:
    with an.fast_paths(False):
        return function(*args)


def _between() -> Any:
    return cupy.ndarray((2, 3), np.float32, normal(4, 6).data + 2)


@pytest.mark.parametrize("why", UNSERVED)
def test_what_is_not_served(why: str, host: Host) -> None:
    """`explain` says in words why the formula serves a call."""
    call, words = UNSERVED[why]
    route = call()
    assert route.path == "formula"
    assert words in route.reason
    assert not host.launches
    assert not host.allocated


def test_explaining_needs_no_memory(host: Host) -> None:
    """To say which path would run, nothing is computed or allocated, and x may be larger than what is free."""
    x = cupy.broadcast_to(normal(1, 1), (2**20, 2**20))
    assert "x repeats its elements" in str(an.explain(an.layer_norm, x))
    assert an.explain(an.layer_norm, normal(3, 8)).path == "anynorm_cuda"
    assert not host.launches
    assert not host.allocated


def test_old_devices(cuda_programs: Path) -> None:
    """On a device without what the kernels need, and on ROCm, `explain` says so and nothing is launched."""
    launch = cuda_host.launcher(cuda_programs)
    with on_host(launch, Device(75, 40, 65536)):
        assert "compute capability 7.5, and the kernels need 8.0" in str(an.explain(an.rms_norm, normal(4, 6)))
    with on_host(launch) as host:
        host.runtime.is_hip = True
        assert "ROCm" in str(an.explain(an.rms_norm, normal(4, 6)))


@pytest.mark.usefixtures("host")
def test_errors() -> None:
    """Arrays of another library or device are refused, in words that name both."""
    x, weight = normal(4, 6), normal(6)
    elsewhere = cupy.ndarray((6,), np.float32, _pointer_on(1, weight))
    for _ in range(2):
        with pytest.raises(TypeError, match="x is an array of cupy but weight is one of numpy"):
            an.layer_norm(x, viewed(weight))
        with pytest.raises(ValueError, match="CUDA Device 1"):
            an.layer_norm(x, elsewhere)
        with pytest.raises(TypeError, match="real floating dtype"):
            an.layer_norm(make(np.ones((4, 6), np.int32)))
        an.layer_norm(x, weight)


def _pointer_on(device: int, array: Any) -> Any:
    memory = cupy.cuda.UnownedMemory(array.data.ptr, array.nbytes, array, device_id=device)
    return cupy.cuda.MemoryPointer(memory, 0)


UNALIGNED = {"x": (4, 6), "weight": (6,), "bias": (6,), "out": (4, 6), "dy": (4, 6), "dx": (4, 6)}


def unaligned(name: str, dtype: str) -> Any:
    """Return an array of CuPy that begins a byte beside a multiple of its element's size."""
    memory = np.zeros(400, np.uint8)
    begin = -memory.ctypes.data % 16 + 1
    size = np.dtype(dtype).itemsize * int(np.prod(UNALIGNED[name]))
    return make(memory[begin : begin + size].view(dtype).reshape(UNALIGNED[name]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("which", UNALIGNED)
def test_elements_that_are_not_aligned(which: str, dtype: str, host: Host) -> None:
    """No kernel is launched on an array that its elements' size does not divide, of whatever operand."""
    given = {name: normal(*shape, dtype=dtype) for name, shape in UNALIGNED.items()}
    for strange in (False, True, False):
        launched = len(host.launches)
        own = given | ({which: unaligned(which, dtype)} if strange else {})
        with mock.patch.multiple(
            "anynorm._core.formula", forward=lambda *a, **_: (a[1], None), backward=mock.DEFAULT
        ) as stand_ins:
            stand_ins["backward"].return_value = own["dx"], own["weight"], own["bias"]
            if which in ("dy", "dx"):
                _, pullback = an.vjp(an.layer_norm, own["x"], own["weight"], own["bias"])
                launched = len(host.launches)
                pullback(own["dy"], out=own["dx"])
            else:
                out = own["out"] if which == "out" else None
                assert an.explain(an.layer_norm, own["x"], own["weight"], own["bias"], out=out).path == (
                    "formula" if strange else "anynorm_cuda"
                )
                an.layer_norm(own["x"], own["weight"], own["bias"], out=out)
        assert (len(host.launches) == launched) == strange
