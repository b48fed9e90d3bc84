"""Whether kernels compile for every device, and what their cubins say that they need.

No GPU is needed. What kernels compute is not tested here.
"""

from __future__ import annotations

import re
from pathlib import Path

import cubins
import pytest
from cuda_kernels import device_of, launches_of
from cuda_sources import PRIMITIVES, SMALL, SPILLING, kernel_of

import anynorm_cuda
from anynorm_cuda import _compile
from anynorm_cuda._program import Kernel, Launch

if anynorm_cuda.missing() is not None:
    pytest.skip(str(anynorm_cuda.missing()), allow_module_level=True)

ARCHS = (80, 90, _compile.archs()[-1])
REGISTERS = 1 << 16  # of a multiprocessor, given to threads by eights


def test_device_too_old() -> None:
    """A device for which NVRTC no longer compiles is an error that says so."""
    with pytest.raises(RuntimeError, match=r"does not compile for compute capability 3\.5"):
        _compile.cubin(Kernel("small", ("call",), ()), 35)


def test_device_too_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a device that NVRTC does not know yet there is PTX for the newest that it knows, ended by a zero."""
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path))
    code = _compile.cubin(kernel_of(tmp_path, SMALL, "small"), 999)

    assert f".target sm_{_compile.archs()[-1]}" in code.decode()
    assert code.endswith(b"\0")


@pytest.mark.parametrize("arch", ARCHS)
def test_resources(arch: int) -> None:
    """What is read from a cubin is what the assembler says; a kernel that spills is seen."""
    flags = [f"--gpu-architecture=sm_{arch}", *_compile.OPTIONS, "--ptxas-options=-v"]
    code, log = _compile.compiled(SPILLING, "resources", flags)

    found = cubins.resources(code)
    said = {}
    for name, text in re.findall(r"entry function '(\w+)'(.*?)Compile time", log, re.DOTALL):
        numbers = [
            re.search(rf"(\d+) {words}", text) for words in ("registers", "bytes cumulative stack", "bytes smem")
        ]
        said[name] = cubins.Resources(*[0 if number is None else int(number[1]) for number in numbers])
    assert found == said
    assert set(found) == {"spilling", "indexed", "dividing", "sharing", "calling", "empty"}
    assert found["spilling"].registers <= 65536 // 1024
    assert found["spilling"].frame > 0
    assert found["indexed"].frame >= 256
    assert found["calling"].frame >= 128
    assert found["dividing"].frame == found["empty"].frame == 0
    assert found["sharing"].shared == 400


@pytest.mark.parametrize(
    ("arch", "ctas"), [(arch, ctas) for arch in ARCHS for ctas in (1, 2, 8) if arch >= 90 or ctas == 1]
)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_primitives(tmp_path: Path, arch: int, ctas: int, dtype: str) -> None:
    """All that kernels are written in compiles, for every device, dtype and size of a cluster."""
    kernel = kernel_of(tmp_path, PRIMITIVES, "primitives", CTAS=ctas, X=dtype)
    code, _ = _compile.compiled(kernel.source(), kernel.name, _compile.options(kernel, arch))

    assert cubins.resources(code)["primitives"].frame == 0
    assert cubins.resources(code)["primitives"].shared == 128


@pytest.mark.parametrize(
    ("arch", "launch"),
    [
        pytest.param(arch, launch, id=f"{arch}-{'-'.join(launch.kernel.options()).replace('-D', '')}")
        for arch, dtype in zip(ARCHS, ("bfloat16", "bfloat16", "float32"), strict=True)
        for launch in launches_of(arch, dtype)
    ],
)
def test_kernel(arch: int, launch: Launch) -> None:
    """Every kernel that a config may launch compiles, keeps all it works on in registers, and a block of it can run."""
    found = cubins.resources(_compile.cubin(launch.kernel, arch))

    assert set(found) == {launch.kernel.name}
    needs = found[launch.kernel.name]
    assert needs.frame == 0
    assert launch.threads * -(-needs.registers // 8) * 8 <= REGISTERS
    assert needs.shared <= 48 << 10
    assert needs.shared + launch.shared <= device_of(arch).shared
