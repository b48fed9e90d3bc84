"""Layers as pytrees of JAX: their arrays are leaves, all else is static.

Nothing here loads JAX. Once a program has loaded it, the next layer that is made, copied, loaded or called registers
the classes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from anynorm.layers._state import Stateful

L = TypeVar("L", bound="Stateful")

_unregistered: list[type[Stateful]] = []
_lock = Lock()


def pytree(cls: type[L]) -> type[L]:
    """Mark a class of layers as one that JAX is told of; a decorator."""
    _unregistered.append(cls)
    return cls


def tell_jax() -> None:
    """Register the marked classes with JAX if it is loaded and does not know them."""
    if _unregistered and "jax.tree_util" in sys.modules and not _torch_is_compiling():
        with _lock:  # whoever meets a class that is being registered waits until it is
            while _unregistered:
                _register(_unregistered[-1])
                _unregistered.pop()


def _torch_is_compiling() -> bool:
    """Return whether torch.compile is tracing the caller. It could not follow a registration."""
    compiler = sys.modules.get("torch.compiler")
    return compiler is not None and bool(compiler.is_compiling())


def take_apart(layer: Stateful) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...]]:
    """Return a layer's arrays by name, None where there is none, and all else, hashable, in a fixed order."""
    arrays = {name: getattr(layer, name) for name in layer._names}
    rest = {name: value for name, value in layer.__getstate__().items() if name not in arrays and name != "_statistics"}
    return arrays, tuple(sorted(rest.items()))


def put_together(cls: type[L], arrays: Mapping[str, Any], rest: tuple[tuple[str, Any], ...]) -> L:
    """Return the layer that `take_apart` took apart, with whatever now stands for its arrays."""
    layer = cls.__new__(cls)
    layer.__setstate__(dict(rest))
    layer._assign(arrays)
    return layer


def _register(cls: type[Stateful]) -> None:
    """Make a class a pytree node. Nothing is checked when a layer is put together: leaves may be anything."""
    from jax.tree_util import GetAttrKey, register_pytree_with_keys

    def with_keys(layer: Stateful) -> tuple[list[tuple[Any, Any]], Any]:
        arrays, rest = take_apart(layer)
        return [(GetAttrKey(name), leaf) for name, leaf in arrays.items()], rest

    def without_keys(layer: Stateful) -> tuple[tuple[Any, ...], Any]:
        arrays, rest = take_apart(layer)
        return tuple(arrays.values()), rest

    def from_leaves(rest: tuple[tuple[str, Any], ...], leaves: Iterable[Any]) -> Stateful:
        return put_together(cls, dict(zip(cls._names, leaves, strict=True)), rest)

    register_pytree_with_keys(cls, with_keys, from_leaves, without_keys)
