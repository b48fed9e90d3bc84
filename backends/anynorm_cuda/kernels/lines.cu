// Sets as lines, of which each runs through memory: which thread takes which elements.
//
// A line is cut into pieces of LANES·VEC elements, one for a unit of a team; the pieces of a set, or of a chunk of one,
// go round the units. So the order of sums follows from how many lines a set has and how long they are.
//
// LINES is 1 where a set is one line, else 0. RUN is the length of a line where it is known when the kernel is compiled,
// of sets of one line; else 0. INNER: whether there are several sets along B. TAIL: whether vectors may run beyond the end of a line.

constexpr int VECTOR = 1, LINE = 2; // WEIGHT, BIAS: absent, along a line, one number for a line

DEV int run(const Call &q) { return RUN ? RUN : (int)q.run; }
DEV int per_line(const Call &q) { return RUN ? (RUN + LANES * VEC - 1) / (LANES * VEC) : (int)q.per_line.number; }
DEV int pieces(const Call &q) { return LINES ? per_line(q) : (int)q.pieces; }
DEV int line_of(const Call &q, int piece) { return LINES ? 0 : q.per_line.into(piece); }

// A thread's vector of a piece: its line, its first element there, and how many elements there are from that one on.
struct Item {
    int line, first, there;
    DEV bool here() const { return there > 0; }
    DEV int count() const { return TAIL ? least(there, VEC) : VEC; } // of those that are here
};

// A set, or a chunk of it, as a team meets it.
struct Part {
    const Call &q;
    int set, a, b, chunk, begin, end; // begin, end: pieces
    bool live;

    DEV Part(const Call &q, int set, int chunk, bool live) : q(q), set(set), chunk(chunk), live(live) {
        a = INNER ? set / (int)q.inner : set, b = INNER ? set - a * (int)q.inner : 0;
        begin = CHUNKED ? chunk * TEAM * ITEMS : 0;
        end = CHUNKED ? least(begin + TEAM * ITEMS, pieces(q)) : pieces(q);
    }

    DEV int piece(const Team &team, int i) const { return begin + (i * CTAS + team.rank) * UNITS + team.unit; }

    DEV Item item(const Team &team, int i) const {
        int piece = this->piece(team, i), line = line_of(q, piece);
        int first = ((piece - line * per_line(q)) * LANES + team.lane) * VEC;
        bool whole = RUN && RUN == ITEMS * TEAM * LANES * VEC; // known when the kernel is compiled
        return {line, first, !live ? 0 : whole ? LANES * VEC : piece < end ? run(q) - first : 0};
    }

    // Where the set begins in a tensor, and from there a line, or an item, in elements.
    template <class T> DEV T *of(T *tensor, const Steps &of) const { return kept(tensor + a * of.a + b * of.b); }
    DEV i64 at(const Steps &of, int line) const {
        if (LINES) return 0;
        int r = SPLIT ? q.per_r.into(line) : line;
        return r * of.r + (SPLIT ? (line - r * (int)q.per_r.number) * of.s : 0);
    }
    DEV i64 at(const Steps &of, const Item &item) const { return at(of, item.line) + item.first; }

    DEV i64 first(const Steps &of) const { // of all elements of a chunk
        int line = line_of(q, begin);
        return at(of, line) + (begin - line * per_line(q)) * LANES * VEC;
    }

    // How many elements lie in the pieces before one.
    DEV i64 before(int piece) const {
        int line = line_of(q, piece);
        return (i64)line * run(q) + least((piece - line * per_line(q)) * LANES * VEC, run(q));
    }

    DEV float elements() const { return (float)(CHUNKED ? before(end) - before(begin) : q.n); }
};

// The chunk of a block, from the first on or from the last.
DEV Part chunk_of(const Call &q, int block) {
    int set = block / (int)q.chunks;
    return Part(q, set, block - set * (int)q.chunks, true);
}

// Weight or bias of a set; `without` where there is none.
template <int LIES, int BYTES, class T> struct Parameter {
    const Part &part;
    const T *of_set;
    const Steps &of;
    Several<T> along;
    float number;

    DEV Parameter(const T *from, const Steps &of, const Part &part, float without) : part(part), of(of), number(without) {
        if (LIES != NONE) of_set = part.of(from, of);
    }

    DEV void go_to(const Item &item) {
        if (LIES == VECTOR) along.template read<BYTES, true>(of_set + item.first, item.there);
        if (LIES == LINE && item.here()) number = get(of_set[part.at(of, item.line)]);
    }

    DEV float operator[](int e) const { return LIES == VECTOR ? along[e] : number; }
};
