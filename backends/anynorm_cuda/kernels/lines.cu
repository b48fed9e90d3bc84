// Sets made of lines, each contiguous in memory: which thread takes which elements.
//
// A line is cut into pieces of LANES·VEC elements, one for a subgroup; the pieces of a set, or of a chunk of one, are
// dealt to the subgroups of a thread group in turn. So the order of sums follows from the number and length of the
// lines.
//
// ONE_LINE: whether a set is one line.
// LINE_LENGTH: elements of a line, for sets of one line that a thread group holds; else 0, and an argument tells.
// HAS_B: whether there are several sets along B.
// TWO_LINE_AXES: whether the lines of a set are indexed by R and S; else by one of them.
// TAIL: whether the last vector of a line may be incomplete.

constexpr int ALONG_LINE = 1, PER_LINE = 2; // WEIGHT, BIAS: vary along a line, or have one value per line

DEV int line_length(const Call &call) { return LINE_LENGTH ? LINE_LENGTH : (int)call.line_length; }
DEV int per_line(const Call &call) {
    return LINE_LENGTH ? (LINE_LENGTH + LANES * VEC - 1) / (LANES * VEC) : (int)call.per_line.number;
}
DEV int pieces(const Call &call) { return ONE_LINE ? per_line(call) : (int)call.pieces; }
DEV int line_of(const Call &call, int piece) { return ONE_LINE ? 0 : call.per_line.into(piece); }

// A thread's vector of a piece: its line, its first element in the line, and how many elements the line has from there.
struct Item {
    int line, first, valid;
    DEV bool exists() const { return valid > 0; }
    DEV int count() const { return TAIL ? least(valid, VEC) : VEC; } // elements of a vector that exists
};

// A set, or a chunk of one, that a thread group works on.
struct Part {
    const Call &call;
    int set, a, b, chunk, begin, end; // begin, end: pieces
    bool active;                      // whether there is such a set

    DEV Part(const Call &call, int set, int chunk, bool active) : call(call), set(set), chunk(chunk), active(active) {
        a = HAS_B ? set / (int)call.b_length : set, b = HAS_B ? set - a * (int)call.b_length : 0;
        begin = CHUNKED ? chunk * ALL_SUBGROUPS * ITEMS : 0;
        end = CHUNKED ? least(begin + ALL_SUBGROUPS * ITEMS, pieces(call)) : pieces(call);
    }

    DEV int piece(const ThreadGroup &group, int i) const {
        return begin + (i * CTAS + group.rank) * SUBGROUPS + group.subgroup;
    }

    DEV Item item(const ThreadGroup &group, int i) const {
        int piece = this->piece(group, i), line = line_of(call, piece);
        int first = ((piece - line * per_line(call)) * LANES + group.lane) * VEC;
        bool whole = LINE_LENGTH && LINE_LENGTH == ITEMS * ALL_SUBGROUPS * LANES * VEC; // at compile time
        return {line, first, !active ? 0 : whole ? LANES * VEC : piece < end ? line_length(call) - first : 0};
    }

    // Return the address of the set in a tensor; the offset from there of a line, or of an item, in elements.
    template <class T> DEV T *begin_of(T *tensor, const Strides &strides) const {
        return forget_origin(tensor + a * strides.a + b * strides.b);
    }
    DEV i64 offset(const Strides &strides, int line) const {
        if (ONE_LINE) return 0;
        int r = TWO_LINE_AXES ? call.per_r.into(line) : line;
        return r * strides.r + (TWO_LINE_AXES ? (line - r * (int)call.per_r.number) * strides.s : 0);
    }
    DEV i64 offset(const Strides &strides, const Item &item) const { return offset(strides, item.line) + item.first; }

    // Return the offset of the first element of a chunk.
    DEV i64 first(const Strides &strides) const {
        int line = line_of(call, begin);
        return offset(strides, line) + (begin - line * per_line(call)) * LANES * VEC;
    }

    // Return how many elements the pieces before this one have.
    DEV i64 before(int piece) const {
        int line = line_of(call, piece);
        return (i64)line * line_length(call) + least((piece - line * per_line(call)) * LANES * VEC, line_length(call));
    }

    DEV float elements() const { return (float)(CHUNKED ? before(end) - before(begin) : call.n); }
};

// Return the chunk of a block.
DEV Part chunk_of(const Call &call, int block) {
    int set = block / (int)call.chunks;
    return Part(call, set, block - set * (int)call.chunks, true);
}

// Weight or bias of a set; `absent` is the value where there is none.
template <int LAYOUT, int BYTES, class T> struct Parameter {
    const Part &part;
    const T *of_set;
    const Strides &strides;
    Elements<T> along;
    float value;

    DEV Parameter(const T *from, const Strides &strides, const Part &part, float absent)
        : part(part), strides(strides), value(absent) {
        if (LAYOUT != ABSENT) of_set = part.begin_of(from, strides);
    }

    DEV void go_to(const Item &item) {
        if (LAYOUT == ALONG_LINE) along.template read<BYTES, true>(of_set + item.first, item.valid);
        if (LAYOUT == PER_LINE && item.exists()) value = get(of_set[part.offset(strides, item.line)]);
    }

    DEV float operator[](int e) const { return LAYOUT == ALONG_LINE ? along[e] : value; }
};
