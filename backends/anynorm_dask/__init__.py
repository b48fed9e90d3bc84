"""Dask arrays: the formula builds the graph; here is what Dask's own reductions and reshapes lack.

Nothing here computes a graph.
"""

from anynorm_dask._backend import DaskBackend as DaskBackend
