"""Kernels that are text of a test, and what runs them on arrays. No kernel of the library is known here."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cuda_host
import numpy as np
from cuda_host import Order

from anynorm_cuda._program import Kernel, Launch

# `from` and `to` are arrays of the test; a thread's own number runs through all blocks.
START = """
struct Call { const X *from; X *to; i64 n; };
DEV int own() { return block() * THREADS + thread(); }
"""


class OwnKernel(Kernel):
    """A kernel whose parts are text, not files."""

    def source(self, device: str | None = None) -> str:
        return "\n".join([str(device), START, *self.parts])


class Runner:
    """Runs a text as a kernel named `own_kernel`, on arrays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        text: str,
        source: Any,
        to: Any,
        *,
        grid: tuple[int, int] = (1, 1),
        threads: int = 64,
        shared: int = 0,
        ctas: int = 1,
        kind: str = "f32",
        order: Order = "forward",
        seed: int = 0,
        races: bool = False,
    ) -> Any:
        macros = (("X", kind), ("W", kind), ("B", kind), ("THREADS", threads), ("CTAS", ctas))
        launch = cuda_host.launcher(self.folder, order=order, seed=seed, races=races)
        argument = struct.pack("QQq", source.ctypes.data, to.ctypes.data, source.size)
        launch(Launch(OwnKernel("own_kernel", (text,), macros), grid, threads, shared), argument)
        return to


def numbers(count: int) -> Any:
    """Return small whole numbers, whose sums are exact."""
    return (np.arange(count, dtype=np.float32) * 7) % 31


def empty(count: int) -> Any:
    """Return memory for results, none of them there yet."""
    return np.full(count, -1, np.float32)


SUM = """
DEV float sum_of_warp(float value) {
    for (int apart = 16; apart; apart /= 2) value += shuffle_xor(value, apart);
    return value;
}
KERNEL(own_kernel)(Call q) {
    SHARED(float, sums, THREADS / 32);
    float sum = sum_of_warp(q.from[own()].value);
    if (thread() % 32 == 0) sums[thread() / 32] = sum;
    barrier();
    sum = 0;
    for (int warp = 0; warp < THREADS / 32; warp++) sum += sums[warp];
    q.to[own()].value = sum;
}
"""


TRANSPOSE = """
KERNEL(own_kernel)(Call q) {
    SHARED(float, tile, 8 * 8);
    for (int turn = 0; turn < 2; turn++) {
        tile[thread()] = q.from[thread()].value + 100 * turn;
        FIRST
        q.to[turn * 64 + thread()].value = tile[thread() % 8 * 8 + thread() / 8];
        SECOND
    }
}
"""


def transposed(run: Runner, order: Order, first: str, second: str) -> Any:
    """Return what a transpose through shared memory leaves, done twice, with these barriers."""
    text = TRANSPOSE.replace("FIRST", first).replace("SECOND", second)
    return run(text, numbers(64), empty(128), order=order)


CLUSTER = """
CLUSTER_KERNEL(own_kernel)(Call q) {
    SHARED(float, fixed, THREADS * CTAS);
    DYNAMIC(float, open);
    BEFORE
    for (int turn = 0; turn < 2; turn++) {
        for (int peer = 0; peer < CTAS; peer++) {
            float value = (q.from[own()].value + turn) * (peer + 1);
            store_to_peer(&fixed[cluster_rank() * THREADS + thread()], peer, value);
            store_to_peer(&open[cluster_rank() * THREADS + thread()], peer, -value);
        }
        BETWEEN
        float sum = 0;
        for (int i = 0; i < CTAS * THREADS; i++) sum += fixed[i] - open[i];
        q.to[own()].value = sum;
        cluster_barrier();
    }
}
"""


RING = """
struct alignas(16) Four { X e[4]; };
DYNAMIC(Four, ring);
KERNEL(own_kernel)(Call q) {
    const int stages = 3, turns = 7;
    auto start = [&](int turn) {
        const X *from = q.from + (turn * THREADS + thread()) * 4;
        copy_async<16>(&ring[turn % stages * THREADS + thread()], from, turn < turns);
        COMMIT
    };
    start(0), start(1);
    float sum = 0;
    for (int turn = 0; turn < turns; turn++) {
        start(turn + 2);
        WAIT
        for (int e = 0; e < 4; e++) sum += ring[turn % stages * THREADS + thread()].e[e].value * (turn + 1);
    }
    q.to[thread()].value = sum;
}
"""
