"""The GPU that is timed on: whether there is one, what it is, and its clocks and temperature. Times nothing."""

from __future__ import annotations

import ctypes
import importlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.machine import installed

_WHAT = {"card": "name", "driver": "driver_version", "memory": "memory.total", "mig": "mig.mode.current"}
_STATE = {
    "sm_clock": "clocks.sm",
    "sm_clock_max": "clocks.max.sm",
    "memory_clock": "clocks.mem",
    "memory_clock_max": "clocks.max.mem",
    "temperature": "temperature.gpu",
    "power": "power.draw",
    "power_limit": "power.limit",
}
# Its older name comes second.
_THROTTLE = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")

PACKAGES = (
    "anynorm",
    "torch",
    "triton",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "jax",
    "liger-kernel",
    "quack-kernels",
    "numpy",
    "ml_dtypes",
)


def no_gpu() -> str | None:
    """Return why no NVIDIA GPU can be used here, in plain words, or None."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"there is no NVIDIA driver here ({name} is not found)"
    error = driver.cuInit(0)
    if error:
        return f"the NVIDIA driver does not start: cuInit returns {error}" + (", no device" if error == 100 else "")
    count = ctypes.c_int(0)
    error = driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value and not error else "the NVIDIA driver finds no GPU"


def describe() -> dict[str, Any]:
    """Return what a reader of the results needs to know: card, driver, CUDA, versions (None: not installed)."""
    return {
        **dict(zip(_WHAT, _asked(list(_WHAT.values())), strict=True)),
        "cuda": _cuda(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: installed(package) for package in PACKAGES} | {"cupy": _version("cupy")},
    }


def state() -> dict[str, Any]:
    """Return clocks in MHz, temperature in degrees, power in watts, and why the card is slowed down, as far as told."""
    found: dict[str, Any] = dict(zip(_STATE, map(_number, _asked(list(_STATE.values()))), strict=True))
    reasons = next((answer for field in _THROTTLE if (answer := _asked([field])[0]) is not None), None)
    return found | {"throttle_reasons": reasons}


def _asked(fields: Sequence[str]) -> list[str | None]:
    """Return what nvidia-smi says of the first card: all at once, or one by one where it knows not all of them."""
    told = _told(",".join(fields))
    if told is None:
        return [None] * len(fields) if len(fields) == 1 else [_asked([field])[0] for field in fields]
    words = [word.strip() for word in told.split(",")]
    return [None if "N/A" in word or "Not Supported" in word or not word else word for word in words]


def _told(fields: str) -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.partition("\n")[0] if done.returncode == 0 else None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _cuda() -> dict[str, Any]:
    """Return the versions of CUDA that the libraries were built for."""
    found: dict[str, Any] = {}
    if "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].version.cuda
    if "cupy" in sys.modules:
        runtime = sys.modules["cupy"].cuda.runtime
        found["cupy"], found["driver"] = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    return found


def _version(module: str) -> str | None:
    """Return a version of which it is not known what the distribution is called: CuPy's names its CUDA."""
    try:
        return str(importlib.import_module(module).__version__)
    except ImportError:
        return None
