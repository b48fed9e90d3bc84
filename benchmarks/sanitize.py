"""Every kernel of the CUDA engine once, on small arrays in allocations of their own: what compute-sanitizer watches.

`python -m benchmarks.sanitize` runs all on the first GPU and fails if a result is not right. No array library is used:
theirs take memory in large blocks, in which a kernel can leave its array unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

from anynorm._core.plan import Plan, by_channel, over_axes
from anynorm_cuda import engine
from anynorm_cuda.engine import Device, Dtypes, LaunchConfig, Run
from benchmarks.gpu_exact import disagreement, exact
from benchmarks.gpu_problems import BACKWARD, FORWARD
from benchmarks.peers import EPS
from benchmarks.problems import ALONG_ROWS, Arrays, Problem


class Case(NamedTuple):
    """A norm, with weight and bias of a dtype; `given`: with statistics from outside, which has no gradients."""

    problem: Problem
    parameters: str = "float32"
    given: bool = False


def _images(*shape: int, dtype: str = "float32") -> Iterator[Case]:
    for channels_last in (False, True):
        yield Case(Problem("batch_norm", shape, 1, channels_last, dtype))
        yield Case(Problem("group_norm", shape, 2, channels_last, dtype), dtype)
        yield Case(Problem("instance_norm", shape, 1, channels_last, dtype))


# Rows from a part of a warp to several blocks, and more than a cluster holds; with rests of vectors. Small and large
# images.
CASES = (
    Case(Problem("layer_norm", (9, 24), dtype="float16"), "float16"),
    Case(Problem("rms_norm", (5, 257))),
    Case(Problem("layer_norm", (3, 1000), dtype="bfloat16"), "bfloat16"),
    Case(Problem("layer_norm", (3, 6000))),
    Case(Problem("rms_norm", (2, 12288), dtype="bfloat16"), "bfloat16"),
    Case(Problem("layer_norm", (2, 40000), dtype="float16")),
    Case(Problem("layer_norm", (2, 140001))),
    Case(Problem("layer_norm", (1, 600000), dtype="bfloat16"), "bfloat16"),
    *_images(3, 6, 5, 5),
    *_images(2, 16, 40, 36, dtype="bfloat16"),
    Case(Problem("instance_norm", (1, 3, 260, 260))),
    Case(Problem("instance_norm", (1, 2, 700, 400))),
    Case(Problem("batch_norm", (1, 6, 260, 260), channels_last=True)),
    Case(Problem("batch_norm", (4, 6, 9, 9)), given=True),
    Case(Problem("batch_norm", (4, 6, 9, 9), channels_last=True), given=True),
)


class Memory(Protocol):
    """The memory that kernels read and write."""

    def put(self, array: np.ndarray[Any, Any]) -> int:
        """Return the address of a copy."""
        ...

    def get(self, address: int, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return what lies at an address, of the array's shape and dtype, when all that was launched is done."""
        ...

    def free(self) -> None:
        """Give all back."""
        ...


class DeviceMemory:
    """The memory of a GPU, each array an allocation of its own."""

    def __init__(self, number: int) -> None:
        self._driver: Any = import_module("cuda.bindings.driver")
        self._ask("cuInit", 0)
        context = self._ask("cuDevicePrimaryCtxRetain", self._ask("cuDeviceGet", number))
        self._ask("cuCtxSetCurrent", context)
        self._taken: list[Any] = []

    def put(self, array: np.ndarray[Any, Any]) -> int:
        """Return the address of a copy."""
        address = self._ask("cuMemAlloc", array.nbytes)
        self._taken.append(address)
        self._ask("cuMemcpyHtoD", address, array.ctypes.data, array.nbytes)
        return int(address)

    def get(self, address: int, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return what lies at an address, of the array's shape and dtype, when all that was launched is done."""
        found = np.empty_like(array)
        self._ask("cuCtxSynchronize")
        self._ask("cuMemcpyDtoH", found.ctypes.data, address, found.nbytes)
        return found

    def free(self) -> None:
        """Give all back."""
        while self._taken:
            self._ask("cuMemFree", self._taken.pop())

    def _ask(self, call: str, *arguments: Any) -> Any:
        error, *answer = getattr(self._driver, call)(*arguments)
        if error:
            msg = f"{call}: {error.name}"
            raise RuntimeError(msg)
        return answer[0] if answer else None


def run(case: Case, memory: Memory, launch: Run, device: Device) -> str | None:
    """Run a case forward and, unless statistics are given, backward; return what is wrong with the results, or None."""
    configs = configs_of(case, device)
    arrays = _arrays(case)
    problem, eps = case.problem, EPS.get(case.problem.norm, 1e-5)
    x, dy, weight, bias = (0 if array is None else memory.put(array) for array in arrays)
    unwritten = np.full_like(arrays.x, np.nan)
    y, residuals = memory.put(unwritten), _uninitialized(memory, 20 * configs[0].sets)
    try:
        engine.forward(
            configs[0],
            launch,
            x=x,
            y=y,
            weight=weight,
            bias=bias,
            residuals=residuals,
            workspace=_uninitialized(memory, configs[0].workspace_bytes),
            eps=eps,
            given=_statistics(arrays.x, problem, memory) if case.given else (0, 0),
        )
        wrong = _wrong(problem, arrays, FORWARD, [memory.get(y, unwritten)])
        if wrong is not None or len(configs) == 1:
            return wrong
        dx, of_parameter = memory.put(unwritten), np.full(problem.shape[1], np.nan, np.float32)
        dweight, dbias = (memory.put(of_parameter) if address else 0 for address in (weight, bias))
        engine.backward(
            configs[1],
            launch,
            x=x,
            dy=dy,
            dx=dx,
            weight=weight,
            residuals=residuals,
            workspace=_uninitialized(memory, configs[1].workspace_bytes),
            dweight=dweight,
            dbias=dbias,
        )
        parameters = [memory.get(address, of_parameter) for address in (dweight, dbias) if address]
        return _wrong(problem, arrays, BACKWARD, [memory.get(dx, unwritten), *parameters])
    finally:
        memory.free()


def configs_of(case: Case, device: Device) -> list[LaunchConfig]:
    """Return the launch configs of a case, forward and backward."""
    problem, shape = case.problem, case.problem.stored
    parameter = (problem.shape[1],)
    second = parameter if problem.has_bias else None
    strides = _strides(shape)
    plan = _plan(case, parameter, second)
    dtypes = Dtypes(
        problem.dtype,
        case.parameters,
        None if second is None else case.parameters,
    )
    layout = (parameter, (1,))
    bias = None if second is None else layout
    found = [engine.configure("forward", plan, dtypes, shape, (strides,) * 2, layout, bias, device)]
    if not case.given:
        found.append(engine.configure("backward", plan, dtypes, shape, (strides,) * 3, layout, bias, device))
    for config in found:
        if isinstance(config, str):
            msg = f"{problem}: {config}"
            raise TypeError(msg)
    return [config for config in found if not isinstance(config, str)]


def _plan(case: Case, weight: tuple[int, ...], bias: tuple[int, ...] | None) -> Plan:
    problem = case.problem
    if problem.norm in ALONG_ROWS:
        return over_axes(False, problem.norm, problem.shape, -1, problem.has_bias, weight, bias)
    batch_axis = None if problem.norm == "batch_norm" else 0
    groups = problem.groups if problem.norm == "group_norm" else None
    stored, axis = problem.stored, problem.channel_axis
    return by_channel(False, problem.norm, stored, axis, batch_axis, groups, case.given, None, weight, bias)


def _arrays(case: Case) -> Arrays:
    problem = case.problem
    random = np.random.default_rng(problem.elements)

    def values(dtype: str, *shape: int) -> Any:
        return random.standard_normal(shape, dtype=np.float32).astype(_dtype(dtype))

    x, dy = (values(problem.dtype, *problem.stored) for _ in range(2))
    weight = values(case.parameters, problem.shape[1])
    return Arrays(x, dy, weight, values(case.parameters, problem.shape[1]) if problem.has_bias else None)


def _statistics(x: Any, problem: Problem, memory: Memory) -> tuple[int, int]:
    _, axes, _ = problem.seen()
    upcast = _upcast(x)
    mean, var = upcast.mean(axis=axes), upcast.var(axis=axes)
    return memory.put(mean.astype(np.float32)), memory.put(var.astype(np.float32))


def _wrong(problem: Problem, arrays: Arrays, direction: str, found: list[Any]) -> str | None:
    return disagreement(problem, direction, exact(problem, arrays, direction, _upcast), found, _upcast)


def _upcast(array: Any) -> Any:
    return array.astype(np.float64)


def _uninitialized(memory: Memory, size: int) -> int:
    return memory.put(np.full(max(size, 16), 255, np.uint8))  # as float32: NaN


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))


def _dtype(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    dtype: np.dtype[Any] = np.dtype(import_module("ml_dtypes").bfloat16)
    return dtype


def main() -> int:
    """Run all cases on the first GPU."""
    memory = DeviceMemory(0)
    launch, device = engine.launcher(0).on(0), engine.facts(0)
    failed = 0
    for case in CASES:
        wrong = run(case, memory, launch, device)
        failed += wrong is not None
        given = ", given statistics" if case.given else ""
        print(f"{case.problem} {case.problem.dtype}{given}: {wrong or 'right'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
