// Vectors of X: how they come from memory, where threads hold them between two passes, and how they go back.
//
// LANES threads side by side have vectors side by side, all of one line. Where these are aligned, each thread moves its
// own. Where they are not (LOAD below 16) a warp moves all of its threads' together, by way of shared memory: in words
// of LOAD bytes, neighbours by neighbours.

constexpr int REGISTERS = 1, MEMORY = 2; // HOLD
static_assert(LOAD == 16 || HOLD == MEMORY, "vectors that are not aligned go by way of shared memory");
static_assert(32 % LANES == 0, "a warp has all vectors that are moved together");

#define PRAGMA(text) _Pragma(#text)
#define EACH PRAGMA(unroll) for (int e = 0; e < VEC; e++)
#define EVERY_ITEM PRAGMA(unroll) for (int i = 0; i < ITEMS; i++) // with what is in registers
#if HOLD == 1
#define EACH_ITEM EVERY_ITEM
#else
#define EACH_ITEM PRAGMA(unroll 2) for (int i = 0; i < items(q); i++)
#endif

// A thread's vectors: where that is not known when the kernel is compiled (ITEMS of 0), the argument tells.
DEV int items(const Call &q) { return ITEMS ? ITEMS : (int)q.items; }

// What a block's threads may share.
DEV Vector *room() {
    DYNAMIC(Vector, memory);
    return memory;
}

using Word = Words<least(LOAD, 8)>;
constexpr int WORDS = 16 / LOAD; // that a thread moves

// The k-th word that a thread moves of its warp's vectors, in shared memory; `own` is where its own vector lies.
DEV Word &shared_word(const Vector &own, int k) { return ((Word *)(&own - thread() % 32))[k * 32 + thread() % 32]; }

// Call move(k, where its k-th word lies in memory, whether there is one). `from` is where the thread's own vector
// begins, `there` how many elements its line has from there on.
template <class T, class Move> DEV void each_word(T *from, int there, Move move) {
    constexpr int OF_UNIT = LANES * WORDS, TURNS = OF_UNIT < 32 ? 1 : OF_UNIT / 32; // in which a warp moves a unit's
    const i64 own = (i64)from, own_words = least(there, LANES * VEC) * (int)sizeof(X) / LOAD;
    Word *begin = nullptr;
    int words = 0;
#pragma unroll
    for (int k = 0; k < WORDS; k++) {
        const int word = k * 32 + thread() % 32, first = word / OF_UNIT * LANES, number = word % OF_UNIT;
        if (k % TURNS == 0) begin = (Word *)from_lane(own, first), words = (int)from_lane(own_words, first);
        move(k, begin + number, number < words);
    }
}

// Start to bring a thread's vector to its place in shared memory. Elements that are not there are 0.
template <int BYTES = LOAD> DEV void bring(Vector &own, const X *from, int there) {
    if constexpr (BYTES == 16) {
        if (there >= VEC)
            fetch<16>(&own, from, true);
        else
            own.template read<16>(from, there);
    } else if constexpr (BYTES >= 4) {
        each_word(from, there, [&](int k, const Word *word, bool wanted) { fetch<BYTES>(&shared_word(own, k), word, wanted); });
    } else {
        Word words[WORDS]; // all are on their way before one is there
        each_word(from, there, [&](int k, const Word *word, bool wanted) { words[k] = wanted ? *word : Word(); });
#pragma unroll
        for (int k = 0; k < WORDS; k++) shared_word(own, k) = words[k];
    }
}

// Store a vector by way of a thread's place in shared memory.
DEV void send(X *to, int there, const Vector &y, Vector &own) {
    if constexpr (LOAD == 16) {
        y.template write<16>(to, there);
    } else {
        own = y;
        warp_barrier();
        Word words[WORDS];
#pragma unroll
        for (int k = 0; k < WORDS; k++) words[k] = shared_word(own, k);
        each_word(to, there, [&](int k, Word *word, bool wanted) {
            if (wanted) *word = words[k];
        });
    }
}

// Wait for what was brought, but for the last LEFT groups of it.
template <int LEFT> DEV void landed() {
    fetch_wait<LEFT>();
    if (LOAD < 16) warp_barrier();
}

// A thread's vectors between two passes: in registers, or in shared memory. TENSOR: the first that is held, or the
// second.
template <int TENSOR> struct Held {
    Vector own[HOLD == REGISTERS ? ITEMS : 1];
    int before; // vectors of tensors before this one

    DEV explicit Held(const Call &q) : before(TENSOR * items(q)) {}

    DEV Vector &place(int i) const { return room()[(before + i) * THREADS + thread()]; }

    DEV void start(int i, const X *from, int there) {
        if constexpr (HOLD == REGISTERS)
            own[i].template read<LOAD>(from, there);
        else
            bring(place(i), from, there);
    }

    DEV Vector at(int i) {
        if constexpr (HOLD == MEMORY) {
            return place(i);
        } else {
            own[i].pin();
            return own[i];
        }
    }

    // Store what was computed from a vector that is not needed any more.
    DEV void send(int i, X *to, int there, const Vector &y) {
        if constexpr (HOLD == MEMORY)
            ::send(to, there, y, place(i));
        else
            y.template write<LOAD>(to, there);
    }
};

DEV void all_landed() {
    if (HOLD == MEMORY) fetch_commit(), landed<0>();
}
