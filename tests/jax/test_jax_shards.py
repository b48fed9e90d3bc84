"""Norms of what lies with several devices: what they exchange, and that values and gradients are those of one device.

The devices are made of one CPU, which has to be asked for before JAX starts: in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("jax", reason="jax is not installed")

PROGRAM = """
import json, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
try:
    from jax import shard_map
    tracks = "check_vma"
except ImportError:
    from jax.experimental.shard_map import shard_map
    tracks = "check_rep"
import anynorm as an

mesh = Mesh(np.array(jax.devices()), ("d",))
random = np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(random.normal(size=shape).astype("float32"))
x, dy, mean, var = draw(8, 6, 4, 4), draw(8, 6, 4, 4), draw(6), draw(6) ** 2 + 1
norms = {
    "layer": (lambda x, w, b, m, v: an.layer_norm(x, w, b), (1, 6, 1, 4)),
    "rms": (lambda x, w, b, m, v: an.rms_norm(x, w, b, axis=(1, 3)), (6, 4)),
    "group": (lambda x, w, b, m, v: an.group_norm(x, 3, w, b), (6,)),
    "batch given": (lambda x, w, b, m, v: an.batch_norm(x, weight=w, bias=b, mean=m, var=v), (6,)),
}

def exchanged(text):
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found = []
    for line in text.splitlines():
        match = re.search(rf"= (\\(?[a-z0-9]+\\[[^=]*?) (?:{kinds})(?:-start)?\\(", line)
        if match:
            shapes = re.findall(r"[a-z0-9]+\\[([\\d,]*)\\]", match.group(1))
            found += [int(np.prod([int(d) for d in its.split(",") if d])) for its in shapes]
    return found

def compare(name, loss, laid, *arguments, expected):
    program = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(laid, *arguments).compile()
    errors = jax.tree.map(lambda a, b: float(abs(a - b).max()), program(laid, *arguments), expected)
    return name, arguments[0].size, exchanged(program.as_text()), max(jax.tree.leaves(errors))

found = []
for name, (norm, shape) in norms.items():
    arguments = draw(*shape), draw(*shape), mean, var
    expected = jax.jit(jax.value_and_grad(lambda *a: (norm(*a) * dy).sum(), (0, 1, 2)))(x, *arguments)
    for check in (True, False):
        sharded = shard_map(
            norm, mesh=mesh, in_specs=(P("d"), P(), P(), P(), P()), out_specs=P("d"), **{tracks: check}
        )
        loss = lambda *a: (sharded(*a) * dy).sum()
        found.append(compare(f"{name} {check}", loss, x, *arguments, expected=expected))
arguments = draw(6), draw(6)
loss = lambda x, w, b: (an.batch_norm(x, weight=w, bias=b) * dy).sum()
expected = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, *arguments)
for spec in (P("d"), P(None, None, None, "d")):
    laid = jax.device_put(x, NamedSharding(mesh, spec))
    found.append(compare(f"batch {spec}", loss, laid, *arguments, expected=expected))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> list[Any]:
    """Return, for each way, its name, the elements of a parameter, those of each exchange, and the largest error."""
    flags = "--xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_gradients_of_parameters_are_exchanged_at_their_own_size(found: list[Any]) -> None:
    """In shard_map, and where XLA divides the work, nothing that is exchanged is larger than a parameter."""
    assert [(name, sizes) for name, size, sizes, _ in found if not sizes or max(sizes) > size] == []


def test_values_and_gradients_are_those_of_one_device(found: list[Any]) -> None:
    """Losses and gradients of four devices are those of one."""
    assert [(name, error) for name, _, _, error in found if not error < 1e-4] == []
