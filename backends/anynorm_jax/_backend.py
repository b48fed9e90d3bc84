"""The backend: which calls are alike, and what serves them, the formula under `jax.jit`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from anynorm.backend import Backend, Declined, Executable, Operands, Plan, Residuals, Statistics, formula
from anynorm_jax._ops import OPS

Maybe = Array | None  # a weight, bias, statistic, out or dy
Given = tuple[Array, Array] | None  # mean and var


class JaxBackend(Backend):
    """Compiles the formula for eager arrays; what JAX traces is compiled with what surrounds it."""

    places_itself = immutable = True

    def __init__(self) -> None:
        super().__init__(OPS)

    def signature(
        self, x: Array, weight: Maybe, bias: Maybe, mean: Maybe, var: Maybe, out: Maybe, dy: Maybe = None
    ) -> Hashable | None:
        if out is not None or isinstance(x, Tracer):
            return None
        array_type, avals = type(x), [x.aval]
        for array in (weight, bias, mean, var) if dy is None else (dy,):
            if array is not None and type(array) is not array_type:
                return None
            avals.append(None if array is None else array.aval)
        return (*avals, jax.config.jax_enable_x64)  # type: ignore[attr-defined]  # float64 is refused without

    def compile(self, plan: Plan, operands: Operands) -> Executable[Array] | Declined:
        for array in operands[:5]:
            if isinstance(array, Tracer):
                return Declined("JAX is tracing the call and compiles the formula with what surrounds it")
        return _compiled(plan)

    def refuses(self, x: Array) -> str | None:
        if x.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
            return (
                "is float64, which JAX has switched off and would round to float32. Cast it, e.g. "
                "x.astype(jnp.float32), or switch float64 on: jax.config.update('jax_enable_x64', True)."
            )
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return "holds random keys, which are no numbers: draw some with them, e.g. jax.random.normal(key, shape)."
        return None


class Compiled(Executable[Array]):
    """The formula on a plan with each pass, and each step of one, under a `jax.jit` of its own."""

    engine = "anynorm_jax"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, OPS, None)
        self._jitted: dict[Hashable, Callable[..., Any]] = {}  # by step and constants

    def forward(
        self, x: Array, weight: Maybe, bias: Maybe, eps: float, given: Given, out: Maybe, save: bool
    ) -> tuple[Any, Any]:
        assert out is None  # no JAX array can be written to
        constants = {"eps": eps, "save": save}
        found: tuple[Any, Any] = self._by_formula(_forward, constants, x, weight, bias, given=given)
        return found

    def measure(self, x: Array, eps: float = 0.0) -> Statistics:
        return super().measure(x, eps)._replace(n=self.plan.n)  # which jit returns as an array

    def _by_formula(self, step: Callable[..., Any], constants: dict[str, Any], *arrays: Any, **named: Any) -> Any:
        key = step, *constants.values()
        jitted = self._jitted.get(key)
        if jitted is None:
            jitted = self._jitted[key] = jax.jit(partial(step, self.plan, ops=self.ops, **constants))
        return jitted(*arrays, **named)


# Signatures of one plan share what is compiled: two ways to write its axes must not both cost a tenth of a second.
_compiled = lru_cache(maxsize=1024)(Compiled)


def _forward(*arrays: Any, save: bool, **options: Any) -> tuple[Any, Residuals | None]:
    y, residuals = formula.forward(*arrays, **options)
    return y, residuals if save else None
