"""The backend: which calls are alike, and what serves them, the CPU engine or the formula under `jax.jit`."""

from __future__ import annotations

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from anynorm.backend import Backend, Declined, Executable, Operands, Plan
from anynorm_jax._compiled import Compiled, Maybe
from anynorm_jax._launch import BackwardLaunch, ForwardLaunch
from anynorm_jax._ops import OPS
from anynorm_jax._placement import settings


class JaxBackend(Backend):
    """Serves eager arrays; what JAX traces it compiles with what surrounds it."""

    places_itself = immutable = True
    activations = ("relu",)

    def __init__(self) -> None:
        super().__init__(OPS)

    def signature(
        self, x: Array, weight: Maybe, bias: Maybe, mean: Maybe, var: Maybe, out: Maybe, dy: Maybe = None
    ) -> Hashable | None:
        if out is not None or isinstance(x, Tracer):
            return None
        array_type = type(x)
        found: list[Hashable] = []
        for array in (x, weight, bias, mean, var) if dy is None else (dy,):
            if array is None:
                found.append(None)
            elif type(array) is array_type:
                found += (array.aval, array.sharding, array.committed)
            else:
                return None
        return (*found, settings())

    def compile(self, plan: Plan, operands: Operands) -> Executable[Array] | Declined:
        for array in operands[:5]:
            if isinstance(array, Tracer):
                return Declined("JAX is tracing the call and compiles the formula with what surrounds it")
        launch = ForwardLaunch if operands.dy is None else BackwardLaunch
        found = launch.compiled(plan, operands)
        return Compiled(plan, found) if isinstance(found, str) else found

    def refuses(self, x: Array) -> str | None:
        if x.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
            return (
                "is float64, which JAX has switched off and would round to float32. Cast it, e.g. "
                "x.astype(jnp.float32), or switch float64 on: jax.config.update('jax_enable_x64', True)."
            )
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return "holds random keys, which are no numbers: draw some with them, e.g. jax.random.normal(key, shape)."
        return None
