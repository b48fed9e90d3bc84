"""From a plan and strides to a launch config: whether kernels run it, and of which family. No array is touched."""

from __future__ import annotations

from anynorm.backend import Ints, Layout, Plan, View, view, why_apart
from anynorm_cuda._build import LONGEST, MOST_ROWS, SOURCE_TYPES, as_rows
from anynorm_cuda._build import WIDEST as WIDEST
from anynorm_cuda._build import Dtypes as Dtypes
from anynorm_cuda._build import LaunchConfig as LaunchConfig
from anynorm_cuda._columns import CHUNK, Columns
from anynorm_cuda._rows import Rows
from anynorm_cuda._teams import Device


def configure_forward(
    plan: Plan,
    dtypes: Dtypes,
    shape: Ints,
    strides: tuple[Ints, Ints],
    weight: Layout | None,
    bias: Layout | None,
    device: Device,
    *,
    only_measure: bool = False,
) -> LaunchConfig | str:
    """Return the config for x and y, strides in elements, or half a sentence that says why there is none.

    With `only_measure` y is not written; its strides are x's.
    """
    found = _view(plan, dtypes, shape, strides, weight, bias)
    if isinstance(found, str):
        return found
    build = Rows if as_rows(found) else Columns
    return build(plan, found, dtypes, device).forward(only_measure=only_measure)


def configure_backward(
    plan: Plan,
    dtypes: Dtypes,
    shape: Ints,
    strides: tuple[Ints, Ints, Ints],
    weight: Layout | None,
    bias: Layout | None,
    device: Device,
) -> LaunchConfig | str:
    """Return the config for x, dy and dx; weight and bias as their gradients are wanted, in C order."""
    if plan.given:
        return "statistics are given"
    found = _view(plan, dtypes, shape, strides, weight, bias)
    if isinstance(found, str):
        return found
    if not _in_order(found):
        return "the gradient of a weight is wanted whose axes lie in another order than x's"
    build = Rows if as_rows(found) else Columns
    return build(plan, found, dtypes, device).backward()


def _view(
    plan: Plan, dtypes: Dtypes, shape: Ints, strides: tuple[Ints, ...], weight: Layout | None, bias: Layout | None
) -> View | str:
    if dtypes.x not in SOURCE_TYPES:
        return f"the kernels have no {dtypes.x}"
    found = view(plan, shape, strides, weight, bias)
    return found if isinstance(found, str) else _unfit(found) or found


def _unfit(found: View) -> str | None:
    """Return why no kernel runs a view, or None."""
    a, r, b, s, p = found.lengths
    if max(r * s * p, a * b, b * s * p) > LONGEST:
        return f"more than {LONGEST} sets, elements of a set, or columns, are not counted"
    rows = as_rows(found)
    along = [("P", p, 1), ("S", s, p), ("B", b, s * p)]
    if rows:
        along = along[:1] if p > 1 else along[1:2]
    for which, steps in enumerate(found.steps):
        for place, length, needed in along:
            if length > 1 and steps["ARBSP".index(place)] != needed:
                where = "in the memory of an array beside x" if which else "in memory"
                return why_apart(needed, steps["ARBSP".index(place)], needed, where)
    parameters = [steps for steps in (found.weight, found.bias) if steps is not None]
    if not rows and any(steps[1] and (steps[2] or steps[3]) for steps in parameters):
        return "weight or bias varies along rows and columns of a table whose columns are normalized"
    if rows and p == 1 and any(steps[3] not in (0, 1) for steps in parameters):
        return "weight or bias does not lie along x's innermost axis as x does"
    if not rows and -(-r // CHUNK) > MOST_ROWS:
        return f"columns of {r} rows are not counted"
    return None


def _in_order(found: View) -> bool:
    """Say whether the places that parameters vary along lie as their gradients do: in C order."""
    for steps in (found.weight, found.bias):
        expected = 1
        for place in (3, 2, 1, 0):  # S, B, R, A
            if steps is not None and found.lengths[place] > 1 and steps[place]:
                if steps[place] != expected:
                    return False
                expected *= found.lengths[place]
    return True
