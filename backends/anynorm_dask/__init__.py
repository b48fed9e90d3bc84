"""Dask arrays: the formula builds the graph; here is what Dask's own reductions and reshapes lack.

Nothing here computes a graph.
"""

from anynorm_dask._blocks import peak as peak
from anynorm_dask._blocks import reshape as reshape
from anynorm_dask._blocks import shape as shape
from anynorm_dask._blocks import sum as sum
from anynorm_dask._chunks import refuses as refuses
from anynorm_dask._chunks import refuses_beside as refuses_beside

places_itself = immutable = True
