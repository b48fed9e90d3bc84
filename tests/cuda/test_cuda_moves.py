"""How the CUDA kernels bring vectors from memory and take them back, on the CPU: aligned or not, and without races.

What they compute from them is in test_cuda_kernels.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import cuda_host
import numpy as np
import pytest
from cuda_host import Order
from cuda_numpy import H200, RTX, on_cuda
from gradients import cotangent, vjp
from inputs import Case, verify
from libraries import NumPyArray

import anynorm as an
from tests.cuda.test_cuda_kernels import judge, make

if cuda_host.missing() is not None:
    pytest.skip(str(cuda_host.missing()), allow_module_level=True)

# A norm for each way to move vectors, with the device that it runs on: lines of less than a warp's, of more, and of
# chunks; columns that a block holds, a cluster, and nobody. All lengths are multiples of 16 bytes; strips of whole
# groups are not in one.
MOVES: dict[str, tuple[Any, ...]] = {
    "rows-short": ("layer_norm", (9, 48), (), {}, H200),
    "rows-whole": ("layer_norm", (5, 1024), (), {}, H200),
    "rows": ("layer_norm", (5, 1040), (), {}, H200),
    "rows-several": ("layer_norm", (150, 200), (), {}, H200._replace(processors=1)),
    "rows-chunks": ("layer_norm", (2, 40000), (), {}, RTX),
    "lines-short": ("instance_norm", (3, 7, 8, 8), (), {}, H200),
    "lines": ("group_norm", (2, 4, 16, 17), (2,), {}, H200),
    "lines-memory": ("batch_norm", (5, 3, 32, 48), (), {}, H200),
    "lines-chunks": ("instance_norm", (1, 2, 160, 200), (), {}, RTX),
    "columns": ("batch_norm", (6, 9, 64), (), {"channel_axis": -1}, H200),
    "columns-cluster": ("instance_norm", (1, 28, 28, 80), (), {"channel_axis": -1}, H200),
    "columns-wide": ("group_norm", (1, 20, 20, 160), (4,), {"channel_axis": -1}, H200),
    "columns-strips": ("group_norm", (1, 20, 20, 80), (8,), {"channel_axis": -1}, H200),
    "columns-chunks": ("batch_norm", (40, 60, 48), (), {"channel_axis": -1}, RTX),
}
each_move = pytest.mark.parametrize("move", MOVES)

ORDERS: tuple[Order, ...] = get_args(Order)


def case_of(move: str, dtype: str) -> Case:
    """Return a norm on ordinary numbers."""
    function, shape, groups, options, _ = MOVES[move]
    return make(function, shape, dtype, groups=groups, **options)


def shifted(array: NumPyArray, offset: int) -> NumPyArray:
    """Return a copy that begins so many bytes behind a multiple of 16."""
    memory = np.zeros(array.nbytes + 32, np.uint8)
    begin = -memory.ctypes.data % 16 + offset
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def both_passes(case: Case, dy: NumPyArray) -> list[bytes]:
    """Return the bits of y and of the gradients."""
    y, pullback = vjp(case, case.arrays)
    return [array.tobytes() for array in (y, *pullback(dy))]


@pytest.mark.parametrize("offset", [2, 4, 8])
@each_move
def test_alignment_changes_no_bit(move: str, offset: int, cuda_programs: Path) -> None:
    """Wherever x begins, y and all gradients have the bits that they have where x is aligned."""
    dtype = "bfloat16" if offset == 2 or MOVES[move][-1] is H200 else "float32"
    case = case_of(move, dtype)
    dy, moved = cotangent(case), case.with_x(shifted(case.arrays["x"], offset))
    found, loads = [], []
    for one in (case.with_x(shifted(case.arrays["x"], 0)), moved):
        with on_cuda(cuda_host.launcher(cuda_programs), MOVES[move][-1]) as backend:
            found.append(both_passes(one, dy))
        macros = [dict(launch.kernel.macros) for config in backend.configs for launch in config.launches]
        loads.append({one["LOAD"] for one in macros if "HOLD" in one})
    assert found[0] == found[1]
    assert loads == [{16}, {offset}] or (move == "columns-strips" and loads == [{8}, {offset}])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_move
def test_odd_lengths(move: str, dtype: str, cuda_programs: Path) -> None:
    """Lines and rows whose bytes 16 does not divide are within the bounds."""
    function, shape, groups, options, device = MOVES[move]
    shape = (*shape[:-1], shape[-1] + (groups[0] if options and groups else 1))
    with on_cuda(cuda_host.launcher(cuda_programs), device) as backend:
        judge(make(function, shape, dtype, groups=groups, **options), backend)


@pytest.mark.parametrize("offset", [0, 2])
@each_move
def test_no_races(move: str, offset: int, cuda_programs: Path) -> None:
    """Whatever threads leave for others in memory, a barrier is between."""
    case = case_of(move, "bfloat16")
    case = case.with_x(shifted(case.arrays["x"], offset))
    order = ORDERS[list(MOVES).index(move) % len(ORDERS)]
    with on_cuda(cuda_host.launcher(cuda_programs, order=order, races=True), MOVES[move][-1]) as backend:
        both_passes(case, cotangent(case))
    assert len(backend.configs) == 2, backend.declined


@pytest.mark.parametrize("gap", [1, 3, 5])
@pytest.mark.parametrize("move", ["rows-short", "rows", "lines-short", "columns", "columns-cluster"])
def test_lines_with_gaps_between(move: str, gap: int, cuda_programs: Path) -> None:
    """Lines of an odd length are within the bounds however far they lie apart, and nothing between is read."""
    function, shape, groups, options, device = MOVES[move]
    case = make(function, (*shape[:-1], shape[-1] - gap), "bfloat16", groups=groups, **options)
    wide = np.full(shape, np.nan, case.arrays["x"].dtype)
    wide[..., : shape[-1] - gap] = case.arrays["x"]
    with on_cuda(cuda_host.launcher(cuda_programs), device) as backend:
        judge(case.with_x(wide[..., : shape[-1] - gap]), backend)


@pytest.mark.parametrize(("length", "load"), [(47, 2), (46, 4), (44, 8)])
def test_words_divide_lines(length: int, load: int, cuda_programs: Path) -> None:
    """Lines that begin at multiples of 8 bytes and are not whole words long are moved in smaller words."""
    case = make("layer_norm", (5, length), "bfloat16")
    x, y = (np.full((5, 52), 7, case.arrays["x"].dtype) for _ in range(2))
    x[:, :length] = case.arrays["x"]
    part = case.with_x(x[:, :length])
    with on_cuda(cuda_host.launcher(cuda_programs)) as backend:
        an.layer_norm(part.arrays["x"], part.arrays["weight"], part.arrays["bias"], out=y[:, :length])
    verify(y[:, :length], part.arrays["x"], part.reference())
    assert np.all(y[:, length:] == 7)
    assert dict(backend.configs[0].launches[0].kernel.macros)["LOAD"] == load
