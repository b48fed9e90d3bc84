"""The formula, with each pass, and each step of one, under a `jax.jit` of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import jax
from jax import Array

from anynorm.backend import Executable, PackedResiduals, Plan, Residuals, Statistics, formula
from anynorm_jax._ops import OPS

Maybe = Array | None  # a weight, bias, statistic, out or dy
Given = tuple[Array, Array] | None  # mean and var


class Compiled(Executable[Array]):
    """The formula on a plan, compiled by XLA."""

    engine = "anynorm_jax"

    def __init__(self, plan: Plan, reason: str | None) -> None:
        super().__init__(plan, OPS, reason)

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
        # Those of the engine's forward pass meet the formula where JAX traces the backward pass.
        arrays = tuple([array.residuals() if isinstance(array, PackedResiduals) else array for array in arrays])
        return _jitted(step, self.plan, **constants)(*arrays, **named)


# Signatures of one plan share what is compiled: two ways to write its axes must not both cost a tenth of a second.
@lru_cache(maxsize=4096)
def _jitted(step: Callable[..., Any], plan: Plan, **constants: Hashable) -> Callable[..., Any]:
    return jax.jit(partial(step, plan, ops=OPS, **constants))


def _forward(*arrays: Any, save: bool, **options: Any) -> tuple[Any, Residuals | None]:
    y, residuals = formula.forward(*arrays, **options)
    return y, residuals if save else None
