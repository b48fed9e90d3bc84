"""The kernels that configs launch, for every row of the table of thread groups, norm and dtype. Runs none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from operator import mul

from anynorm._core.plan import Plan, by_channel, over_axes
from anynorm_cuda._program import Launch
from anynorm_cuda._thread_groups import Device
from anynorm_cuda.engine import Dtypes, LaunchConfig, configure

Ints = tuple[int, ...]

# The last has clusters, and little shared memory.
DEVICES = {80: Device(80, 108, 166912), 90: Device(90, 132, 232448), 120: Device(120, 188, 101376)}

DTYPES = {
    "bfloat16": Dtypes("bfloat16", "float32", "float32", dweight="bfloat16"),
    "float16": Dtypes("float16", "float16", "float16"),
    "float32": Dtypes("float32", "float32", "float32"),
}

# Bytes of a row, one for each row of the table; an odd number of elements among them.
ROWS = (16, 128, 500, 1 << 10, 1 << 11, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17, 1 << 19, 1 << 20, 1 << 22)

# Those that are compiled without a weight and without a mean as well.
BARE_ROWS = (128, 1 << 13, 1 << 16, 1 << 22)

# N, C, H, W: groups that registers hold, a block's memory, a cluster's, and no thread group; short lines, and many.
IMAGES = (
    (4, 64, 5, 5),
    (4, 64, 10, 10),
    (4, 64, 56, 56),
    (2, 320, 64, 64),
    (8, 8, 300, 300),
    (90, 16, 3, 3),
    (1, 18000, 2, 4),
)
CHANNEL_NORMS = (("batch_norm", None, None), ("group_norm", 0, 4), ("instance_norm", 0, None))


@cache
def launches_of(arch: int, dtype: str) -> tuple[Launch, ...]:
    """Return a launch of each kernel for a device and a dtype, that which needs the most memory."""
    device = device_of(arch)
    configs = [*_of_rows(DTYPES[dtype], device), *_of_images(DTYPES[dtype], device)]
    launches = sorted([launch for config in configs for launch in config.launches], key=lambda launch: launch.shared)
    return tuple({launch.kernel: launch for launch in launches}.values())


def device_of(arch: int) -> Device:
    """Return a device of a compute capability."""
    return DEVICES[max(known for known in DEVICES if known <= arch)]


def _of_rows(dtypes: Dtypes, device: Device) -> Iterator[LaunchConfig]:
    for size in ROWS:
        length = size // (4 if dtypes.x == "float32" else 2)
        kinds: tuple[tuple[bool, tuple[Ints, Ints] | None], ...] = ((True, ((length,), (1,))), (False, None))
        for centres, layout in kinds if size in BARE_ROWS else kinds[:1]:
            shape = None if layout is None else layout[0]
            plan = over_axes(False, "layer_norm", (64, length), -1, centres, shape, shape)
            yield from _configs(plan, dtypes, (64, length), (length, 1), layout, device)
        # So many rows that a thread group takes more than it can add up in one sum.
        many = (2**28 // size, length)
        plan = over_axes(False, "layer_norm", many, -1, True, (length,), (length,))
        yield from _configs(plan, dtypes, many, (length, 1), ((length,), (1,)), device)


def _of_images(dtypes: Dtypes, device: Device) -> Iterator[LaunchConfig]:
    for shape in IMAGES:
        n, channels, *inner = shape
        last, first = _dense((n, *inner, channels)), _dense(shape)
        for function, batch_axis, groups in CHANNEL_NORMS:
            plan = by_channel(False, function, shape, 1, batch_axis, groups, False, None, (channels,), (channels,))
            for strides in (first, (last[0], last[-1], *last[1:-1])):
                yield from _configs(plan, dtypes, shape, strides, ((channels,), (1,)), device)


def _configs(
    plan: Plan, dtypes: Dtypes, shape: Ints, strides: Ints, layout: tuple[Ints, Ints] | None, device: Device
) -> list[LaunchConfig]:
    forward, apply = (
        configure(step, plan, dtypes, shape, (strides,) * 2, layout, layout, device) for step in ("forward", "apply")
    )
    backward = configure("backward", plan, dtypes, shape, (strides,) * 3, layout, layout, device)
    return [config for config in (forward, apply, backward) if not isinstance(config, str)]


def _dense(shape: Ints) -> Ints:
    return tuple(reversed([*accumulate(reversed(shape[1:]), mul, initial=1)]))
