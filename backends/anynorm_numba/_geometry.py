"""The geometry of a call: lengths, strides and how the work is cut, as one record that kernels read by name."""

from __future__ import annotations

import numpy as np

# One integer for each of a view's five axes: sets lie along a and b, a set along r, s and p, no parameter along p.
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
        ("activation", np.int64),  # whether y is followed by ReLU
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
        # Tasks of a backward pass leave `sums` numbers, from which dweight is summed over the first and the last of
        # three lengths, and as many for dbias; or they write both gradients themselves and leave none (`direct`).
        ("sums", np.int64),
        ("dweight", SPLIT),
        ("dbias", SPLIT),
        ("direct", np.int64),
    ]
)

# The positions of the axes in a view's tuples.
A, R, B, S, P = range(5)

# What a backward pass sums beside dx. Addresses: 0 where a sum is not wanted, or where none is given.
GRADIENT_SUMS = np.dtype(
    [
        ("dweight", np.int64),  # where dweight goes, dense and in the compute dtype
        ("dbias", np.int64),
        ("of_sets", np.int64),  # where Σg and Σ(g·x̂) of each set go: (2, sets) float64
        ("given", np.int64),  # the same sums, to be used instead of summing
        ("bias", np.int64),  # read where an activation follows y, laid out as dbias is
        ("unused", np.int64, 3),  # what follows begins at a cache line
    ]
)

# How running statistics are to be moved. Addresses: of arrays (channels,) in the compute dtype, the new ones may be the
# old ones; and of two counters, 0 where nothing is counted.
RUNNING = np.dtype(
    [
        ("mean", np.int64),
        ("var", np.int64),
        ("new_mean", np.int64),
        ("new_var", np.int64),
        ("tracked", np.int64),  # of batches that entered
        ("skipped", np.int64),  # of batches that did not
        ("channels", np.int64),
        ("divisor", np.int64),  # of the variance: n − correction
    ]
)
COUNTER = np.dtype([("count", np.int64)])

# What the steps of a set in pieces tell each other, in the workspace. A `SUM_PAIR` for each of its pieces follows.
SET_STATE = np.dtype(
    [
        ("finalized", np.float64),  # 1 once its residuals are there
        ("pivot", np.float64),  # from where it is measured
        ("scale", np.float64),  # and in what scale
        ("attempt", np.float64),  # how often it was measured
        ("unused", np.float64, 4),
    ]
)
GRADIENT_STATE = np.dtype([("mean_g", np.float64), ("mean_g_xhat", np.float64)])

# Two sums, each with what it lost.
SUM_PAIR = np.dtype([(name, np.float64) for name in ("first", "first_lost", "second", "second_lost")])

# The end of a block's workspace.
BLOCK_STATE = np.dtype([("attempt", np.float64), ("pending", np.float64)])  # how often, and whether to measure (again)

# A sum is taken chunk by chunk, each of this many elements of a line, so that its order follows from the length alone.
CHUNK = 4096

# WRITE pieces of a table begin at multiples of so many rows.
ROWS = 64

# What a task does: all of it for its share of the sets (WHOLE), or one step for one piece of a few long sets: begin,
# sum, turn the sums into residuals or means, write. Of a backward pass REDUCE adds up what earlier tasks have of
# dweight and dbias, and PUT, one task, writes the two.
WHOLE, START, SUM, FINALIZE, WRITE, REDUCE, PUT = range(7)

# dweight and dbias along runs are summed in at most PARTS parts of the sets, each of at least PART_SETS sets and
# PART_ELEMENTS elements, and then the parts are added up. Of fewer sets than FEW they are summed piece by piece of the
# run instead, over all sets in turn.
PARTS, PART_SETS, PART_ELEMENTS, FEW = 32, 16, 2**14, 64

# Bytes of such a piece, in the compute dtype. Not a power of 2: then all numbers of one place would share a few lines
# of the innermost cache.
PIECE = 3072

# Elements of dweight or dbias that one REDUCE task adds up.
SLICE = 2048

# Rows of the table in a block's workspace, of a number for each column, by the number of arrays: forward, backward.
BLOCK_ROWS = {2: 9, 3: 8}
