"""Engines' passes as autograd records them: their gradient, and where that is differentiated again, the formula's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anynorm.backend import Executable, Operands, PackedResiduals, View, cache, formula
from anynorm_torch._memory import forward_ad, unreadable
from anynorm_torch._ops import OPS
from anynorm_torch._signature import signature_of
from anynorm_torch._tensors import Maybe, Parameter

if TYPE_CHECKING:
    from anynorm_torch._launch import Launch

# Elements of a parameter, at most, that is cast together with the other one, and kept cast for the backward pass.
FEW = 2**14


class Kept(NamedTuple):
    """What a backward pass needs to know beside the tensors that autograd saves."""

    launch: Launch
    view: View
    eps: float
    array: Any  # the residuals, if they are an array of NumPy's: autograd saves tensors alone
    read_weight: Tensor | None  # weight as the forward pass read it, if that is another tensor


def recorded(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    y: Tensor,
    launch: Launch,
    view: View,
    eps: float,
    residuals: Any,
    read_weight: Tensor | None,
) -> Tensor:
    """Return y, which a launch has computed, recorded for a gradient."""
    array = None
    if not isinstance(residuals, Tensor):
        array, residuals = residuals, None
    # Autograd sees that weight is not written to meanwhile, so what was cast is right later too.
    if read_weight is weight or (read_weight is not None and read_weight.numel() > FEW):
        read_weight = None
    # What `apply` does before is for the tensors of torch.func's transforms, which do not come here, and takes 2 µs.
    apply = _Normalized.apply if torch._C._are_functorch_transforms_active() else _apply
    # y in a tuple: of a tensor that is passed as it is, autograd would return a view.
    kept = launch, view, eps, array, read_weight
    return apply(x, weight, bias, (y, residuals, kept))  # type: ignore[no-any-return]


class _Normalized(torch.autograd.Function):
    """x, weight, bias -> y by an engine. Its gradient has a gradient by the formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Maybe, bias: Maybe, computed: tuple[Tensor, Any, Any]) -> Tensor:
        y, residuals, ctx.kept = computed
        # Not bias, whose values may change meanwhile, but where the gradient of an activation depends on them.
        if ctx.kept[0].plan.activation is None:
            bias = None
        ctx.save_for_backward(x, weight, residuals, bias)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, residuals, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        kept = launch, _, _, array, read_weight = ctx.kept
        if torch.is_grad_enabled():
            return *_differentiable(Kept(*kept), dy, x, weight, residuals, bias, needs), None
        key: Any = None
        if forward_ad._current_level < 0:
            # Hooks may have brought back tensors of another kind than those that were saved.
            if bias is not None:
                named = {"x": x, "dy": dy, "bias": bias, "weight": weight, "residuals": residuals}
                present = {name: tensor for name, tensor in named.items() if tensor is not None}
                key = signature_of(", ".join(present), *present.values())
            elif residuals is None:
                key = signature_of("x, dy", x, dy) if weight is None else signature_of("x, dy, weight", x, dy, weight)
            elif weight is None:
                key = signature_of("x, dy, residuals", x, dy, residuals)
            else:
                key = signature_of("x, dy, weight, residuals", x, dy, weight, residuals)
        if key is not None:
            key = launch, key
        executable: Any = None if key is None else cache.entries.get(key)
        if executable is None:
            executable = _compiled(Kept(*kept), dy, x, weight, residuals, bias)
            if key is not None:
                cache.remember(key, executable)
        if type(executable) is not Executable:
            residuals_read = residuals if array is None else array
            weight_read = weight if read_weight is None else read_weight
            found = executable.run(dy, x, weight_read, bias, residuals_read, None, needs)
            if found is not None:
                return *found, None  # cast, and left out where it is not needed, by autograd itself
        packed = _packed(Kept(*kept), residuals, bias)
        found = Executable(launch.plan, OPS, None).backward(dy, x, weight, packed, None)
        return *_like(found, weight, launch.bias, needs), None


_apply: Any = super(torch.autograd.Function, _Normalized).apply


def _compiled(kept: Kept, dy: Tensor, x: Tensor, weight: Maybe, residuals: Maybe, bias: Maybe) -> Any:
    """Return what serves backward passes like this one, the formula where no engine may or can."""
    launch = kept.launch
    tensors = [tensor for tensor in (x, dy, weight, residuals, bias) if tensor is not None]
    found: Any = "the tensors may not be read"
    if forward_ad._current_level < 0 and not any(unreadable(tensor) for tensor in tensors):
        weight = weight if kept.read_weight is None else kept.read_weight
        found = launch.compile_gradient(Operands(x, weight, dy=dy, residuals=_packed(kept, residuals, bias)))
    return Executable(launch.plan, OPS, found) if isinstance(found, str) else found


def _packed(kept: Kept, residuals: Maybe, bias: Maybe) -> PackedResiduals:
    array = residuals if kept.array is None else torch.from_numpy(kept.array)
    return PackedResiduals(array, kept.launch.plan, kept.view, kept.eps, bias)


def _like(
    gradients: tuple[Any, Any, Any], weight: Tensor | None, bias: Parameter | None, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients that are needed, those of weight and bias in their own dtype and shape."""
    dx, dweight, dbias = gradients
    return [
        dx if needs[0] else None,
        dweight.to(weight.dtype).reshape(weight.shape) if needs[1] and weight is not None else None,
        dbias.to(bias.dtype).reshape(bias.shape) if needs[2] and bias is not None else None,
    ]


def _differentiable(
    kept: Kept, dy: Tensor, x: Tensor, weight: Maybe, residuals: Maybe, bias: Maybe, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients as the formula has them, recorded for a gradient of their own."""
    launch = kept.launch
    plan, described = launch.plan, launch.bias
    if plan.given:
        found = formula.backward(plan, dy, x, weight, _packed(kept, residuals, bias), ops=OPS)  # type: ignore[arg-type]
        return _like(found, weight, described, needs)
    # Aliases, because one input may be made of another, or be the same tensor: their gradients must not mix here.
    # Without an activation nothing depends on the values of bias.
    if described is not None and bias is None:
        bias = x.new_zeros(described.shape, dtype=described.dtype, requires_grad=needs[2])
    aliases: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in (x, weight, bias)]
    y, _ = formula.forward(plan, aliases[0], aliases[1], aliases[2], kept.eps, ops=OPS)
    wanted = [alias for alias, need in zip(aliases, needs, strict=False) if need]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(gradients) if need else None for need in needs[:3]]
