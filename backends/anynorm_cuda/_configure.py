"""From a plan and strides to a launch config: whether kernels serve it, of rows or of columns. Touches no array."""

from __future__ import annotations

from anynorm.backend import Ints, Layout, Plan, View, view, why_apart
from anynorm_cuda._build import LONGEST, MOST_ROWS, SOURCE_TYPES, WIDEST, Dtypes, LaunchConfig, Step, as_rows
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
        self._found: dict[tuple[Step, int, int], LaunchConfig | str] = {}

    def at(self, step: Step, bits: int, parameter_bits: int) -> LaunchConfig | str:
        """Return the config of a step, or half a sentence that says why there is none.

        `bits` is the bitwise or of the addresses of x and all arrays of its shape, `parameter_bits` of weight and bias.
        """
        key = step, bits % WIDEST, parameter_bits % WIDEST
        return self._found.get(key) or self._configured(*key)

    def _configured(self, step: Step, bits: int, parameter_bits: int) -> LaunchConfig | str:
        if bits % SOURCE_TYPES.get(self._dtypes.x, ("", 1))[1]:
            return "the allocator gives memory that is not aligned to an element"
        dtypes = self._dtypes._replace(address_bits=bits, parameter_bits=parameter_bits)
        config = configure(step, self._plan, dtypes, *self._problem, self._device)
        if not isinstance(config, str):
            config = self._launcher.why_not(config.launches) or config
        self._found[step, bits, parameter_bits] = config
        return config


def configure(
    step: Step,
    plan: Plan,
    dtypes: Dtypes,
    shape: Ints,
    strides: tuple[Ints, ...],
    weight: Layout | None,
    bias: Layout | None,
    device: Device,
) -> LaunchConfig | str:
    """Return the config of a pass or of a step of it, or half a sentence that says why there is none.

    `strides`, in elements, are those of x and y, or of x, dy and dx; those of x twice for "measure", which writes no y.
    In a backward pass weight and bias are in C order.
    """
    backward = len(strides) == 3
    if plan.given and backward:
        return "statistics are given"
    if plan.activation is not None:
        return "the kernels apply no activation"
    if dtypes.x not in SOURCE_TYPES:
        return f"the kernels have no {dtypes.x}"
    found = view(plan, shape, strides, weight, bias)
    if isinstance(found, str):
        return found
    reason = _unfit(found)
    if reason is None and backward and not _in_order(found):
        reason = "the gradient of a weight is wanted whose axes are in another order in memory than x's"
    if reason is not None:
        return reason
    build = (Rows if as_rows(found) else Columns)(plan, found, dtypes, device)
    return build.backward(step) if backward else build.forward(step)


def _unfit(found: View) -> str | None:
    """Return why no kernel serves a view, or None."""
    a, r, b, s, p = found.lengths
    if max(r * s * p, a * b, b * s * p) > LONGEST:
        return f"more than {LONGEST} sets, elements of a set, or columns, are not counted"
    rows = as_rows(found)
    along = [("P", p, 1), ("S", s, p), ("B", b, s * p)]
    if rows:
        along = along[:1] if p > 1 else along[1:2]
    for which, strides in enumerate(found.strides):
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
