// Stands in for kernels/device.cu, name by name, to run the kernels on the CPU: threads.cpp has the threads.

#include "threads.h"

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

extern "C" {
float sqrtf(float) noexcept;
float fmaf(float, float, float) noexcept;
float fabsf(float) noexcept;
float fmaxf(float, float) noexcept;
float fminf(float, float) noexcept;
double sqrt(double) noexcept;
}

// All that a program keeps in .bss is its SHARED arrays, at one address for every block: blocks take turns there.
#define DEV inline
#define SHARED(type, name, count) static type name[count]
#define DYNAMIC(type, name) type *const name = (type *)host::arena.dynamic

#define KERNEL(name)                      \
    constexpr int cluster_of_##name = 1;  \
    extern "C" void name
#define CLUSTER_KERNEL(name)                 \
    constexpr int cluster_of_##name = CTAS;  \
    extern "C" void name

// What ends the text of a program.
#define PROGRAM(name)                                                                                                \
    extern "C" unsigned char __bss_start[] __attribute__((visibility("hidden")));                                    \
    extern "C" unsigned char _end[] __attribute__((visibility("hidden")));                                           \
    extern "C" __attribute__((visibility("default"))) const host::Program program = {                                \
        [](const void *argument) { name(*static_cast<const Call *>(argument)); }, sizeof(Call), THREADS,             \
        cluster_of_##name, __bss_start, _end};

struct f32 { float value; };
struct f16 { u16 bits; };
struct bf16 { u16 bits; };

inline u32 bits_of(float number) {
    u32 bits;
    __builtin_memcpy(&bits, &number, 4);
    return bits;
}

inline float number_of(u32 bits) {
    float number;
    __builtin_memcpy(&number, &bits, 4);
    return number;
}

DEV float get(f32 a) { return a.value; }
DEV float get(bf16 a) { return number_of((u32)a.bits << 16); }
DEV float get(f16 a) {
    u32 sign = (u32)(a.bits & 0x8000) << 16, magnitude = a.bits & 0x7fff;
    if (magnitude > 0x7c00) return number_of(0x7fffffff); // the device's one NaN
    if (magnitude == 0x7c00) return number_of(sign | 0x7f800000);
    if (magnitude < 0x0400) return number_of(sign | bits_of(magnitude * 0x1p-24f));
    return number_of(sign | ((magnitude << 13) + (112u << 23)));
}

template <class T> DEV float in_word(u32 word, bool upper) { return get(T{(u16)(upper ? word >> 16 : word)}); }

// Half of the last place kept, less one unless that place is odd, carries where rounding to nearest even goes up.
inline u32 rounded(u32 bits, int dropped) {
    return (bits + (1u << (dropped - 1)) - 1 + (bits >> dropped & 1)) >> dropped;
}

DEV void put(f32 &a, float number) { a.value = number; }
DEV void put(bf16 &a, float number) {
    a.bits = number != number ? 0x7fff : rounded(bits_of(number), 16);
}
DEV void put(f16 &a, float number) {
    u32 bits = bits_of(number), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) // the device's one NaN has no sign
        a.bits = 0x7fff;
    else if (magnitude >= 0x47800000) // 65536: beyond the largest even when rounded down
        a.bits = sign | 0x7c00;
    else if (magnitude < 0x38800000) // 2^-14: the sum's last place is a subnormal's
        a.bits = sign | (bits_of(number_of(magnitude) + 0.5f) - bits_of(0.5f));
    else
        a.bits = sign | (rounded(magnitude, 13) - (112u << 10));
}

struct alignas(16) Words16 { u32 word[4]; };
struct alignas(8) Words8 { u32 word[2]; };
template <class T> DEV T load_constant(const T *from) { return *from; }

DEV int thread() { return host::here->thread; }
DEV int block() { return host::here->block; }
DEV int block_row() { return host::here->row; }
DEV int blocks() { return host::here->blocks; }
DEV int block_rows() { return host::here->rows; }

DEV float shuffle_xor(float value, int apart) { return host::exchange(value, apart); }
DEV i64 shuffle(i64 value, int lane) { return host::shuffle(value, lane); }
DEV bool warp_any(bool mine) { return host::exchange_any(mine); }
DEV void warp_barrier() { host::meet_warp(); }
DEV void barrier() { host::meet(); }
DEV bool barrier_any(bool mine) { return host::meet_any(mine); }

DEV int cluster_rank() { return host::here->rank; }
DEV void cluster_barrier() { host::meet_cluster(); }
DEV void store_to_peer(float *mine, int peer, float number) { host::store(mine, peer, number); }

template <int BYTES> DEV void copy_async(void *shared, const void *global, bool wanted) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "what the device can copy at once");
    host::copy_later(shared, global, BYTES, wanted);
}
DEV void commit_copies() { host::close_group(); }
template <int LEFT> DEV void wait_for_copies() { host::land(LEFT); }

DEV void forget(u32 &word) { asm volatile("" : "+r"(word)); }
template <class T> DEV T *forget_origin(T *address) { return address; }
