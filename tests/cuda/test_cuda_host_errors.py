"""What runs CUDA kernels on a CPU reports what a device would not forgive, or would forgive only sometimes."""

from __future__ import annotations

from typing import Any, get_args

import cuda_host
import numpy as np
import pytest
from cuda_host import Order
from cuda_snippets import CLUSTER, RING, SUM, TRANSPOSE, OwnKernel, Runner, empty, numbers, transposed

from anynorm_cuda._program import Launch

REASON = cuda_host.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

ORDERS: tuple[Order, ...] = get_args(Order)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Return what runs the text of a kernel on arrays."""
    return Runner(tmp_path_factory.mktemp("programs"))


@pytest.mark.parametrize(
    ("before", "between", "reason"),
    [("", "cluster_barrier();", "before the first cluster_barrier"), ("cluster_barrier();", "return;", "has ended")],
    ids=["not_begun", "ended"],
)
def test_store_to_a_block_that_is_not_there(run: Runner, before: str, between: str, reason: str) -> None:
    """Storing into a peer that may not have begun, or has ended, is an error."""
    text = CLUSTER.replace("BEFORE", before).replace("BETWEEN", between)
    with pytest.raises(RuntimeError, match=reason):
        run(text, numbers(64), empty(64), grid=(2, 1), threads=32, shared=256, ctas=2)


WRONG = {
    "barrier_of_some": ("if (thread() < 5) barrier();", r"deadlock.* 5 at barrier\(\) 59 at the end"),
    "barrier_and_another": ("if (thread() < 5) barrier(); else barrier_any(true);", "others at barrier_any"),
    "barrier_and_shuffle_xor": (
        "if (thread() < 5) barrier(); else q.to[0].value = shuffle_xor(1, 16);",
        r"deadlock.* 5 at barrier\(\) 27 in shuffle_xor\(\)",
    ),
    "shuffle_xor_of_some": (
        "if (thread() < 9) q.to[0].value = shuffle_xor(1, 1);",
        r"deadlock.* 9 in shuffle_xor\(\) 55 at the end",
    ),
    "shuffle_xor_two_ways": ("q.to[0].value = shuffle_xor(1, thread() % 32 < 9 ? 1 : 2);", "different places"),
    "shuffle_xor_and_shuffle": (
        "q.to[0].value = thread() % 32 < 9 ? shuffle_xor(1, 1) : float(shuffle(1, 1));",
        r"different places: shuffle_xor.*shuffle\b|different places: shuffle\b.*shuffle_xor",
    ),
    "shuffle_beyond": ("q.to[0].value = float(shuffle(1, 32));", "no lane 32"),
    "warp_barrier_of_some": ("if (thread() < 9) warp_barrier();", r"deadlock.* 9 at warp_barrier\(\)"),
    "shuffle_xor_no_power": ("q.to[0].value = shuffle_xor(1, 3);", "not a power of two"),
    "cluster_barrier_of_some": ("if (thread()) cluster_barrier();", r"deadlock.* 63 at cluster_barrier\(\)"),
    "index_of_shared": (
        "SHARED(float, memory, 64); memory[thread() + 1] = 1;",
        r"thread 63.* outside of its array: .*memory\[thread",
    ),
    "dynamic_beyond": ("DYNAMIC(float, memory); memory[thread() + 1] = 1;", "beyond its dynamic shared memory"),
    "dynamic_before": ("DYNAMIC(float, memory); memory[thread() - 1] = 1;", "beyond its dynamic shared memory"),
    "misaligned": ("q.to[0].value = ((const Two *)(q.from + 1))->e[0].value;", "misaligned"),
    "misaligned_dynamic": ("DYNAMIC(float, memory); ((Eight *)memory)->e[0].value = 1;", "misaligned"),
    "null": ("((X *)nullptr)[thread() - thread()].value = 1;", "null"),
    "address_of_nothing": ("((X *)16)[thread()].value = 1;", "memory that is not there"),
    "division_by_zero": ("q.to[0].value = 7 / (thread() - 3);", "thread 3.* division by zero"),
    "overflow": ("q.to[0].value = 2147483600 + thread();", "thread 48.* overflows"),
    "shift": ("q.to[0].value = 1 << thread();", "thread 3[12].* shift"),
    "recursion": ("q.to[0].value = deep(1);", "memory that is not there"),
    "copy_async_misaligned": (
        "DYNAMIC(float, memory); copy_async<16>(memory, q.from + 1, true);",
        "not a multiple of 16",
    ),
    "copy_async_elsewhere": ("copy_async<4>(q.to + thread(), q.from + thread(), true);", "not in shared memory"),
    "copy_async_beyond": (
        "DYNAMIC(float, memory); copy_async<4>(memory + thread() + 1, q.from, true);",
        "thread 63.*not in shared",
    ),
    "copy_async_changed": (
        "SHARED(float, memory, 64); X *source = const_cast<X *>(q.from) + thread();"
        "copy_async<4>(memory + thread(), source, true); source->value += 1; commit_copies(); wait_for_copies<0>();",
        "changed before it had landed",
    ),
    "copy_async_overwritten": (
        "SHARED(float, memory, 64); copy_async<4>(memory + thread(), q.from, true); memory[thread()] = 1;"
        "commit_copies(); wait_for_copies<0>();",
        "somebody wrote",
    ),
    "store_elsewhere": ("store_to_peer((float *)q.to, 0, 1);", "not in shared memory"),
    "store_to_nobody": ("SHARED(float, memory, 1); store_to_peer(memory, 1, 1);", "no block 1"),
}

TYPES = """
struct alignas(8) Two { X e[2]; };
struct alignas(32) Eight { X e[8]; };
__attribute__((noinline)) float deep(float depth) {
    volatile float kept[64] = {};
    kept[0] = depth;
    return deep(depth + 1) + kept[0];
}
"""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_is_reported(run: Runner, name: str, order: Order) -> None:
    """What a device would not forgive is a RuntimeError that says what it is, and the next launch is unharmed."""
    body, reason = WRONG[name]
    text = f"{TYPES} KERNEL(own_kernel)(Call q) {{ {body} }}"
    if order != "forward":
        reason = reason.replace("thread 63", "").replace("thread 48", "").replace("thread 3[12]", "")
    with pytest.raises(RuntimeError, match=reason):
        run(text, numbers(128), empty(64), shared=256, order=order)
    np.testing.assert_array_equal(run(SUM, numbers(64), empty(64), order=order), numbers(64).sum())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"grid": (3, 1), "ctas": 2}, "whole clusters of 2"),
        ({"threads": 48}, "neither below 32 nor a multiple"),
        ({"shared": 227 * 1024 - 255}, "the device has"),
        ({"grid": (1, 65536)}, "no grid"),
    ],
    ids=["cluster", "threads", "shared", "grid"],
)
def test_a_launch_that_no_device_takes(run: Runner, options: Any, reason: str) -> None:
    """A grid, block or amount of shared memory that no device takes is refused."""
    text = """CLUSTER_KERNEL(own_kernel)(Call q) {
        SHARED(float, memory, 64);
        memory[thread() % 64] = q.n;
        q.to[0].value = memory[5];
    }"""
    with pytest.raises(RuntimeError, match=reason):
        run(text, numbers(1), empty(1), **options)


def test_argument_of_another_size(run: Runner) -> None:
    """An argument that is not as long as the program's struct is refused."""
    macros = (("X", "f32"), ("THREADS", 32), ("CTAS", 1))
    kernel = OwnKernel("own_kernel", ("KERNEL(own_kernel)(Call q) {}",), macros)
    with pytest.raises(RuntimeError, match="16 bytes, the program takes 24"):
        cuda_host.launcher(run.folder)(Launch(kernel, (1, 1), 32, 0), bytes(16))


def test_text_that_does_not_compile(run: Runner) -> None:
    """What the compiler says is in the error."""
    with pytest.raises(RuntimeError, match="no_such_name"):
        run("KERNEL(own_kernel)(Call q) { no_such_name(q); }", numbers(1), empty(1))


MOVE = "KERNEL(own_kernel)(Call q) { q.to[own()] = q.from[own() + OFFSET]; }"


@pytest.mark.parametrize(("flush", "offset"), [("left", -1), ("right", 1)], ids=["before", "after"])
def test_guarded_arrays(run: Runner, flush: Any, offset: int) -> None:
    """A kernel may read all of a guarded array, not one element more, and not write where that is not allowed."""
    source, to = cuda_host.guarded(numbers(64), flush, writable=False), cuda_host.guarded(empty(64), flush)
    np.testing.assert_array_equal(run(MOVE.replace("OFFSET", "0"), source, to), numbers(64))
    with pytest.raises(RuntimeError, match="not there"):
        run(MOVE.replace("OFFSET", str(offset)), source, to)
    with pytest.raises(RuntimeError, match="may not be written"):
        run(MOVE.replace("OFFSET", "0"), to, source)


@pytest.mark.parametrize(
    ("first", "second"), [("", "barrier();"), ("barrier();", "")], ids=["to_read", "to_write_again"]
)
def test_a_missing_barrier_shows(run: Runner, first: str, second: str) -> None:
    """Where a barrier is missing, other orders of threads leave other bits."""
    results = [transposed(run, order, first, second).tobytes() for order in ORDERS]
    assert len(set(results)) == len(ORDERS)


def test_random_order_follows_from_its_seed(run: Runner) -> None:
    """A race in random order leaves the same bits for the same seed, and others for another."""
    text = TRANSPOSE.replace("FIRST", "").replace("SECOND", "barrier();")
    first, again, other = [
        run(text, numbers(64), empty(128), order="random", seed=seed).tobytes() for seed in (1, 1, 2)
    ]
    assert first == again != other


@pytest.mark.parametrize("place", [-1, 64, 40000], ids=["before", "after", "far"])
def test_reading_beyond_dynamic_shared_memory(run: Runner, place: int) -> None:
    """Where races are looked for, an access beyond the dynamic shared memory of a block is an error, also a read."""
    text = f"KERNEL(own_kernel)(Call q) {{ DYNAMIC(float, memory); q.to[own()].value = memory[{place}]; }}"
    with pytest.raises(RuntimeError, match="beyond dynamic shared memory"):
        run(text, numbers(1), empty(64), shared=256, races=True)


MEETS = "cluster_barrier();"
EACH_TWICE = TRANSPOSE.replace("FIRST", "barrier();").replace("SECOND", "barrier();")
RACES = {
    "none_in_a_transpose": (EACH_TWICE, 1, None),
    "none_in_a_cluster": (CLUSTER.replace("BEFORE", MEETS).replace("BETWEEN", MEETS), 2, None),
    "none_in_a_ring": (RING.replace("WAIT", "wait_for_copies<2>();").replace("COMMIT", "commit_copies();"), 1, None),
    "none_between_readers": ("KERNEL(own_kernel)(Call q) { q.to[own()].value = q.from[thread() / 2].value; }", 1, None),
    "neighbours_after_the_barrier": (
        "KERNEL(own_kernel)(Call q) { q.to[own()].value = 1; barrier(); q.to[own() ^ 1].value += q.to[own()].value; }",
        1,
        "of its block wrote what this one reads, in global",
    ),
    "read_before_written": (
        TRANSPOSE.replace("FIRST", "").replace("SECOND", "barrier();"),
        1,
        "read what this one writes, in shared",
    ),
    "written_while_read": (
        TRANSPOSE.replace("FIRST", "barrier();").replace("SECOND", ""),
        1,
        "wrote what this one reads, in shared",
    ),
    "barrier_of_a_block_in_a_cluster": (
        CLUSTER.replace("BEFORE", MEETS).replace("BETWEEN", "barrier();"),
        2,
        "another block .* in shared",
    ),
    "fetched_by_another": (
        RING.replace("WAIT", "wait_for_copies<2>();")
        .replace("COMMIT", "commit_copies();")
        .replace("+ thread()].e[e].value", "+ (thread() ^ 1)].e[e].value"),
        1,
        "in shared",
    ),
    "ordered_by_a_shuffle_alone": (
        "KERNEL(own_kernel)(Call q) { SHARED(float, memory, 64); memory[thread()] = 1; shuffle_xor(1, 1);"
        "q.to[own()].value = memory[thread() ^ 1]; }",
        1,
        "in shared",
    ),
    "ordered_by_a_barrier_of_the_warp": (
        "KERNEL(own_kernel)(Call q) { SHARED(float, memory, 64); memory[thread()] = 1; warp_barrier();"
        "q.to[own()].value = memory[thread() ^ 31]; }",
        1,
        None,
    ),
    "ordered_by_a_barrier_of_another_warp": (
        "KERNEL(own_kernel)(Call q) { SHARED(float, memory, 64); memory[thread()] = 1; warp_barrier();"
        "q.to[own()].value = memory[thread() ^ 32]; }",
        1,
        "in shared",
    ),
    "written_by_one_of_its_readers": (
        "KERNEL(own_kernel)(Call q) { SHARED(float, memory, 1); if (!thread()) memory[0] = 1; barrier();"
        "if (thread() >= 32) return; float sum = shuffle_xor(memory[0], 1);"
        "if (!thread()) memory[0] = sum; q.to[own()].value = sum; }",
        1,
        "read what this one writes, in shared",
    ),
    "the_same_written_twice": ("KERNEL(own_kernel)(Call q) { q.to[thread() / 2].value = 1; }", 1, "wrote .* in global"),
    "two_blocks_write": (
        "KERNEL(own_kernel)(Call q) { q.to[thread()].value = 1; }",
        1,
        "of another block .* in global",
    ),
    "a_block_reads_of_another": (
        "KERNEL(own_kernel)(Call q) { q.to[own()].value = 1; barrier(); q.to[own()].value += q.to[0].value; }",
        1,
        "wrote what this one reads, in global",
    ),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", RACES)
def test_races_are_found(run: Runner, name: str, order: Order) -> None:
    """Two accesses that nothing orders are reported in every order of threads, and those that are ordered never."""
    text, ctas, reason = RACES[name]
    ring = "ring" in text

    def launch() -> None:
        run(
            text,
            numbers(7 * 64 * 4),
            empty(256),
            grid=(1 if ring or "tile" in text else 2 * ctas, 1),
            shared=3 * 64 * 16,
            ctas=ctas,
            order=order,
            races=True,
        )

    if reason is None:
        launch()
    else:
        with pytest.raises(RuntimeError, match=f"race: .*{reason}" if order == "forward" else "race: "):
            launch()
