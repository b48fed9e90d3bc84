"""Sources for the compiler, and kernels made of them. No norm is computed here."""

from __future__ import annotations

from pathlib import Path

from anynorm_cuda._program import Kernel

SMALL = "KERNEL(small)(Call q) { put(q.y[thread()], get(q.x[thread()])); }"

# Twice the registers that a thread may have are needed between two barriers.
SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) spilling(float *x) {
    float held[128];
    #pragma unroll
    for (int i = 0; i < 128; i++) held[i] = x[1024 * i + threadIdx.x];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 128; i++) x[1024 * i + threadIdx.x] = held[i] * held[127 - i];
}
extern "C" __global__ void indexed(float *x, int n) {
    volatile float local[64];
    for (int i = 0; i < 64; i++) local[i] = x[i * n];
    x[n] = local[n];
}
extern "C" __global__ void dividing(double *x, int n) { x[n] = sqrt(x[0]) / x[1]; }
extern "C" __global__ void sharing(float *x, int n) {
    __shared__ float own[100];
    extern __shared__ __align__(16) float memory[];
    own[threadIdx.x] = memory[threadIdx.x] = x[n];
    __syncthreads();
    x[n] = own[n] + memory[n];
}
__device__ __noinline__ float called(float *x, int n) {
    volatile float local[32];
    for (int i = 0; i < 32; i++) local[i] = x[i * n];
    return local[n];
}
extern "C" __global__ void calling(float *x, int n) { x[n] = called(x, n); }
extern "C" __global__ void empty() {}
"""

# Every name that the device's part gives.
PRIMITIVES = """
DEV float of(const f32 &a, const f16 &b, const bf16 &c) { return get(a) + get(b) + get(c); }
#if CTAS > 1
CLUSTER_KERNEL(primitives)(Call q) {
#else
KERNEL(primitives)(Call q) {
#endif
    DYNAMIC(float, memory);
    SHARED(float, slots, 32);
    int t = thread();
    copy_async<16>(memory + 4 * t, q.x, true);
    copy_async<8>(memory + 2 * t, q.x, q.eps > 0);
    commit_copies();
    copy_async<4>(memory + t, q.dy, false);
    commit_copies();
    wait_for_copies<1>();
    wait_for_copies<0>();
    u32 word = t;
    forget(word);
    f16 half;
    bf16 brain;
    f32 single;
    put(half, get(q.x[word]));
    put(brain, get(q.weight[word]));
    put(single, get(q.bias[word]));
    float number = shuffle_xor(of(single, half, brain), 16);
    slots[t & 31] = number;
    warp_barrier();
    if (warp_any(number > 5.0f)) number += slots[shuffle(t, 31 - (t & 31)) & 31];
    barrier();
    if (barrier_any(number > 3.0f)) number += slots[0] + memory[t];
#if CTAS > 1
    cluster_barrier();
    store_to_peer(slots, (cluster_rank() + 1) % CTAS, number);
    cluster_barrier();
    number += slots[0];
#endif
    put(q.y[(i64)block() * THREADS + t + block_row() + blocks()], number);
}
"""


def kernel_of(folder: Path, source: str, name: str, **macros: str | int) -> Kernel:
    """Return a kernel whose source, behind what all have in common, is a file of its own in a folder."""
    part = folder / f"{name}.cu"
    part.write_text(source)
    given = {"X": "bf16", "W": "f32", "B": "f16", "THREADS": 128, "CTAS": 1, **macros}
    return Kernel(
        name, ("call", str(part.with_suffix(""))), tuple(given.items())
    )  # where a part is a path, it is taken
