"""Ways of calling that torch alone has: autograd, torch.func, its compilers and exporters, its modules."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from benchmarks.fuzz.case import Case, fail
from benchmarks.fuzz.judge import check_gradients, check_values, check_y
from benchmarks.fuzz.memory import NumPyArray
from benchmarks.fuzz.trial import SkippedError, Trial, Way, an
from benchmarks.fuzz.ways import add_dy

torch: Any = importlib.import_module("torch")


def _leaves(trial: Trial) -> dict[str, Any]:
    """Let the arguments that have a gradient require one."""
    named = {name: tensor for name, tensor in trial.arrays.items() if name in ("x", "weight", "bias")}
    for tensor in named.values():
        tensor.requires_grad_()
    return named


def _gradients(y: Any, dy: Any, leaves: dict[str, Any], trial: Trial, **options: Any) -> None:
    found = torch.autograd.grad(y, list(leaves.values()), dy, **options)
    check_gradients(
        an.Gradients(**dict.fromkeys(("x", "weight", "bias")) | dict(zip(leaves, found, strict=True))), trial
    )


def _dy(trial: Trial) -> Any:
    """Draw a dy of y's own dtype, as autograd wants it."""
    dy = add_dy(trial)
    if dy.dtype != trial.x.dtype:
        raise SkippedError
    return dy


def backward(trial: Trial) -> None:
    """Let autograd derive."""
    dy = _dy(trial)
    leaves = _leaves(trial)
    y = trial.run()
    check_y(y, trial)
    _gradients(y, dy, leaves, trial)
    trial.check_unchanged()


def changed(trial: Trial) -> None:
    """Double y in place after the call, as an activation might, and let autograd derive."""
    dy = _dy(trial)
    leaves = _leaves(trial)
    y = trial.run()
    y.mul_(2)
    found = torch.autograd.grad(y, list(leaves.values()), dy)
    named: dict[str, Any] = dict.fromkeys(("x", "weight", "bias")) | dict(zip(leaves, found, strict=True))
    check_gradients(an.Gradients(**named), trial, times=2.0)


def func_vjp(trial: Trial) -> None:
    """Let torch.func derive."""
    dy = _dy(trial)
    given = {name: tensor for name, tensor in trial.arrays.items() if name in ("mean", "var")}
    inputs = {name: tensor for name, tensor in trial.arrays.items() if name in ("x", "weight", "bias")}
    y, pullback = torch.func.vjp(lambda tensor: trial.of(tensor | given), inputs)
    check_values(trial.home.read(y), trial.case, trial.exact_arguments())
    (found,) = pullback(dy)
    check_gradients(an.Gradients(**{name: found.get(name) for name in ("x", "weight", "bias")}), trial)


def vmap(trial: Trial) -> None:
    """Map over three of each argument, stacked along any axis."""
    trials = [trial, Trial(trial.case, 1), Trial(trial.case, 2)]
    axes = {name: trial.random.randint(0, tensor.ndim) for name, tensor in trial.arrays.items()}
    stacked = {name: torch.stack([other_trial.arrays[name] for other_trial in trials], dim=axes[name]) for name in axes}
    y = torch.func.vmap(trial.of, in_dims=(axes,))(stacked)
    for i, other_trial in enumerate(trials):
        check_values(other_trial.home.read(y[i]), other_trial.case, other_trial.exact_arguments(), "y under vmap")


def jvp(trial: Trial) -> None:
    """Compare forward mode with reverse mode, in float64: t·J(v) is v·Jᵀ(t)."""
    if trial.case.x.dtype != "float64" or trial.case.x.values not in ("normal", "offset"):
        raise SkippedError
    if trial.case.eps < 1e-6 or trial.case.x.layout.order in ("repeated", "windows"):
        raise SkippedError  # torch writes a tangent of x's own strides
    x, others = trial.x.as_subclass(torch.Tensor), trial.others
    v, t = [torch.from_numpy(trial.numbers.normal(size=trial.case.x.shape)) for _ in range(2)]
    _, change = torch.func.jvp(lambda tensor: trial.of({"x": tensor, **others}), (x,), (v,))
    _, pullback = torch.func.vjp(lambda tensor: trial.of({"x": tensor, **others}), x)
    one, other = float((change * t).sum()), float((pullback(t)[0] * v).sum())
    size = float((change * t).abs().sum() + (pullback(t)[0] * v).abs().sum())
    rounding = 1e-10 * float((v * t).abs().sum()) / trial.case.eps**0.5
    if not abs(one - other) <= 1e-9 * size + rounding:
        fail("forward and reverse mode differ", f"{one} and {other}")


def twice(trial: Trial) -> None:
    """Compare the second derivative with differences of the first, in float64."""
    case = trial.case
    if case.x.dtype != "float64" or case.x.values != "normal" or case.eps < 1e-6 or case.x.layout.shift:
        raise SkippedError
    dy, v = [torch.from_numpy(trial.numbers.normal(size=case.x.shape)) for _ in range(2)]
    x, others = trial.x.as_subclass(torch.Tensor).detach(), trial.others
    deviation = float(x.std(correction=0)) if x.numel() else 0.0

    def slope(tensor: Any) -> Any:
        tensor = tensor.detach().requires_grad_() if not tensor.requires_grad else tensor
        return torch.autograd.grad(trial.of({"x": tensor, **others}), tensor, dy, create_graph=True)[0]

    if not deviation:
        raise SkippedError
    leaf = x.clone().requires_grad_()
    first = slope(leaf)
    # By given statistics y is linear in x: the first derivative does not depend on it.
    found = torch.autograd.grad(first, leaf, v, allow_unused=True)[0] if first.requires_grad else None
    found = torch.zeros_like(x) if found is None else found
    step = 1e-4 * deviation
    difference = ((slope(x + step * v) - slope(x - step * v)) / (2 * step)).detach()
    finer = ((slope(x + step / 4 * v) - slope(x - step / 4 * v)) / (step / 2)).detach()
    # Where the differences themselves have not settled, they are no measure.
    allowed = 1e-5 * float(finer.abs().max()) + 4 * float((difference - finer).abs().max()) + 1e-7 / deviation**2
    if not float((found - finer).abs().max()) <= allowed:
        fail("a second derivative is off", f"{float((found - finer).abs().max())} of {float(finer.abs().max())}")


def compiled(trial: Trial) -> None:
    """Compile the call into one graph."""
    torch.compiler.reset()
    backend = trial.random.choice(("eager", "aot_eager"))
    dynamic = trial.random.choice((None, True))
    function = torch.compile(trial.of, fullgraph=True, backend=backend, dynamic=dynamic)
    y = function(dict(zip(*_tensors(trial), strict=True)))
    check_values(trial.home.read(y), trial.case, trial.exact_arguments(), f"y compiled by {backend}")


def _tensors(trial: Trial) -> tuple[list[str], list[Any]]:
    """Return names and arguments as plain tensors: torch's compilers know no subclasses of others."""
    return ["x", *trial.others], [value.as_subclass(torch.Tensor) for value in (trial.x, *trial.others.values())]


def _traceable(trial: Trial) -> bool:
    shape = trial.case.x.shape
    return 0 not in shape and min(shape) > 1


def make_fx(trial: Trial) -> None:
    """Trace with lengths as symbols, and run the trace on other numbers."""
    from torch.fx.experimental.proxy_tensor import make_fx as trace_symbols

    if not _traceable(trial):
        raise SkippedError
    names, tensors = _tensors(trial)
    other = Trial(trial.case, variant=1)
    traced = trace_symbols(
        lambda *arguments: trial.of(dict(zip(names, arguments, strict=True))), tracing_mode="symbolic"
    )(*tensors)
    check_values(trial.home.read(traced(*_tensors(other)[1])), trial.case, other.exact_arguments(), "y of make_fx")


def _open_axis(trial: Trial) -> int:
    """Return an axis of x that may have any length: no parameter lies along it, and no group divides it."""
    case = trial.case
    closed = {value for value in (case.options.get("channel_axis"),) if value is not None}
    closed = {value % len(case.x.shape) for value in closed}
    if case.operands.keys() - {"x"} and case.function in ("layer_norm", "rms_norm"):
        raise SkippedError
    if any(
        len(operand.shape) == len(case.x.shape) and len(case.x.shape) > 1
        for name, operand in case.operands.items()
        if name != "x"
    ):
        raise SkippedError
    free = [axis for axis in range(len(case.x.shape)) if axis not in closed and case.x.shape[axis] > 1]
    if not free:
        raise SkippedError
    return trial.random.choice(free)


class _Module(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Any) -> Any:
        return self.function(*tensors)


def exported(trial: Trial) -> None:
    """Export with one length left open, and run it on twice that length."""
    if not _traceable(trial):
        raise SkippedError
    axis = _open_axis(trial)
    names, tensors = _tensors(trial)
    tensors[0] = tensors[0].contiguous()  # torch exports no open length that might be a step of x
    module = _Module(lambda *arguments: trial.of(dict(zip(names, arguments, strict=True))))
    open_length = {axis: torch.export.Dim("length", min=2, max=4096)}
    dynamic = ((open_length, *[None] * (len(names) - 1)),)
    program = torch.export.export(module, tuple(tensors), dynamic_shapes=dynamic, strict=False).module()
    longer = _doubled(trial, axis)
    y = program(
        torch.from_numpy(longer["x"]) if trial.case.x.dtype != "bfloat16" else _bfloat16(longer["x"]), *tensors[1:]
    )
    check_values(trial.home.read(y), trial.case, longer, "y of an exported program of another length")


def _bfloat16(array: NumPyArray) -> Any:
    return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)


def _doubled(trial: Trial, axis: int) -> dict[str, NumPyArray]:
    numbers = trial.exact_arguments()
    return numbers | {"x": np.concatenate([numbers["x"], numbers["x"][::-1]], axis=axis)}


def traced(trial: Trial) -> None:
    """Trace by torch.jit, and run the trace on other numbers of another length."""
    if not _traceable(trial):
        raise SkippedError
    names, tensors = _tensors(trial)
    function = torch.jit.trace(
        lambda *arguments: trial.of(dict(zip(names, arguments, strict=True))), tuple(tensors), check_trace=False
    )
    other = Trial(trial.case, variant=1)
    check_values(
        trial.home.read(function(*_tensors(other)[1])), trial.case, other.exact_arguments(), "y of a jit trace"
    )


def fake(trial: Trial) -> None:
    """Compute shape and strides alone, which must be those of the real result."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = trial.of(dict(zip(*_tensors(trial), strict=True)))
    check_values(trial.home.read(real), trial.case, trial.exact_arguments())
    with FakeTensorMode() as mode:
        names, tensors = _tensors(trial)
        y = trial.of(dict(zip(names, [mode.from_tensor(tensor) for tensor in tensors], strict=True)))
    if (y.shape, y.dtype) != (real.shape, real.dtype):
        fail("a fake tensor has another shape", f"{y.shape} {y.dtype}, {real.shape} {real.dtype}")
    if real.numel() and any(a != b for a, b, n in zip(y.stride(), real.stride(), y.shape, strict=True) if n > 1):
        fail("a fake tensor has other strides", f"{y.stride()}, {real.stride()}, x {trial.x.stride()}")


def module(trial: Trial) -> None:
    """Train a torch module for two steps and evaluate it, in torch's own layout."""
    import anynorm_torch.nn

    case = trial.case
    shape = case.x.shape
    axes = len(shape)
    if axes < 2 or axes > 5 or 0 in shape or shape[1] == math.prod(shape) or case.x.layout.odd:
        raise SkippedError
    plain = Case(case.seed, case.function, case.groups, {"eps": 1e-5}, {"x": case.x}, case.library, case.fast, case.way)
    if case.function == "batch_norm":
        names = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
        norm = getattr(anynorm_torch.nn, names[axes])(shape[1])
    elif case.function == "group_norm":
        groups = math.gcd(int(case.groups[0]), shape[1])
        norm = anynorm_torch.nn.GroupNorm(groups, shape[1])
        plain = Case(
            case.seed, "group_norm", (groups,), {"eps": 1e-5}, {"x": case.x}, case.library, case.fast, case.way
        )
    elif case.function == "instance_norm" and axes > 2 and math.prod(shape[2:]) > 1:
        norm = getattr(anynorm_torch.nn, f"InstanceNorm{axes - 2}d")(shape[1], affine=trial.random.random() < 0.5)
    elif case.function == "layer_norm":
        norm = anynorm_torch.nn.LayerNorm(shape[1:])
        plain = Case(
            case.seed,
            "layer_norm",
            (),
            {"axis": tuple(range(1, axes)), "eps": 1e-5},
            {"x": case.x},
            case.library,
            case.fast,
            case.way,
        )
    else:
        raise SkippedError
    for step in range(2):
        batch = Trial(plain, step)
        numbers = batch.exact_arguments()
        x = batch.x.requires_grad_()
        activated = torch.nn.functional.leaky_relu(y := norm(x), 0.5, inplace=trial.random.random() < 0.5)
        expected = activated.detach() * torch.where(activated.detach() < 0, 2, 1)
        if y is not activated:
            expected = y
        check_values(batch.home.read(expected), plain, numbers, "y of a module")
        activated.sum().backward()
        batch.check_unchanged()


TORCH: dict[str, Way] = {
    "backward": backward,
    "changed": changed,
    "func_vjp": func_vjp,
    "vmap": vmap,
    "jvp": jvp,
    "twice": twice,
    "compile": compiled,
    "make_fx": make_fx,
    "torch_export": exported,
    "trace": traced,
    "fake": fake,
    "module": module,
}
