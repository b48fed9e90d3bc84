"""A backend that hands NumPy arrays to the CUDA engine, whose kernels then run on the CPU: for tests without a GPU.

What a norm is, is not said here; nor what a CUDA thread is, which cuda_host.py knows.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import numpy as np

from anynorm._core import backends
from anynorm.backend import Declined, Executable, Operands, PackedResiduals, Plan, Statistics
from anynorm_cuda import engine
from anynorm_cuda.engine import Device, Dtypes, LaunchConfig, Run
from anynorm_numpy import NumPyBackend

H200 = Device(90, 132, 232448)
A100 = Device(80, 108, 166912)  # no clusters
RTX = Device(89, 128, 101376)  # little shared memory

GARBAGE = 0x7B  # what workspaces are full of: large numbers


class Backend(NumPyBackend):
    """The CUDA engine on a device of one model for NumPy arrays; and the launch configs it was asked for."""

    def __init__(self, launch: Run, device: Device) -> None:
        super().__init__()
        self.launch, self.device = launch, device
        self.configs: list[LaunchConfig] = []
        self.declined: list[str] = []

    def signature(self, *_: Any) -> None:
        """Have each call looked at anew."""

    def compile(self, plan: Plan, operands: Operands) -> Executable[Any] | Declined:
        """Return what serves a call, or why the engine does not."""
        found = self._forward(plan, operands) if operands.dy is None else self._backward(plan, operands)
        if not isinstance(found, str):
            return _OnHost(plan, self, found)
        self.declined.append(found)
        return Declined(found)

    def _forward(self, plan: Plan, operands: Operands) -> LaunchConfig | str:
        x, weight, bias, _, _, out, *_ = operands
        measures = plan.function == "moments"
        arrays = (x, x if measures else np.empty_like(x) if out is None else out)
        return engine.configure(
            "measure" if measures else "forward",
            plan,
            _dtypes(arrays, weight, bias),
            x.shape,
            (_strides(arrays[0]), _strides(arrays[1])),
            _layout(weight),
            _layout(bias),
            self.device,
        )

    def _backward(self, plan: Plan, operands: Operands) -> LaunchConfig | str:
        x, dy, out = operands.x, operands.dy, operands.out
        if dy.dtype != x.dtype:
            return "dy has another dtype"
        weight = None if operands.weight is None else np.ascontiguousarray(operands.weight)
        bias = None if plan.bias is None else np.empty(cast("Any", plan.bias), x.dtype)
        arrays = (x, dy, np.empty_like(x) if out is None else out)
        layouts = [
            None if array is None else _layout(array.reshape(shape))
            for array, shape in ((weight, plan.weight), (bias, plan.bias))
        ]
        strides = [_strides(array) for array in arrays]
        return engine.configure(
            "backward",
            plan,
            _dtypes(arrays, weight, bias),
            x.shape,
            tuple(strides),
            layouts[0],
            layouts[1],
            self.device,
        )


class _OnHost(Executable[Any]):
    """A pass by the kernels, on the CPU."""

    engine = "anynorm_cuda"

    def __init__(self, plan: Plan, backend: Backend, config: LaunchConfig) -> None:
        super().__init__(plan, backend.ops, None)
        self._backend, self._config = backend, config

    def forward(
        self, x: Any, weight: Any, bias: Any, eps: float, given: tuple[Any, Any] | None, out: Any, save: bool
    ) -> tuple[Any, Any]:
        y = np.empty_like(x) if out is None else out
        residuals = self._launched(x, y, weight, bias, eps, given, save)
        return y, residuals if save else None

    def measure(self, x: Any, eps: float = 0.0) -> Statistics:
        return self._launched(x, None, None, None, eps, None, True).statistics()

    def backward(self, dy: Any, x: Any, weight: Any, residuals: Any, out: Any) -> tuple[Any, Any, Any]:
        dx = np.empty_like(x) if out is None else out
        weight = None if weight is None else np.ascontiguousarray(weight)
        dweight, dbias = [
            None if shape is None else np.full(cast("Any", shape), np.nan, np.float32)
            for shape in (self.plan.weight, self.plan.bias)
        ]
        workspace = self._noted()
        engine.backward(
            self._config,
            self._backend.launch,
            x=_at(x),
            dy=_at(dy),
            dx=_at(dx),
            weight=_at(weight),
            residuals=_at(residuals.array),
            workspace=_at(workspace) + -_at(workspace) % 16,
            dweight=_at(dweight),
            dbias=_at(dbias),
        )
        return dx, dweight, dbias

    def _launched(
        self, x: Any, y: Any, weight: Any, bias: Any, eps: float, given: tuple[Any, Any] | None, save: bool
    ) -> PackedResiduals:
        config, workspace = self._config, self._noted()
        order = config.view.axes[0] + config.view.axes[2]
        read = [] if given is None else [_sets_of(statistic, self.plan, order) for statistic in given]
        array = np.full((5, config.sets), np.nan, np.float32) if save or config.keeps_residuals else None
        engine.forward(
            config,
            self._backend.launch,
            x=_at(x),
            y=_at(y),
            weight=_at(weight),
            bias=_at(bias),
            residuals=_at(array),
            workspace=_at(workspace) + -_at(workspace) % 16,
            eps=eps,
            given=(_at(read[0]), _at(read[1])) if read else (0, 0),
        )
        return PackedResiduals(array, self.plan, config.view, eps)

    def _noted(self) -> Any:
        """Note the config of a pass that is run, and return its workspace."""
        self._backend.configs.append(self._config)
        return np.full(self._config.workspace_bytes + 16, GARBAGE, np.uint8)


def _at(array: Any) -> int:
    return 0 if array is None else int(array.ctypes.data)


def _strides(array: Any) -> tuple[int, ...]:
    return tuple([step // array.itemsize for step in array.strides])


def _layout(array: Any) -> Any:
    return None if array is None else (array.shape, _strides(array))


def _sets_of(statistic: Any, plan: Any, order: tuple[int, ...]) -> Any:
    """Return a given statistic as the engine reads it: a float32 for each set, in the order of sets."""
    kept = sorted(order)
    statistic = np.broadcast_to(statistic.reshape(plan.statistic), plan.statistic)
    by_axis = statistic.reshape([plan.shape[axis] for axis in kept])
    return np.ascontiguousarray(by_axis.transpose([kept.index(axis) for axis in order]), np.float32).reshape(-1)


def _bits(arrays: Any) -> int:
    return functools.reduce(operator.or_, map(_at, arrays), 0) % 16


def _dtypes(arrays: Any, weight: Any, bias: Any) -> Dtypes:
    parameters = [array for array in (weight, bias) if array is not None]
    names = [None if array is None else array.dtype.name for array in (weight, bias)]
    return Dtypes(arrays[0].dtype.name, names[0], names[1], _bits(arrays), _bits(parameters))


@contextmanager
def on_cuda(launch: Run, device: Device = H200) -> Iterator[Backend]:
    """Let NumPy arrays be served by the CUDA engine, as on a device of this model."""
    backend = Backend(launch, device)
    with mock.patch.dict(backends.by_type, {np.ndarray: backend}):
        yield backend
