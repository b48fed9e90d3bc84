"""JAX arrays: the formula, compiled once per plan for eager arrays; traced ones see the formula itself."""

from anynorm_jax._compiled import backward as backward
from anynorm_jax._compiled import constant as constant
from anynorm_jax._compiled import declines as declines
from anynorm_jax._compiled import forward as forward
from anynorm_jax._compiled import fused as fused
from anynorm_jax._compiled import moments as moments
from anynorm_jax._compiled import refuses as refuses
from anynorm_jax._derivatives import normalize as normalize
from anynorm_jax._derivatives import vary_like as vary_like
from anynorm_jax._sums import spread as spread
from anynorm_jax._sums import sum as sum
from anynorm_jax._tracers import is_length as is_length
from anynorm_jax._tracers import traced as traced

places_itself = immutable = True
