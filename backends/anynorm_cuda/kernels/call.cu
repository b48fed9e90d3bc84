// The one argument of every kernel, and numbers side by side in memory. _geometry.py packs the argument.

#ifndef DW // types of the gradients of weight and bias, known to the kernel that writes them
#define DW f32
#define DB f32
#endif

struct Steps { // in elements
    i64 a, r, b, s;
};

// A number that others are divided by, below 2^31 both, as a product and a shift.
struct Divisor {
    i64 number, factor, shift;
    DEV int into(int dividend) const { return (int)((u64)(u32)dividend * (u32)factor >> (int)shift); }
};

struct Call {
    const X *x, *dy;
    X *y; // dx in a backward pass
    const W *weight;
    const B *bias;
    float *saved;   // planes of a number for each set: mean, correction, rstd, scale, m2
    float *partial; // planes of what chunks of sets leave
    float *means;   // planes of a number for each set: the means of g and of g·x̂
    float *to_weight, *to_bias;
    DW *dweight;
    DB *dbias;
    i64 sets, inner, n, rows, columns, chunks, plane, share, outer, kept, within, run, pieces, items;
    Divisor per_line, per_r;
    Steps of_x, of_dy, of_y, of_weight, of_bias, of_partial;
    double eps, root;
};

// As many elements as 16 bytes hold, whatever they are aligned to: so that the order of sums does not depend on it.
constexpr int VEC = 16 / sizeof(X);

template <int BYTES> struct OfBytes;
template <> struct OfBytes<16> { using Word = Words16; };
template <> struct OfBytes<8> { using Word = Words8; };
template <> struct OfBytes<4> { using Word = u32; };
template <> struct OfBytes<2> { using Word = u16; };
template <int BYTES> using Words = typename OfBytes<BYTES>::Word;

constexpr int least(int a, int b) { return a < b ? a : b; }

// VEC neighbours of any type, read and written in pieces of BYTES; of the last in a line, those that are there.
template <class T> struct alignas(16) Several {
    static constexpr int SIZE = VEC * sizeof(T);
    T e[VEC];

    template <int BYTES, bool CONSTANT = false> DEV void read(const T *from, int count) {
        using Piece = Words<least(BYTES, SIZE)>;
        if (count >= VEC) {
#pragma unroll
            for (int i = 0; i < SIZE / (int)sizeof(Piece); i++) {
                const Piece *piece = (const Piece *)from + i;
                ((Piece *)e)[i] = CONSTANT ? constant(piece) : *piece;
            }
        } else {
#pragma unroll
            for (int i = 0; i < VEC; i++) e[i] = i < count ? from[i] : T();
        }
    }

    // An element as a number.
    DEV float operator[](int i) const {
        if constexpr (sizeof(T) == 4)
            return get(e[i]);
        else
            return in_word<T>(((const u32 *)e)[i / 2], i % 2);
    }

    // Keep the elements as they lie: 8 numbers made of 16 bytes would take 32.
    DEV void pin() {
#pragma unroll
        for (int i = 0; i < (int)sizeof(e) / 4; i++) forget(((u32 *)e)[i]);
    }

    template <int BYTES> DEV void write(T *to, int count) const {
        using Piece = Words<least(BYTES, SIZE)>;
        if (count >= VEC) {
#pragma unroll
            for (int i = 0; i < SIZE / (int)sizeof(Piece); i++) ((Piece *)to)[i] = ((const Piece *)e)[i];
        } else {
#pragma unroll
            for (int i = 0; i < VEC; i++)
                if (i < count) to[i] = e[i];
        }
    }
};
using Vector = Several<X>;

constexpr int NONE = 0; // WEIGHT, BIAS

// How numbers of several threads are combined.
struct Plus {
    DEV static float of(float a, float b) { return a + b; }
};
struct Most { // of magnitudes
    DEV static float of(float a, float b) { return fmaxf(a, b); }
};

// The sum of a vector's terms, and of the products of two vectors, as a tree.
template <int COUNT> DEV float total(const float (&terms)[COUNT]) {
    float sums[COUNT / 2];
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) sums[i] = terms[i] + terms[i + COUNT / 2];
    if constexpr (COUNT == 2)
        return sums[0];
    else
        return total(sums);
}

DEV float total(const float (&a)[VEC], const float (&b)[VEC]) {
    float sums[VEC / 2];
#pragma unroll
    for (int i = 0; i < VEC / 2; i++) sums[i] = fmaf(a[i], b[i], a[i + VEC / 2] * b[i + VEC / 2]);
    return total(sums);
}
