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

from anynorm.backend import (
    AnyResiduals,
    ArrayOps,
    Backend,
    Declined,
    Executable,
    GradientSums,
    Operands,
    Plan,
    Residuals,
    Statistics,
    formula,
)
from anynorm_jax._ops import OPS


class JaxBackend(Backend):
    """Compiles the formula for eager arrays; what JAX traces is compiled with what surrounds it."""

    places_itself = immutable = True

    def __init__(self) -> None:
        super().__init__(OPS)

    def signature(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        mean: Array | None,
        var: Array | None,
        out: Array | None,
        dy: Array | None = None,
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
        self._jitted: dict[Hashable, Callable[..., Any]] = {}  # by function and constants

    def forward(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        given: tuple[Array, Array] | None,
        out: Array | None,
        save: bool,
    ) -> tuple[Any, Any]:
        assert out is None  # no JAX array can be written to
        result: tuple[Any, Any] = self._under_jit(_forward, eps=eps, save=save)(x, weight, bias, given=given)
        return result

    def backward(
        self, dy: Array, x: Array, weight: Array | None, residuals: AnyResiduals, out: Array | None
    ) -> tuple[Any, Any, Any]:
        assert out is None
        gradients: tuple[Any, Any, Any] = self._under_jit(formula.backward)(dy, x, weight, residuals)
        return gradients

    def measure(self, x: Array, eps: float = 0.0) -> Statistics:
        statistics: Statistics = self._under_jit(formula.measure, eps=eps)(x)
        return statistics._replace(n=self.plan.n)  # which jit returns as an array

    def apply(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        statistics: Statistics,
        out: Array | None,
    ) -> Any:
        assert out is None
        return self._under_jit(formula.apply, eps=eps)(x, weight, bias, statistics=statistics)

    def gradient_sums(self, dy: Array, x: Array, weight: Array | None, residuals: AnyResiduals) -> GradientSums:
        sums: GradientSums = self._under_jit(formula.gradient_sums)(dy, x, weight, residuals)
        return sums

    def gradient(
        self,
        dy: Array,
        x: Array,
        weight: Array | None,
        residuals: AnyResiduals,
        sums: GradientSums,
        out: Array | None,
    ) -> Any:
        assert out is None
        return self._under_jit(formula.gradient)(dy, x, weight, residuals, sums)

    def _under_jit(self, function: Callable[..., Any], **constants: Hashable) -> Callable[..., Any]:
        key = function, *constants.values()
        jitted = self._jitted.get(key)
        if jitted is None:
            jitted = self._jitted[key] = jax.jit(partial(function, self.plan, ops=self.ops, **constants))
        return jitted


# Signatures of one plan share what is compiled: two ways to write its axes must not both cost a tenth of a second.
_compiled = lru_cache(maxsize=1024)(Compiled)


def _forward(
    plan: Plan,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    *,
    given: tuple[Array, Array] | None,
    save: bool,
    ops: ArrayOps[Array],
) -> tuple[Any, Residuals | None]:
    y, residuals = formula.forward(plan, x, weight, bias, eps, given=given, ops=ops)
    return y, residuals if save else None
