"""torch's CPU tensors served as if they lay on a CUDA device, whose kernels then run on the CPU. No test is in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import cuda_host
from cuda_device import HostDevice
from gradients import cotangent, exact_gradients, verify_gradients
from inputs import Case, verify
from libraries import LIBRARIES, NumPyArray, nothing_known

import anynorm as an

TORCH = LIBRARIES["torch"]


def missing() -> str | None:
    """Return why tensors cannot be served so here, or None."""
    return TORCH.missing() or cuda_host.missing()


STREAM = 0x5EED


class Seen(HostDevice):
    """A device, and what the engine was asked to run on it."""

    def __init__(self, run: Callable[..., None]) -> None:
        super().__init__(run)
        self.configs: list[Any] = []
        self.used: list[Any] = []  # tensors that the allocator was told of

    @property
    def ran(self) -> list[str]:
        """Return the names of the kernels that were run, in order."""
        return [launch.kernel.name for launch in self.launches]


@contextmanager
def on_device(launch: Callable[..., None], device: Any = None) -> Iterator[Seen]:
    """Let CPU tensors count as tensors on a device of a model, an H200 unless told otherwise.

    What torch allocates meanwhile is NaN, so that what no kernel writes shows.
    """
    import torch

    import anynorm_cuda
    from anynorm_cuda import _engine
    from anynorm_cuda.engine import Device, Launcher
    from anynorm_torch import _cuda, _memory, _signature

    device = Device(90, 132, 232448) if device is None else device
    seen = Seen(launch)

    def noting(run: Callable[..., None]) -> Callable[..., None]:
        def noted(config: Any, *args: Any, **options: Any) -> None:
            seen.configs.append(config)
            run(config, *args, **options)

        return noted

    with ExitStack() as stack:
        replacements: list[Any] = [
            mock.patch.object(_memory, "memory_of", _memory_of),
            mock.patch.object(_memory, "_plain", {}),
            mock.patch.multiple(_signature, memory_of=_memory_of, _signatures={}, _guarded={}),
            nothing_known(),
            mock.patch.object(anynorm_cuda, "missing", return_value=None),
            mock.patch.object(_cuda, "facts", return_value=device),
            mock.patch.object(_cuda, "launcher", return_value=Launcher(seen)),
            mock.patch.object(_cuda, "_stream", return_value=STREAM),
            mock.patch.object(_cuda, "note_use", seen.used.append),
            mock.patch.multiple(_engine, forward=noting(_engine.forward), backward=noting(_engine.backward)),
            _filling(torch),
        ]
        for replaced in replacements:
            stack.enter_context(replaced)
        yield seen


def _memory_of(x: Any) -> str:
    return "cuda" if x.device.type == "cpu" else str(x.device.type)


@contextmanager
def _filling(torch: Any) -> Iterator[None]:
    """Let torch fill what it allocates with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def explained(case: Case, arrays: dict[str, Any]) -> an.Route:
    """Return which path serves a call of a case on these tensors, and why no faster one."""
    others = {name: array for name, array in arrays.items() if name != "x"}
    return an.explain(getattr(an, case.norm.function), arrays["x"], *case.norm.groups, **others, **case.norm.options)


def recorded(case: Case, arrays: dict[str, Any], dy: Any) -> tuple[Any, an.Gradients]:
    """Return what autograd records of a case, and its gradients."""
    import torch

    leaves = {name: array.detach() for name, array in arrays.items()}
    for name in ("x", "weight", "bias"):
        if name in leaves:
            leaves[name].requires_grad_()
    y = case.function()(leaves)
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, dy))
    return y, an.Gradients(*[next(found) if name in leaves else None for name in ("x", "weight", "bias")])


def judge(case: Case, arrays: dict[str, Any] | None = None, dy: NumPyArray | None = None) -> None:
    """Raise unless a result and the gradients that autograd has of it are within the contract's bounds."""
    arrays = TORCH.make_all(case.arrays) if arrays is None else arrays
    dy = cotangent(case) if dy is None else dy
    y, found = recorded(case, arrays, TORCH.make(dy))
    verify(TORCH.to_numpy(y), case.arrays["x"], case.reference())
    gradients = an.Gradients(*[None if gradient is None else TORCH.to_numpy(gradient) for gradient in found])
    verify_gradients(gradients, case, exact_gradients(case, dy))
