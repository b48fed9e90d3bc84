"""From a plan and strides to a launch config: whether kernels serve it, of rows or of columns. Touches no array."""

from __future__ import annotations

from typing import Any

from anynorm.backend import Ints, Layout, Plan, View, view, why_apart
from anynorm_cuda._build import (
    LONGEST,
    MOST_ROWS,
    SOURCE_TYPES,
    WIDEST,
    Backward,
    Dtypes,
    Forward,
    LaunchConfig,
    as_rows,
)
from anynorm_cuda._columns import CHUNK, Columns
from anynorm_cuda._launcher import Launcher
from anynorm_cuda._rows import Rows
from anynorm_cuda._thread_groups import Device


class Configs:
    """The launch configs of one signature, their kernels loaded: by step, and by the alignment of the arrays."""

    def __init__(
        self,
        launcher: Launcher,
        device: Device,
        plan: Plan,
        dtypes: Dtypes,
        shape: Ints,
        strides: tuple[Ints, ...],  # in elements: of x and y, or of x, dy and dx
        weight: Layout | None,
        bias: Layout | None,
    ) -> None:
        self._launcher = launcher
        self._device, self._dtypes = device, dtypes
        self._problem = shape, strides, weight, bias
        self._plan = plan
        self._found: dict[tuple[str, int, int], LaunchConfig | str] = {}

    def at(self, step: Forward | Backward, bits: int, parameter_bits: int) -> LaunchConfig | str:
        """Return the config of a step, or half a sentence that says why there is none.

        `bits` is the bitwise or of the addresses of x and all arrays of its shape, `parameter_bits` of weight and bias.
        """
        key = step, bits % WIDEST, parameter_bits % WIDEST
        return self._found.get(key) or self._configured(*key)

    def _configured(self, step: Any, bits: int, parameter_bits: int) -> LaunchConfig | str:
        if bits % SOURCE_TYPES.get(self._dtypes.x, ("", 1))[1]:
            return "the allocator gives memory that is not aligned to an element"
        configure: Any = configure_forward if len(self._problem[1]) == 2 else configure_backward
        dtypes = self._dtypes._replace(address_bits=bits, parameter_bits=parameter_bits)
        config: LaunchConfig | str = configure(self._plan, dtypes, *self._problem, self._device, step=step)
        if not isinstance(config, str):
            config = self._launcher.why_not(config.launches) or config
        self._found[step, bits, parameter_bits] = config
        return config


def configure_forward(
    plan: Plan,
    dtypes: Dtypes,
    shape: Ints,
    strides: tuple[Ints, Ints],
    weight: Layout | None,
    bias: Layout | None,
    device: Device,
    *,
    step: Forward = "forward",
) -> LaunchConfig | str:
    """Return the config of a forward pass or of a step of it, or half a sentence that says why there is none.

    `strides` are those of x and y, in elements; those of x twice for "measure", which writes no y.
    """
    found = _view(plan, dtypes, shape, strides, weight, bias)
    if isinstance(found, str):
        return found
    build = Rows if as_rows(found) else Columns
    return build(plan, found, dtypes, device).forward(step)


def configure_backward(
    plan: Plan,
    dtypes: Dtypes,
    shape: Ints,
    strides: tuple[Ints, Ints, Ints],
    weight: Layout | None,
    bias: Layout | None,
    device: Device,
    *,
    step: Backward = "backward",
) -> LaunchConfig | str:
    """Return the config of a backward pass or of a step of it, or half a sentence that says why there is none.

    `strides` are those of x, dy and dx, in elements. Weight and bias are in C order.
    """
    if plan.given:
        return "statistics are given"
    found = _view(plan, dtypes, shape, strides, weight, bias)
    if isinstance(found, str):
        return found
    if not _in_order(found):
        return "the gradient of a weight is wanted whose axes are in another order in memory than x's"
    build = Rows if as_rows(found) else Columns
    return build(plan, found, dtypes, device).backward(step)


def _view(
    plan: Plan, dtypes: Dtypes, shape: Ints, strides: tuple[Ints, ...], weight: Layout | None, bias: Layout | None
) -> View | str:
    if dtypes.x not in SOURCE_TYPES:
        return f"the kernels have no {dtypes.x}"
    found = view(plan, shape, strides, weight, bias)
    return found if isinstance(found, str) else _unfit(found) or found


def _unfit(found: View) -> str | None:
    """Return why no kernel serves a view, or None."""
    a, r, b, s, p = found.lengths
    if max(r * s * p, a * b, b * s * p) > LONGEST:
        return f"more than {LONGEST} sets, elements of a set, or columns, are not counted"
    rows = as_rows(found)
    along = [("P", p, 1), ("S", s, p), ("B", b, s * p)]
    if rows:
        along = along[:1] if p > 1 else along[1:2]
    for which, strides in enumerate(found.steps):
        for axis, length, needed in along:
            if length > 1 and strides["ARBSP".index(axis)] != needed:
                where = "in the memory of an array beside x" if which else "in memory"
                return why_apart(needed, strides["ARBSP".index(axis)], needed, where)
    parameters = [strides for strides in (found.weight, found.bias) if strides is not None]
    if not rows and any(strides[1] and (strides[2] or strides[3]) for strides in parameters):
        return "weight or bias varies along rows and columns of a table whose columns are normalized"
    if rows and p == 1 and any(strides[3] not in (0, 1) for strides in parameters):
        return "weight or bias does not lie along x's innermost axis as x does"
    if not rows and -(-r // CHUNK) > MOST_ROWS:
        return f"columns of {r} rows are not counted"
    return None


def _in_order(found: View) -> bool:
    """Return whether the axes along which parameters vary are in C order (A, R, B, S), as their gradients are."""
    for strides in (found.weight, found.bias):
        expected = 1
        for axis in (3, 2, 1, 0):  # S, B, R, A
            if strides is not None and found.lengths[axis] > 1 and strides[axis]:
                if strides[axis] != expected:
                    return False
                expected *= found.lengths[axis]
    return True
