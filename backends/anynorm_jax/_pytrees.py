"""Layers as pytrees: their arrays are leaves, all else is static."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax

from anynorm import layers
from anynorm.layers._state import Stateful, put_together, take_apart


def _register(cls: type[Stateful]) -> None:
    """Make a class of layers a pytree node. Nothing is checked when one is put together: leaves may be anything."""

    def with_keys(layer: Stateful) -> tuple[list[tuple[Any, Any]], Any]:
        arrays, rest = take_apart(layer)
        return [(jax.tree_util.GetAttrKey(name), its) for name, its in arrays.items()], rest

    def without_keys(layer: Stateful) -> tuple[tuple[Any, ...], Any]:
        arrays, rest = take_apart(layer)
        return tuple(arrays.values()), rest

    def from_leaves(rest: Any, leaves: Iterable[Any]) -> Stateful:
        return put_together(cls, dict(zip(cls._names, leaves, strict=True)), rest)

    jax.tree_util.register_pytree_with_keys(cls, with_keys, from_leaves, without_keys)


for _cls in (layers.LayerNorm, layers.RMSNorm, layers.GroupNorm, layers.InstanceNorm, layers.BatchNorm):
    _register(_cls)
