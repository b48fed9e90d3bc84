"""NumPy arrays, in NumPy alone: sets of numbers copied block by block into float64, where sums are accurate."""
