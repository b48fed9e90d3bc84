// Vectors of X: loading them, holding them between two passes over a set, and storing results.
//
// LANES neighbouring threads have neighbouring vectors of one line. Where vectors are aligned to 16 bytes each thread
// moves its own. Where they are not (LOAD < 16) a warp moves the vectors of all its threads together, through shared
// memory, in words of LOAD bytes, so that neighbouring threads move neighbouring words.

constexpr int REGISTERS = 1, MEMORY = 2; // HOLD: where vectors are held; MEMORY is shared memory
static_assert(LOAD == 16 || HOLD == MEMORY, "vectors that are not aligned go through shared memory");
static_assert(32 % LANES == 0, "vectors that are moved together are of one warp");

#define PRAGMA(text) _Pragma(#text)
#define FOR_ELEMENTS PRAGMA(unroll) for (int e = 0; e < VEC; e++)
#define FOR_REGISTER_ITEMS PRAGMA(unroll) for (int i = 0; i < ITEMS; i++) // items in registers
#if HOLD == 1
#define FOR_ITEMS FOR_REGISTER_ITEMS
#else
#define FOR_ITEMS PRAGMA(unroll 2) for (int i = 0; i < items(call); i++)
#endif

// Return how many vectors a thread has: compiled in, or an argument where ITEMS is 0.
DEV int items(const Call &call) { return ITEMS ? ITEMS : (int)call.items; }

// Return the dynamic shared memory of the block.
DEV Vector *dynamic_memory() {
    DYNAMIC(Vector, memory);
    return memory;
}

using Word = Words<least(LOAD, 8)>;
constexpr int WORDS = 16 / LOAD; // that a thread moves for one vector

// Return the k-th word that this thread moves of the warp's vectors in shared memory; `own` is the thread's own vector.
DEV Word &shared_word(const Vector &own, int k) { return ((Word *)(&own - thread() % 32))[k * 32 + thread() % 32]; }

// Call move(k, address of the k-th word, whether the line has it) for each word that this thread moves. `from` is the
// address of the thread's own vector, `valid` how many elements the line has from there on.
template <class T, class Move> DEV void for_each_word(T *from, int valid, Move move) {
    constexpr int SUBGROUP_WORDS = LANES * WORDS, TURNS = SUBGROUP_WORDS < 32 ? 1 : SUBGROUP_WORDS / 32;
    const i64 own = (i64)from, own_words = least(valid, LANES * VEC) * (int)sizeof(X) / LOAD;
    Word *begin = nullptr;
    int words = 0;
#pragma unroll
    for (int k = 0; k < WORDS; k++) {
        const int word = k * 32 + thread() % 32, first = word / SUBGROUP_WORDS * LANES, number = word % SUBGROUP_WORDS;
        if (k % TURNS == 0) begin = (Word *)shuffle(own, first), words = (int)shuffle(own_words, first);
        move(k, begin + number, number < words);
    }
}

// Start to load a thread's vector into shared memory. Elements beyond `valid` become 0.
template <int BYTES = LOAD> DEV void start_load(Vector &own, const X *from, int valid) {
    if constexpr (BYTES == 16) {
        if (valid >= VEC)
            copy_async<16>(&own, from, true);
        else
            own.template read<16>(from, valid);
    } else if constexpr (BYTES >= 4) {
        for_each_word(from, valid, [&](int k, const Word *word, bool wanted) {
            copy_async<BYTES>(&shared_word(own, k), word, wanted);
        });
    } else {
        Word words[WORDS]; // so that all loads are in flight at once
        for_each_word(from, valid, [&](int k, const Word *word, bool wanted) { words[k] = wanted ? *word : Word(); });
#pragma unroll
        for (int k = 0; k < WORDS; k++) shared_word(own, k) = words[k];
    }
}

// Store a vector; where it is not aligned, through `own`, the thread's vector in shared memory.
DEV void store(X *to, int valid, const Vector &y, Vector &own) {
    if constexpr (LOAD == 16) {
        y.template write<16>(to, valid);
    } else {
        own = y;
        warp_barrier();
        Word words[WORDS];
#pragma unroll
        for (int k = 0; k < WORDS; k++) words[k] = shared_word(own, k);
        for_each_word(to, valid, [&](int k, Word *word, bool wanted) {
            if (wanted) *word = words[k];
        });
    }
}

// Wait until at most LEFT groups of loads are in flight.
template <int LEFT> DEV void wait_for_loads() {
    wait_for_copies<LEFT>();
    if (LOAD < 16) warp_barrier();
}

// A thread's vectors between two passes, in registers or in shared memory; TENSOR 0 is x, 1 is dy.
template <int TENSOR> struct Held {
    Vector own[HOLD == REGISTERS ? ITEMS : 1];
    int before; // vectors that a thread holds of tensors before this one

    DEV explicit Held(const Call &call) : before(TENSOR * items(call)) {}

    DEV Vector &slot(int i) const { return dynamic_memory()[(before + i) * THREADS + thread()]; }

    DEV void start(int i, const X *from, int valid) {
        if constexpr (HOLD == REGISTERS)
            own[i].template read<LOAD>(from, valid);
        else
            start_load(slot(i), from, valid);
    }

    DEV Vector at(int i) {
        if constexpr (HOLD == MEMORY) {
            return slot(i);
        } else {
            own[i].pin();
            return own[i];
        }
    }

    // Store what was computed from the i-th vector, which is not needed any more.
    DEV void store(int i, X *to, int valid, const Vector &y) {
        if constexpr (HOLD == MEMORY)
            ::store(to, valid, y, slot(i));
        else
            y.template write<LOAD>(to, valid);
    }
};

DEV void wait_for_all_loads() {
    if (HOLD == MEMORY) commit_copies(), wait_for_loads<0>();
}
