// Numbers, threads and memory of the device; PTX where C++ has no word for it. Nothing about norms. No header is
// included: NVRTC's wheel has none.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEV __device__ __forceinline__
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(THREADS) name
#define CLUSTER_KERNEL(name) extern "C" __global__ void CLUSTER_DIMS __launch_bounds__(THREADS) name
#define SHARED(type, name, count) __shared__ type name[count]
#define DYNAMIC(type, name) extern __shared__ __align__(16) type name[]

#if CTAS > 1
#define CLUSTER_DIMS __cluster_dims__(CTAS, 1, 1)
#else
#define CLUSTER_DIMS
#endif

// Elements as they lie in memory; all arithmetic is in float.
struct f32 { float value; };
struct f16 { u16 bits; };
struct bf16 { u16 bits; };

DEV float get(f32 a) { return a.value; }
DEV float get(bf16 a) { return __uint_as_float((u32)a.bits << 16); }
DEV float get(f16 a) {
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(a.bits));
    return number;
}

DEV void put(f32 &a, float number) { a.value = number; }
DEV void put(bf16 &a, float number) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(a.bits) : "f"(number)); }
DEV void put(f16 &a, float number) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(a.bits) : "f"(number)); }

DEV int thread() { return threadIdx.x; }
DEV int block() { return blockIdx.x; }
DEV int block_row() { return blockIdx.y; }
DEV int blocks() { return gridDim.x; }
DEV int block_rows() { return gridDim.y; }

// The value of the thread whose number differs in the bit `apart`, a power of two below 32.
DEV float across(float value, int apart) { return __shfl_xor_sync(0xffffffffu, value, apart); }

// What another thread of the warp has.
DEV i64 from_lane(i64 value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// Whether it holds for any thread of the warp.
DEV bool warp_any(bool mine) { return __any_sync(0xffffffffu, mine); }

DEV void warp_barrier() { __syncwarp(); }

DEV void barrier() { __syncthreads(); }
DEV bool barrier_any(bool mine) { return __syncthreads_or(mine); }

// The blocks of a cluster: which of them this one is, a barrier of all, and a store to the same place in another.
DEV int cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

DEV void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

DEV void store_to_peer(float *mine, int peer, float number) {
    u32 address = (u32)__cvta_generic_to_shared(mine), theirs;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(theirs) : "r"(address), "r"(peer));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(theirs), "f"(number) : "memory");
}

// Start to copy BYTES, 4, 8 or 16, from global to shared memory; zeros if not `wanted`, when nothing is read.
template <int BYTES> DEV void fetch(void *shared, const void *global, bool wanted) {
    u32 address = (u32)__cvta_generic_to_shared(shared);
    int bytes = wanted ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(BYTES), "r"(bytes)
                     : "memory");
}

// What was started before is one group; wait until all but the last LEFT groups have landed.
DEV void fetch_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> DEV void fetch_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Let the compiler forget what it knows of a word, so that it keeps the word and not what it has computed from it.
DEV void forget(u32 &word) { asm volatile("" : "+r"(word)); }
