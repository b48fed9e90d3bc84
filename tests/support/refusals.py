"""Ways in which a device can refuse a kernel, for tests of adapters: what to set, for which rows, what is said."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from cuda_device import HostDevice

from anynorm_cuda._program import CompileError


@pytest.fixture(autouse=True)
def said() -> Iterator[list[Any]]:
    """Return the warnings, instead of failing for them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        yield caught


class Refusal(NamedTuple):
    """A way in which a device refuses a kernel."""

    settings: dict[str, Any]  # attributes of a HostDevice
    shape: tuple[int, int]
    words: str
    warned: bool = False

    def impose(self, device: HostDevice, *kernels: str) -> None:
        """Let a device refuse kernels of these names, or all, in this way."""
        for name, value in self.settings.items():
            setattr(device, name, value)
        device.refuses = set(kernels)


def failing(where: str, error: Exception) -> dict[str, Any]:
    """Return what lets a device fail in one function."""
    return {"fails": {where: error}}


PTX = RuntimeError("cuModuleLoadData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION: it was compiled with a newer toolchain")
INVALID = RuntimeError("cuFuncSetAttribute: CUDA_ERROR_INVALID_VALUE: invalid argument")

# Of rows of 16000 float32 a block shares more than 48 KiB, and of 24000 a cluster holds one, in both passes.
BEFORE_A_LAUNCH = {
    "source": Refusal(failing("load", CompileError("rows.cu(3): error: no")), (4, 6), "does not compile: rows", True),
    "driver": Refusal(
        failing("load", PTX), (4, 6), "does not load: cuModuleLoadData: CUDA_ERROR_UNSUPPORTED_PTX", True
    ),
    "registers": Refusal({"threads": 16}, (4, 6), "registers for 16 threads"),
    "shared": Refusal(failing("allow_shared", INVALID), (2, 16000), "does not fit on the device: cuFuncSetAttribute"),
    "clusters": Refusal({"held": 0}, (2, 24000), "blocks at once that share"),
}

SIZE = RuntimeError("CUDA_ERROR_INVALID_CLUSTER_SIZE: cluster misconfiguration")
RESOURCES = RuntimeError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch")
VALUE = RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")
AT_A_LAUNCH = {
    "cluster-size": Refusal(failing("launch", SIZE), (4, 6), "cannot be launched: CUDA_ERROR_INVALID_CLUSTER_SIZE"),
    "resources": Refusal(
        failing("launch", RESOURCES), (4, 6), "cannot be launched: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
    ),
    "value": Refusal(failing("launch", VALUE), (4, 6), "cannot be launched: CUDA_ERROR_INVALID_VALUE"),
}

CAPTURED = RuntimeError("cuModuleLoadData: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: not permitted.")
ASTRAY = RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered")
