"""python -m benchmarks fuzz: calls drawn from integers, judged by the exact reference or by whether they are refused.

`draw` decides on a call, `memory` and `values` make its arrays, the `ways` modules make the call on a library, and
`judge` says what is wrong with what came. `worker` does so in a process of its own, which `run` watches, so that a
crash has a seed.
"""
