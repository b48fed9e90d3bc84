// The device's dtypes, threads and memory; PTX where CUDA C++ has no function for it. Nothing here is about norms. No
// header is included, because NVRTC's wheel has none.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEV __device__ __forceinline__
#define KERNEL(name) extern "C" __global__ void BOUNDS name
#define CLUSTER_KERNEL(name) extern "C" __global__ void CLUSTER_DIMS BOUNDS name
#define SHARED(type, name, count) __shared__ type name[count]
#define DYNAMIC(type, name) extern __shared__ __align__(16) type name[]

#ifdef MIN_BLOCKS // blocks that shall run on one multiprocessor at the same time
#define BOUNDS __launch_bounds__(THREADS, MIN_BLOCKS)
#else
#define BOUNDS __launch_bounds__(THREADS)
#endif

#if CTAS > 1
#define CLUSTER_DIMS __cluster_dims__(CTAS, 1, 1)
#else
#define CLUSTER_DIMS
#endif

// Elements as memory holds them; `get` upcasts to float, in which all arithmetic is done, and `put` rounds.
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

// The element in the lower or the upper half of a word: from there the conversion is one instruction.
template <class T> DEV float in_word(u32 word, bool upper);
template <> DEV float in_word<bf16>(u32 word, bool upper) {
    return __uint_as_float(upper ? word & 0xffff0000u : word << 16);
}
template <> DEV float in_word<f16>(u32 word, bool upper) {
    float number;
    if (upper)
        asm("{ .reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b; }" : "=f"(number) : "r"(word));
    else
        asm("{ .reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a; }" : "=f"(number) : "r"(word));
    return number;
}

DEV void put(f32 &a, float number) { a.value = number; }
DEV void put(bf16 &a, float number) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(a.bits) : "f"(number)); }
DEV void put(f16 &a, float number) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(a.bits) : "f"(number)); }

// Loads from global memory that nobody writes while the kernel runs: the compiler may move them past stores.
struct alignas(16) Words16 { u32 word[4]; };
struct alignas(8) Words8 { u32 word[2]; };
DEV Words16 load_constant(const Words16 *from) {
    Words16 loaded;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(loaded.word[0]), "=r"(loaded.word[1]), "=r"(loaded.word[2]), "=r"(loaded.word[3])
        : "l"(from));
    return loaded;
}
DEV Words8 load_constant(const Words8 *from) {
    Words8 loaded;
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(loaded.word[0]), "=r"(loaded.word[1]) : "l"(from));
    return loaded;
}
DEV u32 load_constant(const u32 *from) {
    u32 loaded;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(loaded) : "l"(from));
    return loaded;
}
DEV u16 load_constant(const u16 *from) {
    u16 loaded;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(loaded) : "l"(from));
    return loaded;
}

DEV int thread() { return threadIdx.x; }
DEV int block() { return blockIdx.x; }
DEV int block_row() { return blockIdx.y; }
DEV int blocks() { return gridDim.x; }
DEV int block_rows() { return gridDim.y; }

// Return the value of the lane whose number differs in the bit `apart`, a power of two below 32.
DEV float shuffle_xor(float value, int apart) { return __shfl_xor_sync(0xffffffffu, value, apart); }

// Return the value of another lane of the warp.
DEV i64 shuffle(i64 value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// Return whether `mine` is true in any thread of the warp; `barrier_any`, of the block.
DEV bool warp_any(bool mine) { return __any_sync(0xffffffffu, mine); }

DEV void warp_barrier() { __syncwarp(); }

DEV void barrier() { __syncthreads(); }
DEV bool barrier_any(bool mine) { return __syncthreads_or(mine); }

// The blocks of a cluster: the index of this one, a barrier of all, and a store to the same shared address of another.
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

// Start an async copy of BYTES (4, 8 or 16) from global to shared memory; of zeros, reading nothing, if not `wanted`.
template <int BYTES> DEV void copy_async(void *shared, const void *global, bool wanted) {
    u32 address = (u32)__cvta_generic_to_shared(shared);
    int bytes = wanted ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(BYTES), "r"(bytes)
                     : "memory");
}

// Close the group of the copies started so far; wait until at most LEFT groups are in flight.
DEV void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> DEV void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Hide from the compiler where a word comes from, so that it keeps the word and not values computed from it.
DEV void forget(u32 &word) { asm volatile("" : "+r"(word)); }

// Hide from the compiler how a global address was computed, so that it does not compute the next one from scratch.
template <class T> DEV T *forget_origin(T *address) {
    asm volatile("" : "+l"(address));
    __builtin_assume(__isGlobal(address));
    return address;
}
