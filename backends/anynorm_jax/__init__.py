"""JAX arrays: the formula, compiled once per signature for eager arrays; traced ones see the formula itself."""

from anynorm_jax._backend import JaxBackend as JaxBackend
