"""Sum and broadcast, each the other's derivative, so that a gradient is summed as accurately as a statistic.

Both are primitives: JAX lets no function of its own operations have a transpose of its own and be vectorized too. What
they are made of shows in the compiled program alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import experimental
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from anynorm.backend import tree_sum

# Where JAX keeps this depends on its version, and neither place is annotated; nor are these.
with_float64: Any = getattr(jax if hasattr(jax, "enable_x64") else experimental, "enable_x64")  # noqa: B009
_ad: Any = ad
_PartitionSpec: Any = PartitionSpec
_jax: Any = jax

sum_p: Any = Primitive("anynorm_sum")  # over `axes`, kept as length 1
broadcast_p: Any = Primitive("anynorm_broadcast")  # to a `shape` of as many axes


def _plain_sum(x: jax.Array, axes: tuple[int, ...]) -> Any:
    return jnp.sum(x, axis=axes, keepdims=True)


def _plain_broadcast(x: jax.Array, shape: tuple[Any, ...], sharding: NamedSharding | None) -> Any:
    if sharding is None:
        return jnp.broadcast_to(x, shape)
    return _jax.lax.broadcast_in_dim(x, shape, tuple(range(x.ndim)), out_sharding=sharding)


def _sum_in_float64(x: jax.Array, axes: tuple[int, ...]) -> Any:
    """Sum float32 in float64, whether or not the caller has that enabled.

    XLA adds plainly, in blocks of 16 or in one loop over several axes as it sees fit, and no barrier keeps the loops
    apart: of sets that one element dominates, the sum of 81 squares comes out 20 eps off, and that of 1000 likewise.
    """
    if x.dtype != jnp.float32:
        return _sum_by_halves(x, axes)
    with with_float64(True):
        return _plain_sum(x.astype(jnp.float64), axes).astype(jnp.float32)


def _sum_by_halves(x: jax.Array, axes: tuple[int, ...]) -> Any:
    """Sum by a tree of additions of whole arrays, which XLA leaves as they are.

    Plainly where a length is a symbol or 0, and along what is split over an explicit axis of a mesh, where no half is
    in one place.
    """
    for axis in axes:
        sharding, length = _explicit_sharding(jax.typeof(x)), x.shape[axis]
        split = sharding is not None and sharding.spec[axis] is not None
        x = _plain_sum(x, (axis,)) if split or not isinstance(length, int) or not length else tree_sum(x, (axis,))
    return x


def _explicit_sharding(aval: object) -> Any:
    """Return the sharding that is part of an array's type, or None."""
    sharding = getattr(aval, "sharding", None)
    return sharding if any(getattr(sharding, "spec", ())) else None


def _sum_on_cpu(context: Any, x: Any, *, axes: tuple[int, ...]) -> Any:
    """Write the program of a sum on CPUs: by halves, which takes half the time and less, if on one device.

    Across devices the halves of an axis would have to be sent around.
    """
    alone = getattr(context.module_context.axis_context, "num_devices", None) == 1
    known = all(isinstance(length, int) for length in context.avals_in[0].shape)
    return (_program(_sum_by_halves) if alone and known else _program(_sum_in_float64))(context, x, axes=axes)


def _program(function: Callable[..., Any]) -> Any:
    return mlir.lower_fun(function, multiple_results=False)


def _transposed_sum(cotangent: jax.Array, x: ad.UndefinedPrimal, *, axes: tuple[int, ...]) -> list[Any]:  # noqa: ARG001
    return [broadcast_p.bind(cotangent, shape=x.aval.shape, sharding=_explicit_sharding(x.aval))]


def _transposed_broadcast(
    cotangent: jax.Array,
    x: ad.UndefinedPrimal,
    *,
    shape: tuple[Any, ...],
    sharding: NamedSharding | None,  # noqa: ARG001
) -> list[Any]:
    return [
        sum_p.bind(cotangent, axes=tuple([axis for axis, length in enumerate(x.aval.shape) if length != shape[axis]]))
    ]


def _batched_sum(operands: Sequence[jax.Array], batch_axes: Sequence[int], *, axes: tuple[int, ...]) -> tuple[Any, int]:
    x = jnp.moveaxis(operands[0], batch_axes[0], 0)
    return sum_p.bind(x, axes=tuple([axis + 1 for axis in axes])), 0


def _batched_broadcast(
    operands: Sequence[jax.Array], batch_axes: Sequence[int], *, shape: tuple[Any, ...], sharding: NamedSharding | None
) -> tuple[Any, int]:
    x = jnp.moveaxis(operands[0], batch_axes[0], 0)
    if sharding is not None:
        sharding = NamedSharding(sharding.mesh, _PartitionSpec(jax.typeof(x).sharding.spec[0], *sharding.spec))
    return broadcast_p.bind(x, shape=(x.shape[0], *shape), sharding=sharding), 0


@lru_cache(maxsize=1024)
def _jitted(primitive: Primitive, parameters: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(partial(primitive.bind, **dict(parameters)))


def _define(primitive: Primitive, meaning: Callable[..., Any], lowering: Callable[..., Any]) -> None:
    """Tell JAX what a primitive computes: its type by a function of JAX's own operations, its program by another."""

    def compute(x: jax.Array, **parameters: Hashable) -> Any:
        with jax.disable_jit(False):  # or it would come here again
            return _jitted(primitive, tuple(parameters.items()))(x)

    def result_type(x: jax.Array, **parameters: Hashable) -> Any:
        # What JAX says of its own operation: over which devices the result varies and is sharded, too.
        return jax.make_jaxpr(partial(meaning, **parameters))(x).out_avals[0]

    primitive.def_impl(compute)
    primitive.def_abstract_eval(result_type)
    mlir.register_lowering(primitive, _program(lowering))


_define(sum_p, _plain_sum, _sum_by_halves)
_define(broadcast_p, _plain_broadcast, _plain_broadcast)
mlir.register_lowering(sum_p, _sum_on_cpu, platform="cpu")
for _platform in ("cuda", "rocm", "tpu"):  # which have float64
    mlir.register_lowering(sum_p, _program(_sum_in_float64), platform=_platform)
_ad.deflinear2(sum_p, _transposed_sum)
_ad.deflinear2(broadcast_p, _transposed_broadcast)
batching.primitive_batchers[sum_p] = _batched_sum
batching.primitive_batchers[broadcast_p] = _batched_broadcast
