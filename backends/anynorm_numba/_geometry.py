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
FIELDS = 51

# A sum is taken chunk by chunk, each of this many elements of a line, so that its order follows from the length alone.
CHUNK = 4096

# What a task does: all of it for its share of the sets, or one step of it for one piece of a few long sets.
# REDUCE adds up what tasks have of the gradients of weight and bias; PUT, one task, puts the gradients where they go.
WHOLE, START, SUM, SETTLE, WRITE, REDUCE, PUT = range(7)

# Gradients of a weight that varies along runs are summed in this many parts of the sets, which are then added up; of
# fewer sets than FEW, piece by piece of the run instead, all sets in turn.
PARTS, FEW = 32, 64

# Columns, or elements of such a gradient, that one task reduces.
SLICE = 2048

# Planes of the room of a block of columns, by the number of arrays: forward and backward.
ROOM_PLANES = {2: 9, 3: 7}
