"""The array operations that NumPy does better than the standard's own calls, or does wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from anynorm.backend import ArrayOps
from anynorm_numba.engine import Array


class NumPyOps(ArrayOps[Array]):
    """NumPy's operations."""

    def __init__(self) -> None:
        super().__init__("numpy", xp)

    def on_device(self, x: Array, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:  # noqa: ARG002
        with np.errstate(all="ignore"):
            return function(*arguments, **options)

    def with_layout_of(self, y: Array, x: Array) -> Array:
        # With several broadcast operands NumPy's arithmetic forgets the order of axes.
        like = np.empty_like(x, subok=False)
        if like.strides == y.strides:
            return y
        if type(y) is not np.ndarray:  # a copy is of y's class, with all that an instance carries
            order = sorted(range(y.ndim), key=lambda axis: -like.strides[axis])
            return y.transpose(order).copy(order="C").transpose(np.argsort(order))
        like[...] = y
        return like


OPS = NumPyOps()
