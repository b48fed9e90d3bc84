"""The geometry of a call: lengths, strides and how the work is cut, as one record that kernels read by name."""

from __future__ import annotations

import numpy as np

# One integer for each of a view's five axes.
AXES = np.dtype([(axis, np.int64) for axis in "arbsp"])

# The lengths before, along and behind the neighbouring axes along which a parameter varies.
SPLIT = np.dtype([("outer", np.int64), ("kept", np.int64), ("inner", np.int64)])

GEOMETRY = np.dtype(
    [
        ("lengths", AXES),
        # Strides in bytes.
        ("x", AXES),
        ("y", AXES),
        ("dy", AXES),
        ("dx", AXES),
        ("weight", AXES),
        ("bias", AXES),
        # From the plan: whether a mean is subtracted, and whether statistics are given.
        ("centres", np.int64),
        ("given", np.int64),
        ("past_caches", np.int64),  # whether results are written past the caches
        ("tasks", np.int64),  # of a call in one go
        ("chunks", np.int64),  # of a line
        # Sets as runs: a set has `lines` lines, each of R runs of `run` neighbouring elements.
        ("lines", np.int64),
        ("run", np.int64),
        ("vector", np.int64),  # whether the weight varies along the run
        ("task_bytes", np.int64),  # of the workspace, where a task sums dweight and dbias along runs
        # Sets side by side: `blocks` blocks of at most `width` columns for each a.
        ("blocks", np.int64),
        ("width", np.int64),
        ("narrow", np.int64),  # whether eight rows are taken for one
        ("by_row", np.int64),  # whether the weight varies from row to row
        ("block_bytes", np.int64),  # of the workspace, for a block
        ("accumulator_bytes", np.int64),  # and for the sums of a chunk of its rows
        # A backward pass leaves `sums` numbers from which dweight is summed over the first and the last of three
        # lengths, and as many for dbias; or its tasks put both where they go and leave none (`direct`).
        ("sums", np.int64),
        ("dweight", SPLIT),
        ("dbias", SPLIT),
        ("direct", np.int64),
    ]
)

# The positions of the axes in a view's tuples.
A, R, B, S, P = range(5)

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

# Bytes of such a piece, in the compute dtype. Not a power of 2: then all that belongs to a place would lie in the same
# few lines of the innermost cache.
PIECE = 3072

# Columns, or elements of such a gradient, that one task reduces.
SLICE = 2048

# What the steps of a set in pieces tell each other, in the workspace; a `SUM_PAIR` for each of its pieces follows.
SET_STATE = np.dtype(
    [
        ("finalized", np.float64),  # whether its statistics are there
        ("pivot", np.float64),  # from where it is measured
        ("scale", np.float64),  # and in what scale
        ("attempt", np.float64),  # how often it was measured
        ("unused", np.float64, 4),
    ]
)
GRADIENT_STATE = np.dtype([("mean_g", np.float64), ("mean_g_xhat", np.float64)])

# Two sums, each with what it lost.
SUM_PAIR = np.dtype([(name, np.float64) for name in ("first", "first_lost", "second", "second_lost")])

# Rows of the table in a block's workspace, of a number for each column, by the number of arrays: forward, backward.
BLOCK_ROWS = {2: 9, 3: 7}
