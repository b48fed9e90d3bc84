// Sets as LINES lines of RUN elements, of which each runs through memory: which thread holds which elements, and where
// it holds them between two passes.
//
// A line is cut into pieces of LANES·VEC elements, one for a unit of a team; the pieces of a set, or of a chunk of one,
// go round the units. So the order of sums follows from LINES and RUN.

constexpr int NONE = 0, VECTOR = 1, LINE = 2; // WEIGHT, BIAS: absent, along a line, one number for a line
constexpr int REGISTERS = 1, MEMORY = 2;      // HOLD

constexpr int VECTORS = (RUN + VEC - 1) / VEC;
constexpr int PER_LINE = (VECTORS + LANES - 1) / LANES;
constexpr int PIECES = LINES * PER_LINE;
constexpr int CHUNK = TEAM * ITEMS; // pieces
static_assert(CHUNKED || PIECES <= CHUNK, "a team holds a set");
constexpr float N = (float)LINES * RUN;

#define PRAGMA(text) _Pragma(#text)
#define EVERY_ITEM PRAGMA(unroll) for (int i = 0; i < ITEMS; i++) // with what is in registers
#if HOLD == 1
#define EACH_ITEM EVERY_ITEM
#else
#define EACH_ITEM PRAGMA(unroll 2) for (int i = 0; i < ITEMS; i++)
#endif
#define EACH_PIECE PRAGMA(unroll) for (int piece = 0; piece < 16; piece += LOAD)
#define EACH PRAGMA(unroll) for (int e = 0; e < VEC; e++)

// A thread's vector of a piece: its line, the first of its elements there, and how many of them there are.
struct Item {
    int line, first, count;
};

// A set, or a chunk of it, as a team meets it.
struct Part {
    int set, a, b, chunk, begin, end; // begin, end: pieces
    bool live;

    DEV Part(const Call &q, int set, int chunk, bool live) : set(set), chunk(chunk), live(live) {
        a = set / (int)q.inner, b = set - a * (int)q.inner;
        begin = CHUNKED ? chunk * CHUNK : 0, end = CHUNKED ? least(begin + CHUNK, PIECES) : PIECES;
    }

    DEV int piece(const Team &team, int i) const { return begin + (i * CTAS + team.rank) * UNITS + team.unit; }

    DEV Item item(const Team &team, int i) const {
        int piece = this->piece(team, i), line = LINES == 1 ? 0 : piece / PER_LINE;
        int first = ((piece - line * PER_LINE) * LANES + team.lane) * VEC;
        bool whole = !CHUNKED && PIECES % TEAM == 0 && RUN % (LANES * VEC) == 0; // known when it is compiled
        int count = whole ? VEC : piece < end ? least(VEC, RUN - first) : 0;
        return {line, first, live && count > 0 ? count : 0};
    }

    // Where a line begins in a tensor, in elements.
    DEV i64 at(const Steps &of, int line) const {
        i64 begins = a * of.a + b * of.b;
        if (LINES == 1) return begins;
        int r = line / PER_R;
        return begins + r * of.r + (line - r * PER_R) * of.s;
    }

    DEV i64 at(const Steps &of, const Item &item) const { return at(of, item.line) + item.first; }

    DEV i64 first(const Steps &of) const { // of all its elements
        int line = begin / PER_LINE;
        return at(of, line) + (begin - line * PER_LINE) * LANES * VEC;
    }

    // How many elements lie in the pieces before one.
    DEV static i64 before(int piece) {
        int line = piece / PER_LINE;
        return (i64)line * RUN + least((piece - line * PER_LINE) * LANES * VEC, RUN);
    }

    DEV float elements() const { return CHUNKED ? (float)(before(end) - before(begin)) : N; }
};

DEV Part chunk_of(const Call &q) {
    int set = block() / (int)q.chunks;
    return Part(q, set, block() - set * (int)q.chunks, true);
}

// What a block's threads may share.
DEV Vector *room() {
    DYNAMIC(Vector, memory);
    return memory;
}

// Start to bring a vector to a place in shared memory that is the thread's own; its elements that are not there are 0.
DEV void bring(Vector &to, const X *from, int count) {
    if constexpr (LOAD >= 4) {
        if (count == VEC) {
            EACH_PIECE fetch<LOAD>((char *)&to + piece, (const char *)from + piece, true);
            return;
        }
    }
    to.template read<LOAD>(from, count);
}

// A thread's vectors between two passes: in registers, or in shared memory that no other thread reads, so that no
// barrier is needed. TENSOR: the first that is held, or the second.
template <int TENSOR> struct Held {
    Vector own[HOLD == REGISTERS ? ITEMS : 1];

    DEV static Vector &place(int i) { return room()[(TENSOR * ITEMS + i) * THREADS + thread()]; }

    DEV void start(int i, const X *from, int count) {
        if constexpr (HOLD == REGISTERS)
            own[i].template read<LOAD>(from, count);
        else
            bring(place(i), from, count);
    }

    DEV Vector at(int i) {
        if constexpr (HOLD == MEMORY) {
            return place(i);
        } else {
            own[i].pin();
            return own[i];
        }
    }
};

DEV void landed() {
    if (HOLD == MEMORY) fetch_commit(), fetch_wait<0>();
}

// Weight or bias of a vector; `without` where there is none.
template <int LIES, int BYTES, class T> struct Parameter {
    Several<T> along;
    float number;

    DEV Parameter(const T *from, const Steps &of, const Part &part, const Item &item, float without) {
        if (LIES == VECTOR) along.template read<BYTES>(from + part.at(of, 0) + item.first, item.count);
        number = LIES == LINE && item.count ? get(from[part.at(of, item.line)]) : without;
    }

    DEV float of(int e) const { return LIES == VECTOR ? get(along.e[e]) : number; }
};
