"""The CUDA kernels on the CPU, thread by thread: every row of the table that chooses them, against exact results.

What they do on hostile numbers and layouts is in test_cuda_hostile.py.
"""

from __future__ import annotations

import itertools
import operator
from pathlib import Path
from typing import Any

import cuda_host
import numpy as np
import pytest
from cuda_numpy import A100, H200, RTX, Backend, on_cuda
from gradients import cotangent, exact_gradients, verify_gradients, vjp
from inputs import Case, Norm, verify
from libraries import numpy_dtype

from anynorm._core.plan import by_channel
from anynorm_cuda.engine import Dtypes, LaunchConfig, Run, configure

if cuda_host.missing() is not None:
    pytest.skip(str(cuda_host.missing()), allow_module_level=True)

DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture
def launch(cuda_programs: Path) -> Run:
    """Return what runs a kernel on the CPU."""
    return cuda_host.launcher(cuda_programs)


def judge(case: Case, backend: Backend, *, both: bool = True) -> list[str]:
    """Raise unless the engine served a case, both passes within the bounds; return its kernels."""
    dy = cotangent(case)
    y, pullback = vjp(case, case.arrays)
    verify(y, case.arrays["x"], case.reference())
    found = pullback(dy)
    verify_gradients(found, case, exact_gradients(case, dy))
    assert len(backend.configs) == 1 + both, backend.declined
    return [launch.kernel.name for config in backend.configs for launch in config.launches]


def make(
    function: str,
    shape: tuple[int, ...],
    dtype: str,
    parameters: tuple[str, ...] = ("weight", "bias"),
    groups: tuple[int, ...] = (),
    **options: Any,
) -> Case:
    """Return a norm on ordinary numbers, with a weight and a bias along its last axis, or its channels."""
    random = np.random.default_rng([*shape, *map(ord, function)])
    axis = options.get("channel_axis", 1) if function not in ("layer_norm", "rms_norm") else -1
    arrays = {"x": random.normal(3, 2, size=shape)} | {name: random.normal(size=shape[axis]) for name in parameters}
    norm = Norm(function, function, options, {}, groups)
    return Case(norm, {name: array.astype(numpy_dtype(dtype)) for name, array in arrays.items()})


# Row lengths in vectors of 16 bytes, one for each row of the table; the last two are left to chunks.
VECTORS = {
    1: 70,
    3: 70,
    8: 70,
    9: 30,
    32: 20,
    33: 9,
    64: 9,
    100: 5,
    128: 5,
    250: 3,
    500: 3,
    768: 3,
    1000: 2,
    1500: 2,
    1536: 3,
    4000: 2,
}
LONG = {3072: 3, 6000: 2, 6144: 2, 12000: 1, 20000: 1, 40000: 1, 70000: 1}


@pytest.mark.parametrize("vectors", VECTORS)
def test_rows(vectors: int, launch: Run) -> None:
    """Rows of every length of the table, whole vectors and a few elements less, are within the bounds."""
    number = list(VECTORS).index(vectors)
    for short in (0, 1):  # each dtype with both, in turns
        dtype = DTYPES[(number + short) % 3]
        length = vectors * 16 // numpy_dtype(dtype).itemsize
        with on_cuda(launch) as backend:
            kernels = judge(make("layer_norm", (VECTORS[vectors], length - short), dtype), backend)
        assert kernels == ["rows_forward", "rows_backward_parameters", "parameter_sums"]


@pytest.mark.parametrize("vectors", LONG)
def test_long_rows(vectors: int, launch: Run) -> None:
    """Rows that take a cluster, or chunks, are within the bounds, in bfloat16 with an odd length too."""
    for dtype, short in (("float32", 0), ("bfloat16", 3)):
        length = vectors * 16 // numpy_dtype(dtype).itemsize - short
        with on_cuda(launch) as backend:
            kernels = judge(make("layer_norm", (LONG[vectors], length), dtype), backend)
        assert ("finalize_statistics" in kernels) == (vectors > 65536)
        assert ("long_parameters" in kernels) == (vectors > 8192)


@pytest.mark.parametrize("parameters", [(), ("weight",), ("bias",)], ids=["none", "weight", "bias"])
@pytest.mark.parametrize("function", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("length", [24, 300, 5000])
def test_rows_with_fewer_parameters(length: int, function: str, parameters: tuple[str, ...], launch: Run) -> None:
    """Layer and RMS norm without weight or bias are within the bounds, and the gradient of what is absent is None."""
    with on_cuda(launch) as backend:
        judge(make(function, (9, length), "float32", parameters), backend)


CHANNELS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "group": ("group_norm", (3, 12, 10, 16), (4,), {}),
    "group-odd": ("group_norm", (3, 12, 7, 7), (4,), {}),
    "group-large": ("group_norm", (1, 8, 80, 80), (2,), {}),
    "instance": ("instance_norm", (3, 5, 16, 17), (), {}),
    "instance-small": ("instance_norm", (9, 30, 3, 3), (), {}),
    "batch": ("batch_norm", (6, 5, 12, 12), (), {}),
    "batch-odd": ("batch_norm", (40, 5, 9, 9), (), {}),
    "batch-short": ("batch_norm", (90, 5, 3, 3), (), {}),
    "batch-rows": ("batch_norm", (90, 50), (), {}),
    "group-last": ("group_norm", (3, 9, 9, 24), (4,), {"channel_axis": -1}),
    "group-last-odd": ("group_norm", (3, 9, 9, 21), (3,), {"channel_axis": -1}),
    "instance-last": ("instance_norm", (3, 25, 25, 10), (), {"channel_axis": -1}),
    "batch-last": ("batch_norm", (9, 12, 12, 70), (), {"channel_axis": -1}),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_channels(kind: str, launch: Run) -> None:
    """Group, instance and batch norm, channels first and last, are within the bounds."""
    function, shape, groups, options = CHANNELS[kind]
    for dtype in ("float32", DTYPES[1 + list(CHANNELS).index(kind) % 2]):
        with on_cuda(launch) as backend:
            judge(make(function, shape, dtype, groups=groups, **options), backend)


@pytest.mark.parametrize("parameters", [(), ("weight",), ("bias",)], ids=["none", "weight", "bias"])
@pytest.mark.parametrize("kind", ["group", "instance", "batch", "group-last", "batch-last"])
def test_channels_with_fewer_parameters(kind: str, parameters: tuple[str, ...], launch: Run) -> None:
    """Channel norms without weight or bias are within the bounds."""
    function, shape, groups, options = CHANNELS[kind]
    with on_cuda(launch) as backend:
        judge(make(function, shape, "float32", parameters, groups, **options), backend)


LARGE: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "group-cluster": ("group_norm", (1, 4, 200, 210), (2,)),
    "instance-cluster": ("instance_norm", (1, 2, 300, 310), ()),
    "batch-cluster": ("batch_norm", (4, 2, 180, 180), ()),
    "group-chunks": ("group_norm", (1, 4, 400, 401), (2,)),
    "instance-chunks": ("instance_norm", (1, 2, 530, 530), ()),
    "batch-chunks": ("batch_norm", (5, 1, 250, 250), ()),
}


# Columns of as many rows as registers of a block hold, its memory, two blocks', eight blocks', and nobody; a group of
# channels is a column, several, or more than a strip.
TABLES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], bool, bool]] = {
    "registers": ("instance_norm", (3, 50, 40), (), True, True),
    "block": ("instance_norm", (2, 110, 40), (), True, True),
    "two-blocks": ("group_norm", (2, 300, 30), (10,), True, True),
    "eight-blocks": ("group_norm", (1, 2000, 80), (2,), True, True),
    "largest": ("instance_norm", (1, 4096, 33), (), True, True),
    "too-long": ("instance_norm", (1, 4097, 5), (), False, False),
    "too-wide": ("group_norm", (1, 90, 260), (2,), False, False),
}


@pytest.mark.parametrize("kind", TABLES)
def test_columns(kind: str, launch: Run) -> None:
    """Sets side by side are within the bounds, held by a block or a cluster where that can be, else by chunks."""
    function, shape, groups, *whole = TABLES[kind]
    for dtype in ("float32", "bfloat16"):
        with on_cuda(launch) as backend:
            judge(make(function, shape, dtype, groups=groups, channel_axis=-1), backend)
        firsts = [config.launches[0].kernel.name for config in backend.configs]
        assert [name in ("columns_forward", "columns_backward") for name in firsts] == whole


@pytest.mark.parametrize("kind", LARGE)
def test_large_sets(kind: str, launch: Run) -> None:
    """Sets that take a cluster, or that no thread group can hold, are within the bounds."""
    function, shape, groups = LARGE[kind]
    with on_cuda(launch) as backend:
        kernels = judge(make(function, shape, "float32", groups=groups), backend)
    assert ("finalize_statistics" in kernels) == kind.endswith("chunks")


@pytest.mark.parametrize("device", [A100, RTX], ids=["without-clusters", "little-memory"])
def test_other_devices(device: Any, launch: Run) -> None:
    """Where blocks cannot read each other's memory, or have little, long sets are served otherwise."""
    for case in (
        make("layer_norm", (2, 4096), "float32"),
        make("layer_norm", (2, 20000), "bfloat16"),
        make("layer_norm", (1, 30000), "float32"),
        make("group_norm", (1, 4, 64, 64), "float32", groups=(2,)),
        make("group_norm", (1, 4, 150, 150), "float32", groups=(2,)),
    ):
        with on_cuda(launch, device) as backend:
            judge(case, backend)
        assert max(dict(run.kernel.macros)["CTAS"] for config in backend.configs for run in config.launches) == 1
        assert max(run.shared for config in backend.configs for run in config.launches) <= device.shared


@pytest.mark.parametrize(
    ("kind", "dtype"), [("batch", "float32"), ("batch-last", "bfloat16"), ("batch-short", "float16")]
)
def test_given_statistics(kind: str, dtype: str, launch: Run) -> None:
    """Batch norm with statistics given is within the bounds; its gradients are the formula's."""
    function, shape, _, options = CHANNELS[kind]
    case = make(function, shape, dtype, ("weight", "bias", "mean", "var"), **options)
    case.arrays["var"][...] = np.abs(case.arrays["var"]) + numpy_dtype(dtype).type(0.1)
    with on_cuda(launch) as backend:
        assert judge(case, backend, both=False)[0] == "given_statistics"


@pytest.mark.parametrize("share", [1, 3])
def test_thread_groups_take_several_sets(share: int, launch: Run) -> None:
    """Where rows are more than a small device runs at once, thread groups take several, and none is left out."""
    device = H200._replace(processors=1)
    for length in (16, 40, 100, 200, 520):
        with on_cuda(launch, device) as backend:
            judge(make("layer_norm", (300 * share + 1, length), "bfloat16"), backend)
        gradient = backend.configs[1]
        assert gradient.counts[8] > 1
    heads = make("layer_norm", (70, 6, 40), "float32", ())
    parameters = np.random.default_rng(0).normal(size=(2, 1, 6, 40)).astype("float32")
    with on_cuda(launch, device) as backend:
        judge(Case(heads.norm, heads.arrays | dict(zip(("weight", "bias"), parameters, strict=True))), backend)


@pytest.mark.parametrize(("function", "groups"), [("batch_norm", None), ("group_norm", 8), ("instance_norm", None)])
def test_images_share_kernels(function: str, groups: int | None) -> None:
    """What images of a hundred sizes and batches run is compiled for the few thread groups that take them."""
    kernels, configs = set(), 0
    for batch, side, last in itertools.product((8, 16, 24, 32, 64), range(7, 64, 3), (False, True)):
        shape = (batch, side, side, 64) if last else (batch, 64, side, side)
        axis, batch_axis = 3 if last else 1, None if function == "batch_norm" else 0
        plan = by_channel(False, function, shape, axis, batch_axis, groups, False, None, (64,), (64,))
        strides = tuple(reversed([*itertools.accumulate(reversed(shape[1:]), operator.mul, initial=1)]))
        dtypes, layout = Dtypes("bfloat16", "float32", "float32", 256, 256), ((64,), (1,))
        for config in (
            configure("forward", plan, dtypes, shape, (strides,) * 2, layout, layout, H200),
            configure("backward", plan, dtypes, shape, (strides,) * 3, layout, layout, H200),
        ):
            assert isinstance(config, LaunchConfig)
            kernels |= {launch.kernel for launch in config.launches}
            configs += 1
    assert configs == 380
    assert len(kernels) <= 75
