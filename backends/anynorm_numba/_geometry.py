"""Where everything lies, as numbers in memory that a kernel reads: lengths, steps and how the work is cut."""

from __future__ import annotations

# Positions in a geometry, an array of int64. Five numbers, along A, R, B, S, P, begin at each of these:
A, R, B, S, P = range(5)
LENGTH, X, DY, Y, WEIGHT, BIAS = range(0, 30, 5)

# and one number lies at each of these.
CENTRES, GIVEN, VECTOR, BY_ROW = range(30, 34)
TASKS, LINES, RUN, CHUNKS, WIDTH, BLOCKS, NARROW, ROOM, AREA, SUMS, PAST = range(34, 45)

# Three lengths each: over the first and the last a gradient of weight or bias is summed, of SUMS numbers in all.
OF_WEIGHT, OF_BIAS = 45, 48

# Whether tasks put these gradients where they go themselves, and leave no sums to PUT.
DIRECT = 51
FIELDS = 52

# So many bytes before the sums that are left lie the addresses of the gradients of bias and of weight.
ADDRESSES = 64

# A sum is taken chunk by chunk, each of this many elements of a line, so that its order follows from the length alone.
CHUNK = 4096

# Rows of blocks of columns are written in pieces that begin at a multiple of this.
ROWS = 64

# What a task does: all of it for its share of the sets, or one step of it for one piece of a few long sets.
# REDUCE adds up what tasks have of the gradients of weight and bias; PUT, one task, puts the gradients where they go.
WHOLE, START, SUM, SETTLE, WRITE, REDUCE, PUT = range(7)

# Gradients of a weight that varies along runs are summed in at most this many parts of the sets, which are then added
# up, each of so many sets and of so many elements at least; of fewer sets than FEW, piece by piece of the run instead,
# all sets in turn.
PARTS, PART_SETS, PART_ELEMENTS, FEW = 32, 16, 2**14, 64

# Bytes of such a piece, of numbers of C. Not a power of 2: then all that belongs to a place would lie in the same few
# lines of the innermost cache.
PIECE = 3072

# Columns, or elements of such a gradient, that one task reduces.
SLICE = 2048

# Planes of the room of a block of columns, by the number of arrays: forward and backward.
ROOM_PLANES = {2: 9, 3: 7}
