"""From a view to a job: whether kernels run it, and which family. No array is touched."""

from __future__ import annotations

from anynorm.backend import Plan
from anynorm.backend import Ints, Layout, View, view, why_apart
from anynorm_cuda._build import KINDS, LONGEST, MOST_ROWS, as_rows
from anynorm_cuda._build import WIDEST as WIDEST
from anynorm_cuda._build import Job as Job
from anynorm_cuda._build import Kinds as Kinds
from anynorm_cuda._column_jobs import CHUNK, Columns
from anynorm_cuda._line_jobs import Rows
from anynorm_cuda._teams import Device


def forward_job(
    plan: Plan,
    kinds: Kinds,
    shape: Ints,
    strides: tuple[Ints, Ints],
    weight: Layout | None,
    bias: Layout | None,
    device: Device,
) -> Job | str:
    """Return the job for x and y, strides in elements, or half a sentence that says why there is none."""
    its = _view(plan, kinds, shape, strides, weight, bias)
    if isinstance(its, str):
        return its
    only_measure = plan.function == "moments"
    build = Rows if as_rows(its) else Columns
    return build(plan, its, kinds, device).forward(only_measure=only_measure)


def gradient_job(
    plan: Plan,
    kinds: Kinds,
    shape: Ints,
    strides: tuple[Ints, Ints, Ints],
    weight: Layout | None,
    bias: Layout | None,
    device: Device,
) -> Job | str:
    """Return the job for x, dy and dx; weight and bias as their gradients are wanted, in C order."""
    if plan.given:
        return "statistics are given"
    its = _view(plan, kinds, shape, strides, weight, bias)
    if isinstance(its, str):
        return its
    if not _in_order(its):
        return "the gradient of a weight is wanted whose axes lie in another order than x's"
    build = Rows if as_rows(its) else Columns
    return build(plan, its, kinds, device).backward()


def _view(
    plan: Plan, kinds: Kinds, shape: Ints, strides: tuple[Ints, ...], weight: Layout | None, bias: Layout | None
) -> View | str:
    if kinds.x not in KINDS:
        return f"the kernels have no {kinds.x}"
    found = view(plan, shape, strides, weight, bias)
    return found if isinstance(found, str) else _unfit(found) or found


def _unfit(its: View) -> str | None:
    """Return why no kernel runs a view, or None."""
    a, r, b, s, p = its.lengths
    if max(r * s * p, a * b, b * s * p) > LONGEST:
        return f"more than {LONGEST} sets, elements of a set, or columns, are not counted"
    rows = as_rows(its)
    along = [("P", p, 1), ("S", s, p), ("B", b, s * p)]
    if rows:
        along = along[:1] if p > 1 else along[1:2]
    for which, steps in enumerate(its.steps):
        for place, length, needed in along:
            if length > 1 and steps["ARBSP".index(place)] != needed:
                where = "in the memory of an array beside x" if which else "in memory"
                return why_apart(needed, steps["ARBSP".index(place)], needed, where)
    parameters = [steps for steps in (its.weight, its.bias) if steps is not None]
    if not rows and any(steps[1] and (steps[2] or steps[3]) for steps in parameters):
        return "weight or bias varies along rows and columns of a table whose columns are normalized"
    if rows and p == 1 and any(steps[3] not in (0, 1) for steps in parameters):
        return "weight or bias does not lie along x's innermost axis as x does"
    if not rows and -(-r // CHUNK) > MOST_ROWS:
        return f"columns of {r} rows are not counted"
    return None


def _in_order(its: View) -> bool:
    """Say whether the places that parameters vary along lie as their gradients do: in C order."""
    for steps in (its.weight, its.bias):
        expected = 1
        for place in (3, 2, 1, 0):  # S, B, R, A
            if steps is not None and its.lengths[place] > 1 and steps[place]:
                if steps[place] != expected:
                    return False
                expected *= its.lengths[place]
    return True
