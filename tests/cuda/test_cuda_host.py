"""What runs CUDA kernels on a CPU behaves as a device does.

The kernels here are the tests' own, a few lines each; those of the library are tested elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import cuda_host
import ml_dtypes
import numpy as np
import pytest
from cuda_host import Order
from cuda_snippets import CLUSTER, RING, SUM, Runner, empty, numbers, transposed

REASON = cuda_host.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

ORDERS: tuple[Order, ...] = get_args(Order)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Return what runs the text of a kernel on arrays."""
    return Runner(tmp_path_factory.mktemp("programs"))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_sum_by_shuffles(run: Runner, threads: int, order: Order) -> None:
    """Values travel across a warp and between warps: every thread has the sum of its own block."""
    source = numbers(3 * threads)
    to = run(SUM, source, empty(source.size), grid=(3, 1), threads=threads, order=order)
    np.testing.assert_array_equal(to, source.reshape(3, -1).sum(1).repeat(threads))


def test_block_of_less_than_a_warp(run: Runner) -> None:
    """A block of 8 threads can exchange values among them, and not with threads that are not there."""
    text = "KERNEL(own_kernel)(Call q) { q.to[own()].value = shuffle_xor(q.from[own()].value, int(q.from[0].value)); }"
    source = np.arange(8, dtype=np.float32)
    source[0] = 4
    np.testing.assert_array_equal(run(text, source, empty(8), threads=8), source[np.arange(8) ^ 4])
    source[0] = 8
    with pytest.raises(RuntimeError, match="no thread is 8 apart"):
        run(text, source, empty(8), threads=8)


@pytest.mark.parametrize("order", ORDERS)
def test_every_block_runs_once(run: Runner, order: Order) -> None:
    """Each thread of a grid of two dimensions runs once and knows its place."""
    text = """KERNEL(own_kernel)(Call q) {
        int number = (block_row() * blocks() + block()) * THREADS + thread();
        q.to[number].value += q.from[number].value + block_rows() * 100 + blocks();
    }"""
    source = numbers(5 * 3 * 32)
    to = run(text, source, np.zeros_like(source), grid=(5, 3), threads=32, order=order)
    np.testing.assert_array_equal(to, source + 305)


@pytest.mark.parametrize("order", ORDERS)
def test_any(run: Runner, order: Order) -> None:
    """Whether it holds for any thread of a warp, or of a block, is known to all of that warp or block alone."""
    text = """KERNEL(own_kernel)(Call q) {
        float found = 0;
        for (int i = 1; i <= 3; i++) {
            bool mine = q.from[own()].value == i;
            found = found * 100 + 10 * barrier_any(mine) + warp_any(mine);
        }
        q.to[own()].value = found;
    }"""
    source = np.zeros(128, np.float32)
    source[[5, 40, 70]] = [1, 3, 2]  # warps 0 and 1 are of the first block
    to = run(text, source, empty(128), grid=(2, 1), order=order)
    np.testing.assert_array_equal(to.reshape(4, 32), np.repeat([[110010], [100011], [1100], [1000]], 32, 1))


@pytest.mark.parametrize("order", ORDERS)
def test_values_of_a_lane(run: Runner, order: Order) -> None:
    """Every thread of a warp has what a lane has that it asks for, each another, all bits of an address."""
    text = """KERNEL(own_kernel)(Call q) {
        const X *from = (const X *)shuffle((i64)(q.from + own()), (thread() * 5 + 3) % 32);
        q.to[own()].value = from->value;
    }"""
    source = numbers(128)
    to = run(text, source, empty(128), grid=(2, 1), order=order)
    np.testing.assert_array_equal(to, source.reshape(4, 32)[:, (np.arange(32) * 5 + 3) % 32].ravel())


@pytest.mark.parametrize("order", ORDERS)
def test_barrier_of_a_warp(run: Runner, order: Order) -> None:
    """What a warp's threads wrote before they met, the others of it see."""
    text = """KERNEL(own_kernel)(Call q) {
        SHARED(float, memory, THREADS);
        memory[thread()] = q.from[own()].value;
        warp_barrier();
        q.to[own()].value = memory[thread() ^ 31];
    }"""
    source = numbers(128)
    to = run(text, source, empty(128), grid=(2, 1), order=order)
    np.testing.assert_array_equal(to, source.reshape(4, 32)[:, ::-1].ravel())


@pytest.mark.parametrize("order", ORDERS)
def test_transpose_through_shared_memory(run: Runner, order: Order) -> None:
    """With a barrier after writing and after reading, a tile is transposed in any order of threads."""
    once = numbers(64).reshape(8, 8).T.ravel()
    np.testing.assert_array_equal(
        transposed(run, order, "barrier();", "barrier();"), np.concatenate([once, once + 100])
    )


def test_shared_arrays_are_objects_of_their_declarations(run: Runner) -> None:
    """A function called twice has one array, two instances of a template have two, and arrays have their type."""
    text = """
    DEV float *one() { SHARED(float, memory, 4); return memory; }
    template <int WHICH> DEV float *each() { SHARED(float, memory, 4); return memory; }
    SHARED(double, outside, 6);
    KERNEL(own_kernel)(Call q) {
        SHARED(float, memory, 4);
        float *all[] = {one(), each<1>(), each<2>(), memory, (float *)outside};
        int apart = 1;
        for (int i = 0; i < 5; i++)
            for (int k = 0; k < i; k++) apart &= all[i] != all[k];
        q.to[thread()].value = apart * 1000 + (one() == all[0] && each<1>() == all[1]) * 100 + sizeof(outside);
    }"""
    np.testing.assert_array_equal(run(text, numbers(1), empty(64)), 1148)


DIRTY = """
DYNAMIC(float, from_file);
KERNEL(own_kernel)(Call q) {
    SHARED(float, fixed, 64);
    DYNAMIC(float, open);
    float *memory = q.from[0].value ? fixed : q.from[1].value ? open : from_file;
    q.to[own()].value = memory[thread()];
    memory[thread()] = 5;
}
"""


@pytest.mark.parametrize("which", [(1, 0), (0, 1), (0, 0)], ids=["static", "dynamic", "dynamic_of_the_file"])
def test_shared_memory_begins_as_garbage(run: Runner, which: tuple[int, int]) -> None:
    """What a block has not written is garbage to it, whatever another wrote: NaN, and in other orders other garbage."""
    forward, backward = [
        run(DIRTY, np.array(which, np.float32), empty(192), grid=(3, 1), shared=256, order=order)
        for order in ("forward", "backward")
    ]
    assert np.isnan(forward).all()
    assert (backward > 1e30).all()


def test_programs_share_no_arrays(run: Runner) -> None:
    """An array of a function is each program's own, though another has a function of that name."""
    text = """
    template <int WHICH> DEV float *each() { SHARED(float, memory, 64); return memory; }
    KERNEL(own_kernel)(Call q) {
        q.to[thread()].value = each<1>()[thread()];
        each<1>()[thread()] = NUMBER;
    }"""
    for number in "12":
        assert np.isnan(run(text.replace("NUMBER", number), numbers(1), empty(64))).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ctas", [1, 2, 8])
def test_cluster_exchange(run: Runner, ctas: int, order: Order) -> None:
    """Blocks of a cluster store into each other's shared memory, each block has its own, and clusters do not meet."""
    text = CLUSTER.replace("BEFORE", "cluster_barrier();").replace("BETWEEN", "cluster_barrier();")
    source = numbers(2 * ctas * 32)
    to = run(
        text, source, empty(source.size), grid=(2 * ctas, 1), threads=32, shared=128 * ctas, ctas=ctas, order=order
    )
    sums = 2 * (source + 1).reshape(2, -1).sum(1)
    np.testing.assert_array_equal(to, np.multiply.outer(sums, np.arange(1, ctas + 1)).repeat(32))


def ringed(run: Runner, wait: str, commit: str = "commit_copies();") -> Any:
    """Return the sums over a ring of three copies on their way, of which the newest two need not have landed."""
    text = RING.replace("WAIT", wait).replace("COMMIT", commit)
    return run(text, numbers(7 * 64 * 4), empty(64), shared=3 * 64 * 16)


def test_ring_of_copies(run: Runner) -> None:
    """What was waited for is there; what is not wanted is not read, though it lies beyond the array."""
    sums = numbers(7 * 64 * 4).reshape(7, 64, 4).sum(2)
    np.testing.assert_array_equal(ringed(run, "wait_for_copies<2>();"), np.arange(1, 8) @ sums)


@pytest.mark.parametrize(
    ("wait", "commit"),
    [("", "commit_copies();"), ("wait_for_copies<3>();", "commit_copies();"), ("wait_for_copies<2>();", "")],
    ids=["no_wait", "waits_for_too_little", "no_commit"],
)
def test_a_copy_lands_no_sooner_than_it_must(run: Runner, wait: str, commit: str) -> None:
    """Without the wait for its group, nothing of a copy is seen."""
    assert np.isnan(ringed(run, wait, commit)).all()


def test_zeros_where_a_copy_is_not_wanted(run: Runner) -> None:
    """A copy that is not wanted lands as zeros."""
    text = """KERNEL(own_kernel)(Call q) {
        SHARED(float, memory, THREADS);
        copy_async<4>(&memory[thread()], q.from + thread(), thread() % 2);
        commit_copies();
        wait_for_copies<0>();
        q.to[thread()].value = memory[thread()];
    }"""
    source = numbers(64) + 1
    np.testing.assert_array_equal(run(text, source, empty(64)), source * (np.arange(64) % 2))


def test_programs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is compiled once for all launchers and processes, and anew where its text or macros differ."""
    text = "KERNEL(own_kernel)(Call q) { q.to[own()].value = 1; }"
    own = Runner(tmp_path)
    for order in ORDERS:
        own(text, numbers(1), empty(64), order=order)
    compiled = {path: path.stat().st_mtime_ns for path in tmp_path.glob("own_kernel*.so")}
    assert len(compiled) == 1
    monkeypatch.setattr(cuda_host, "_loaded", {})  # as in another process
    own(text, numbers(1), empty(64))
    own(text, numbers(1), empty(32), threads=32)
    own(text.replace("1;", "2;"), numbers(1), empty(64))
    now = {path: path.stat().st_mtime_ns for path in tmp_path.glob("own_kernel*.so")}
    assert len(now) == 3
    assert compiled.items() <= now.items()


@pytest.mark.parametrize("flush", ["left", "right"])
@pytest.mark.parametrize("shape", [(0,), (), (3, 5), (70, 999)], ids=str)
def test_guarded_copies(shape: tuple[int, ...], flush: Any) -> None:
    """A guarded copy has the values, dtype and strides of the array, of any length, also transposed and with gaps."""
    whole = np.arange(2 * np.prod(shape, dtype=int), dtype=np.int64).reshape(2, *shape)
    for array in (
        whole,
        whole.T,
        whole[..., :1],
        whole[1],
        whole.astype(ml_dtypes.bfloat16)[..., ::2] if shape else whole,
    ):
        copy = cuda_host.guarded(array, flush)
        assert (copy.dtype, copy.strides) == (array.dtype, array.strides)
        np.testing.assert_array_equal(copy, array)


WIDEN = "KERNEL(own_kernel)(Call q) { ((float *)q.to)[own()] = get(q.from[own()]); }"
NARROW = "KERNEL(own_kernel)(Call q) { put(q.to[own()], ((const float *)q.from)[own()]); }"
HALVES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("kind", HALVES)
def test_widening_of_all_bit_patterns(run: Runner, kind: str) -> None:
    """Each of the 65536 numbers of two bytes widens to the same number, bit by bit unless it is NaN."""
    halves = np.arange(65536, dtype=np.uint16).view(HALVES[kind])
    to = run(WIDEN, halves, np.zeros(65536, np.float32), grid=(64, 1), threads=1024, kind=kind)
    exact = halves.astype(np.float32)
    number = ~np.isnan(exact)
    np.testing.assert_array_equal(to.view(np.uint32)[number], exact.view(np.uint32)[number])
    assert np.isnan(to[~number]).all()


@pytest.mark.parametrize("kind", HALVES)
def test_rounding_to_nearest_even(run: Runner, kind: str) -> None:
    """Floats round to the nearest number of two bytes, ties to even: ties, their neighbours, and any bits at all."""
    every = np.arange(65536, dtype=np.uint16).view(HALVES[kind]).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    ties = ((every[:-1].astype(np.float64) + every[1:]) / 2).astype(np.float32)
    bits = np.random.default_rng(0).integers(0, 2**32, 2**18, dtype=np.uint32).view(np.float32)
    near = np.random.default_rng(1).normal(size=2**16).astype(np.float32) * np.float32(2.0**-14)
    edges = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 65519.996, 65520, 65535, 65536, 3.4e38, 3.3961776e38], np.float32
    )
    parts = [every, ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, np.float32(-9e9)), bits, near, edges]
    floats = np.concatenate(parts)
    floats = np.pad(floats, (0, -floats.size % 1024))
    to = run(
        NARROW, floats, np.zeros(floats.size, HALVES[kind]), grid=(floats.size // 1024, 1), threads=1024, kind=kind
    )
    with np.errstate(over="ignore", invalid="ignore"):
        exact = floats.astype(HALVES[kind])
    number = ~np.isnan(exact)
    np.testing.assert_array_equal(to.view(np.uint16)[number], exact.view(np.uint16)[number])
    np.testing.assert_array_equal(to.view(np.uint16)[~number], 0x7FFF)
