"""JAX arrays: those on the CPU by the engine on their own memory, others by the formula, which XLA compiles.

What JAX traces sees the formula itself.
"""

from anynorm_jax._backend import JaxBackend as JaxBackend
