// `Call`, the one argument of every kernel, which _argument.py packs; vectors of elements; sums as trees.

#ifndef DW // dtypes of dweight and dbias, set for the kernel that writes them
#define DW f32
#define DB f32
#endif

struct Strides { // in elements
    i64 a, r, b, s;
};

// Division by `number` as a product and a shift; dividend and divisor are below 2^31.
struct Divisor {
    i64 number, factor, shift;
    DEV int into(int dividend) const { return (int)((u64)(u32)dividend * (u32)factor >> (int)shift); }
};

// Addresses are 0 where there is no array. x, y, dy and dx have the dtype X and the shape of x in their own strides.
struct Call {
    const X *x, *dy;
    union {
        X *y;  // forward pass
        X *dx; // backward pass
    };
    const W *weight;
    const B *bias;
    float *residuals; // (5, sets) f32: mean, correction, rstd, scale, m2
    union {
        float *partials;         // (5 or 2, field_stride) f32: what each chunk found, one field after the other
        const float *given_mean; // (sets) f32, for the kernel `given_statistics`
    };
    union {
        float *means;           // (2, sets) f32: the means of g and of g·x̂
        const float *given_var; // (sets) f32
    };
    float *dweight_partials, *dbias_partials; // (outer, kept, inner) f32, to be summed over outer and inner
    DW *dweight;                              // (kept)
    DB *dbias;                                // (kept)
    i64 sets, b_length, n;                    // sets = A·B; sets along B; elements of a set
    i64 rows, columns;                        // of the table that a kernel goes over
    i64 chunks, field_stride;                 // chunks of a set; floats of one field of `partials`
    i64 sets_per_group;                       // sets that a thread group takes one after the other
    i64 outer, kept, inner;                   // lengths of dweight_partials
    i64 line_length, pieces, items;           // elements of a line; pieces of a set; vectors of a thread
    Divisor per_line, per_r;                  // pieces of a line; lines of an index along R
    Strides x_strides, dy_strides;
    union {
        Strides y_strides, dx_strides;
    };
    Strides weight_strides, bias_strides;
    union {
        Strides partial_strides; // along A, chunks, B, and the columns of a set
        Strides given_strides;
    };
    double eps, rsqrt_eps; // rsqrt_eps is 1/√eps, or 0 for eps = 0: the rstd of a set of equal values
};

// Elements in 16 bytes. Vectors have this length at any alignment, so the order of sums does not depend on alignment.
constexpr int VEC = 16 / sizeof(X);

template <int BYTES> struct WordOfBytes;
template <> struct WordOfBytes<16> { using Word = Words16; };
template <> struct WordOfBytes<8> { using Word = Words8; };
template <> struct WordOfBytes<4> { using Word = u32; };
template <> struct WordOfBytes<2> { using Word = u16; };
template <int BYTES> using Words = typename WordOfBytes<BYTES>::Word;

constexpr int least(int a, int b) { return a < b ? a : b; }

// VEC neighbouring elements, moved in words of at most BYTES bytes; of the last vector of a line, `count` are moved.
template <class T> struct alignas(16) Elements {
    static constexpr int SIZE = VEC * sizeof(T);
    T e[VEC];

    template <int BYTES, bool CONSTANT = false> DEV void read(const T *from, int count) {
        using Word = Words<least(BYTES, SIZE)>;
        if (count >= VEC) {
#pragma unroll
            for (int i = 0; i < SIZE / (int)sizeof(Word); i++) {
                const Word *word = (const Word *)from + i;
                ((Word *)e)[i] = CONSTANT ? load_constant(word) : *word;
            }
        } else {
#pragma unroll
            for (int i = 0; i < VEC; i++) e[i] = i < count ? from[i] : T();
        }
    }

    // Return an element, upcast.
    DEV float operator[](int i) const {
        if constexpr (sizeof(T) == 4)
            return get(e[i]);
        else
            return in_word<T>(((const u32 *)e)[i / 2], i % 2);
    }

    // Make the compiler keep the packed elements: 8 of them take 16 bytes, upcast they would take 32.
    DEV void pin() {
#pragma unroll
        for (int i = 0; i < (int)sizeof(e) / 4; i++) forget(((u32 *)e)[i]);
    }

    template <int BYTES> DEV void write(T *to, int count) const {
        using Word = Words<least(BYTES, SIZE)>;
        if (count >= VEC) {
#pragma unroll
            for (int i = 0; i < SIZE / (int)sizeof(Word); i++) ((Word *)to)[i] = ((const Word *)e)[i];
        } else {
#pragma unroll
            for (int i = 0; i < VEC; i++)
                if (i < count) to[i] = e[i];
        }
    }
};
using Vector = Elements<X>;

constexpr int ABSENT = 0; // layouts of WEIGHT and BIAS; lines.cu and columns.cu have the others

// Operations by which values of several threads are combined.
struct Add {
    DEV static float apply(float a, float b) { return a + b; }
};
struct Max { // of magnitudes
    DEV static float apply(float a, float b) { return fmaxf(a, b); }
};

// Return the sum of the terms, or of the products of two vectors, added as a tree.
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
