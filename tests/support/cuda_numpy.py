"""A backend that hands NumPy arrays to the CUDA engine, whose kernels then run on the CPU: for tests without a GPU.

What a norm is, is not said here; nor what a CUDA thread is, which cuda_host.py knows.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from anynorm._array import Library
from anynorm._formula import Saved
from anynorm._learned import in_order

import anynorm_numpy
from anynorm import _dispatch, _formula
from anynorm_cuda import _engine, _jobs
from anynorm_cuda._engine import Launcher
from anynorm_cuda._teams import Device

H200 = Device(90, 132, 232448)
A100 = Device(80, 108, 166912)  # no clusters
RTX = Device(89, 128, 101376)  # little shared memory

WORK = 0x7B  # what memory to work in is full of: large numbers


class Backend:
    """The functions of a backend, each by the CUDA engine on a device of one model; and the jobs it was asked for."""

    def __init__(self, launch: Launcher, device: Device) -> None:
        self.launch, self.device = launch, device
        self.jobs: list[_jobs.Job] = []
        self.declined: list[str] = []

    def forward_job(self, plan: Any, x: Any, y: Any, weight: Any, bias: Any) -> Any:
        """Return the job for x and y, or why there is none."""
        arrays = (x, y)
        kinds = _kinds(arrays, weight, bias)
        strides = [_steps(array) for array in arrays]
        return _jobs.forward_job(plan, kinds, x.shape, (strides[0], strides[1]), _lie(weight), _lie(bias), self.device)

    def declines(self, plan: Any, x: Any, weight: Any, bias: Any, *, stats: Any, out: Any) -> str | None:
        """Return why the engine does not serve a call, or None."""
        del stats
        job = self.forward_job(plan, x, np.empty_like(x) if out is None else out, weight, bias)
        if isinstance(job, str):
            self.declined.append(job)
            return job
        return None

    def forward(
        self, plan: Any, x: Any, weight: Any, bias: Any, eps: float, *, stats: Any, out: Any, save: bool
    ) -> tuple[Any, Any]:
        """Return y, and the statistics."""
        y = np.empty_like(x) if out is None else out
        job = self.forward_job(plan, x, y, weight, bias)
        order = job.view.axes[0] + job.view.axes[2]
        given = [] if stats is None else [_sets_of(its, plan, order) for its in stats]
        saved = np.full((5, job.sets), np.nan, np.float32) if save or job.keeps else None
        self._forward(job, x, y, weight, bias, saved, eps, given)
        return y, self._learned(plan, job, saved) if save else None

    def moments(self, plan: Any, x: Any) -> Any:
        """Return the statistics."""
        job = self.forward_job(plan, x, x, None, None)
        saved = np.full((5, job.sets), np.nan, np.float32)
        self._forward(job, x, None, None, None, saved, 0.0, [])
        return self._learned(plan, job, saved)

    def backward(self, plan: Any, dy: Any, x: Any, weight: Any, saved: Any) -> tuple[Any, Any, Any]:
        """Return the gradients: the engine's, or the formula's where it has none."""
        library = _dispatch._libraries[np.ndarray]
        dx = np.empty_like(x)
        weight = None if weight is None else np.ascontiguousarray(weight)
        bias = None if plan.bias is None else np.empty(plan.bias, x.dtype)
        arrays = (x, dy, dx)
        strides = [_steps(array) for array in arrays]
        lies = [
            None if its is None else _lie(its.reshape(own)) for its, own in ((weight, plan.weight), (bias, plan.bias))
        ]
        job: Any = "dy has another dtype"
        if dy.dtype == x.dtype:
            kinds = _kinds(arrays, weight, bias)
            job = _jobs.gradient_job(
                plan, kinds, x.shape, (strides[0], strides[1], strides[2]), lies[0], lies[1], self.device
            )
        if isinstance(job, str):
            self.declined.append(job)
            found: tuple[Any, Any, Any] = _formula.backward(plan, dy, x, weight, saved, library=library)
            return found
        self.jobs.append(job)
        targets = [None if lies is None else np.full(lies, np.nan, np.float32) for lies in (plan.weight, plan.bias)]
        work = np.full(job.work + 16, WORK, np.uint8)
        _engine.backward(
            job,
            self.launch,
            x=_at(x),
            dy=_at(dy),
            dx=_at(dx),
            weight=_at(weight),
            saved=_at(saved.m2.planes),
            work=_at(work) + -_at(work) % 16,
            dweight=_at(targets[0]),
            dbias=_at(targets[1]),
        )
        return dx, targets[0], targets[1]

    def _forward(
        self, job: _jobs.Job, x: Any, y: Any, weight: Any, bias: Any, saved: Any, eps: float, given: list[Any]
    ) -> None:
        self.jobs.append(job)
        work = np.full(job.work + 16, WORK, np.uint8)
        _engine.forward(
            job,
            self.launch,
            x=_at(x),
            y=_at(y),
            weight=_at(weight),
            bias=_at(bias),
            saved=_at(saved),
            work=_at(work) + -_at(work) % 16,
            eps=eps,
            given=(_at(given[0]), _at(given[1])) if given else (0, 0),
        )

    def _learned(self, plan: Any, job: _jobs.Job, planes: Any) -> Saved:
        order = job.view.axes[0] + job.view.axes[2]
        return Saved(*[in_order(plane, order, plan, plan.statistic).view(_Plane).of(planes) for plane in planes])


class _Plane(np.ndarray[Any, Any]):
    """A plane that remembers all of them, in the order of sets."""

    planes: Any = None

    def of(self, planes: Any) -> _Plane:
        self.planes = planes
        return self


def _at(array: Any) -> int:
    return 0 if array is None else int(array.ctypes.data)


def _steps(array: Any) -> tuple[int, ...]:
    return tuple([step // array.itemsize for step in array.strides])


def _lie(array: Any) -> Any:
    return None if array is None else (array.shape, _steps(array))


def _sets_of(statistic: Any, plan: Any, order: tuple[int, ...]) -> Any:
    """Return a given statistic as the engine reads it: a float32 for each set, in the order of sets."""
    laid = np.broadcast_to(statistic.reshape(plan.statistic), plan.statistic)
    kept = sorted(order)
    laid = laid.reshape([plan.shape[axis] for axis in kept]).transpose([kept.index(axis) for axis in order])
    return np.ascontiguousarray(laid, np.float32).reshape(-1)


def _bits(arrays: Any) -> int:
    return functools.reduce(operator.or_, map(_at, arrays), 0) % 16


def _kinds(arrays: Any, weight: Any, bias: Any) -> _jobs.Kinds:
    parameters = [its for its in (weight, bias) if its is not None]
    names = [None if its is None else its.dtype.name for its in (weight, bias)]
    return _jobs.Kinds(arrays[0].dtype.name, names[0], names[1], _bits(arrays), _bits(parameters))


@contextmanager
def on_cuda(launch: Launcher, device: Device = H200) -> Iterator[Backend]:
    """Let NumPy arrays be served by the CUDA engine, as on a device of this model."""
    backend = Backend(launch, device)
    offered = {name: its for name, its in vars(anynorm_numpy).items() if name not in ("kind", "again", "path")}
    package = types.ModuleType("anynorm_cuda")
    vars(package).update(offered)
    for name in ("declines", "forward", "moments", "backward"):
        setattr(package, name, getattr(backend, name))
    library = Library("numpy", np, package)
    with mock.patch.dict(_dispatch._libraries, {np.ndarray: library}):
        yield backend
