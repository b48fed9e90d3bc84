"""CuPy's arrays on a GPU: streams, threads, devices, graphs and sizes. Numbers and layouts are the matrix's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from engine_forms import FORMS
from libraries import ArrayLibrary, NumPyArray, each_library
from steps import check_steps_are_one_pass, passes

import anynorm as an

cupy: Any = pytest.importorskip("cupy")

on_cupy = each_library(["cupy"])


CALLS: dict[str, Callable[..., Any]] = {
    "layer": lambda x, weight: an.layer_norm(x, weight),
    "batch": lambda x, weight: an.batch_norm(x, weight=weight, channel_axis=-1),
    "long": lambda x, weight: an.layer_norm(x.reshape(2, -1), weight[:1].reshape(1, 1)),
}
each_call = pytest.mark.parametrize("name", CALLS)


def _numbers(*shape: int) -> NumPyArray:
    return np.random.default_rng([*shape]).normal(1, 2, size=shape).astype(np.float32)


def _pair(library: ArrayLibrary, rows: int = 4096) -> tuple[Any, Any]:
    """Return an x and a weight that the engine serves."""
    x, weight = library.make(_numbers(rows, 256)), library.make(_numbers(256))
    assert an.explain(an.layer_norm, x, weight).path == "anynorm_cuda"
    return x, weight


@each_call
@on_cupy
def test_stream(library: ArrayLibrary, name: str) -> None:
    """The kernels wait for what was put on the current stream before, and what is put there after waits for them."""
    source, weight = _pair(library)
    expected = CALLS[name](source, weight).get()
    busy = cupy.zeros(2**26, np.float32)
    x = cupy.full_like(source, 7)
    busy += 1
    cupy.cuda.Device().synchronize()
    for stream in (cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream.ptds, cupy.cuda.Stream.null):
        with stream:
            for _ in range(200):
                busy += 1
            cupy.copyto(x, source)
            y = CALLS[name](x, weight)
            x.fill(7)
        stream.synchronize()
        np.testing.assert_array_equal(y.get(), expected)


@pytest.mark.parametrize("form", ["rows", "batch-last"])
@on_cupy
def test_steps(library: ArrayLibrary, form: str) -> None:
    """Of sets in chunks the four steps apart, by the kernels on the device, leave the bits of the passes."""
    found = passes(FORMS[form].case("float32", 4, 300_000), library)
    assert found.engines == ("anynorm_cuda", "anynorm_cuda")
    check_steps_are_one_pass(found, library)


PER_THREAD = """
import cupy, numpy as np
import anynorm as an
assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.ptds
source = cupy.asarray(np.random.default_rng(0).normal(size=(4096, 256)).astype(np.float32))
expected = an.layer_norm(source).get()
busy, x = cupy.zeros(2**26, np.float32), cupy.zeros_like(source)
for _ in range(200):
    busy += 1
cupy.copyto(x, source)
np.testing.assert_array_equal(an.layer_norm(x).get(), expected)
"""


@on_cupy
def test_per_thread_default_stream(library: ArrayLibrary) -> None:
    """Where CuPy's default stream is one for each thread, so is the kernels'."""
    del library
    environment = os.environ | {
        "CUPY_CUDA_PER_THREAD_DEFAULT_STREAM": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    subprocess.run([sys.executable, "-c", PER_THREAD], env=environment, check=True)


@on_cupy
def test_threads(library: ArrayLibrary) -> None:
    """Threads with a stream each, and shapes that none has met before, get what each alone would."""
    arrays = [library.make(_numbers(64 + n, 96 + 8 * n)) for n in range(8)]
    cupy.cuda.Device().synchronize()

    def work(x: Any) -> list[NumPyArray]:
        with cupy.cuda.Stream(non_blocking=True) as stream:
            found = [an.layer_norm(x) for _ in range(10)]
            _, pullback = an.vjp(an.batch_norm, x)
            found += [pullback(x).x for _ in range(10)]
            stream.synchronize()
        return [array.get() for array in found]

    with ThreadPoolExecutor(len(arrays)) as pool:
        together = list(pool.map(work, arrays))
    for x, results in zip(arrays, together, strict=True):
        for one, other in zip(results, work(x), strict=True):
            np.testing.assert_array_equal(one, other)


@on_cupy
def test_thread_that_allocates_nothing(library: ArrayLibrary) -> None:
    """A thread's first use of the device may be a call that writes where another thread has allocated."""
    x, weight = _pair(library)
    expected, out = an.layer_norm(x, weight).get(), cupy.empty_like(x)
    cupy.cuda.Device().synchronize()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(an.layer_norm, x, weight, out=out).result() is out
    np.testing.assert_array_equal(out.get(), expected)


@on_cupy
def test_devices(library: ArrayLibrary) -> None:
    """What is computed of an array, the engine's or the formula's, lies on its device, whichever is current."""
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device")
    x, weight = _pair(library)
    expected = an.layer_norm(x, weight).get()
    with cupy.cuda.Device(1):
        other, other_weight = library.make(x.get()), library.make(weight.get())
        wide, spare = other.astype(np.float64), other.copy()
        cupy.cuda.Device(1).synchronize()
    for _ in range(3):
        y, pullback = an.vjp(an.layer_norm, other, other_weight)
        for array in (y, pullback(y).x, an.layer_norm(wide), an.layer_norm(other, out=spare)):
            assert array.device == other.device
        with cupy.cuda.Device(1):
            np.testing.assert_array_equal(y.get(), expected)
    assert cupy.cuda.runtime.getDevice() == 0
    with pytest.raises(ValueError, match="CUDA Device 1"):
        an.layer_norm(x, other_weight)


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@each_call
@on_cupy
def test_graph(library: ArrayLibrary, name: str, warm: bool) -> None:
    """A call can be captured in a CUDA graph, its kernels loaded before or not, and the graph run on other numbers."""
    rows = 512 + 2 * list(CALLS).index(name) + 16 * warm  # of no other test, so that the kernels are new
    x, weight = library.make(_numbers(rows, 264)), library.make(_numbers(264))
    other = library.make(_numbers(rows, 264)[::-1].copy())
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        if warm:
            CALLS[name](x, weight)
        stream.begin_capture()
        y = CALLS[name](x, weight)
        graph = stream.end_capture()
        cupy.copyto(x, other)
        graph.launch(stream)
        stream.synchronize()
        np.testing.assert_array_equal(y.get(), CALLS[name](other, weight).get())


@on_cupy
def test_graph_of_a_training_step(library: ArrayLibrary) -> None:
    """Both passes can be captured together, and the graph run again gives the same bits."""
    x, weight = _pair(library, 1000)
    _, pullback = an.vjp(an.layer_norm, x, weight)
    expected = [array.get() for array in pullback(x)[:2]]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        _, pullback = an.vjp(an.layer_norm, x, weight)
        found = pullback(x)
        graph = stream.end_capture()
        for _ in range(3):
            graph.launch(stream)
        stream.synchronize()
        for array, exact in zip(found[:2], expected, strict=True):
            np.testing.assert_array_equal(array.get(), exact)


@on_cupy
def test_memory(library: ArrayLibrary) -> None:
    """Of a call nothing stays allocated but its result."""
    x, weight = _pair(library)
    long = x.reshape(1, -1)
    pool = cupy.get_default_memory_pool()
    for call in (partial(an.layer_norm, x, weight), partial(an.batch_norm, x), partial(an.layer_norm, long)):
        call()
        before = pool.used_bytes()
        y = call()
        assert pool.used_bytes() - before == -(-y.nbytes // 512) * 512
        del y


@on_cupy
def test_managed_memory(library: ArrayLibrary) -> None:
    """Managed memory is the device's as well."""
    x, weight = _pair(library)
    with cupy.cuda.using_allocator(cupy.cuda.malloc_managed):
        managed = x.copy()
        y = an.layer_norm(managed, weight)
    np.testing.assert_array_equal(y.get(), an.layer_norm(x, weight).get())


# More than 2³¹ elements, in rows and in columns.
LARGE: dict[str, tuple[tuple[int, int], Any]] = {
    "rows": ((2**16 + 3, 2**15 + 8), an.layer_norm),
    "columns": ((2**24, 136), an.batch_norm),
}


def _large(shape: tuple[int, int], seed: int) -> Any:
    """Return float16 numbers that repeat themselves, but not from row to row or column to column."""
    part = cupy.asarray(np.random.default_rng(seed).normal(1, 2, size=2**20 + 7).astype(np.float16))
    x = cupy.empty(shape, np.float16)
    flat = x.reshape(-1)
    for start in range(0, flat.size, part.size):
        piece = flat[start : start + part.size]
        cupy.copyto(piece, part[: piece.size])
    return x


@pytest.mark.parametrize("which", LARGE)
@on_cupy
def test_large(library: ArrayLibrary, which: str) -> None:
    """Arrays of more elements than 32 bits count are normalized to their last element, both passes."""
    del library
    shape, call = LARGE[which]
    needed = 10 * shape[0] * shape[1]  # x, y, dy and dx, and some more
    if cupy.cuda.runtime.memGetInfo()[0] < needed:
        pytest.skip(f"less than {needed / 2**30:.0f} GiB are free")
    x, dy = _large(shape, 0), _large(shape, 1)
    assert an.explain(call, x).path == "anynorm_cuda"
    y, pullback = an.vjp(call, x)
    dx = pullback(dy).x
    sets = shape[0] if which == "rows" else shape[1]
    for place in (0, 1, sets // 2, sets - 1):
        index = (place,) if which == "rows" else (slice(None), place)
        array, g = [array[index].get().astype(np.float64) for array in (x, dy)]
        rstd = 1 / np.sqrt(array.var() + 1e-5)
        xhat = (array - array.mean()) * rstd
        np.testing.assert_allclose(y[index].get(), xhat, rtol=1e-3, atol=1e-5)
        expected = rstd * (g - g.mean() - xhat * (g * xhat).mean())
        np.testing.assert_allclose(dx[index].get(), expected, rtol=1e-3, atol=1e-5)
    del x, dy, y, dx, pullback
    cupy.get_default_memory_pool().free_all_blocks()
