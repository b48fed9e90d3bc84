"""The grid of calls whose results `python -m benchmarks bits` hashes. Each module yields the calls of one kind.

Nothing in here imports more of anynorm than its public names, so that the grid also runs beside an older version.
"""
