"""Eager arrays on the CPU by the engine: NumPy's bits, JAX's own memory, and everything else as XLA would leave it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
from gradients import cotangent, vjp
from inputs import NORMS, Norm, make_case
from libraries import ArrayLibrary, each_library, nothing_known

import anynorm as an

jax: Any = pytest.importorskip("jax", reason="jax is not installed")
pytest.importorskip("numba", reason="numba is not installed")
jnp = jax.numpy

SERVED = [
    pytest.param(library, dtype, norm, id=f"{library}-{dtype}-{norm.name}")
    for library, dtype in (("jax", "float32"), ("jax", "float16"), ("jax", "bfloat16"), ("jax_x64", "float64"))
    for norm in NORMS
]


def _x(*shape: int) -> Any:
    return jax.block_until_ready(jax.device_put(np.random.default_rng(7).normal(3, 2, shape).astype("float32")))


@pytest.mark.parametrize(("library", "dtype", "norm"), SERVED, indirect=["library"])
def test_bits_are_those_of_numpy(library: ArrayLibrary, dtype: str, norm: Norm) -> None:
    """What the engine gives for JAX arrays, y and gradients, has the bits that it gives for NumPy's."""
    case, dy = make_case(norm, dtype), cotangent(make_case(norm, dtype))
    arrays = library.make_all(case.arrays)
    options = {name: array for name, array in arrays.items() if name != "x"} | norm.options
    route = an.explain(getattr(an, norm.function), arrays["x"], *norm.groups, **options)
    others = {name: array for name, array in case.arrays.items() if name != "x"} | norm.options
    expected = an.explain(getattr(an, norm.function), case.arrays["x"], *norm.groups, **others)
    assert (route.path == "anynorm_numba") == (expected.path == "anynorm_numba")
    if route.path != "anynorm_numba":
        assert route.reason == expected.reason
        return
    y, pullback = vjp(case, arrays)
    own_y, own_pullback = vjp(case, case.arrays)
    found, own = (y, *pullback(library.make(dy))), (own_y, *own_pullback(dy))
    for array, own_array in zip(found, own, strict=True):
        assert (array is None) == (own_array is None)
        if array is not None:
            assert isinstance(array, jax.Array)
            assert np.asarray(array).tobytes() == np.ascontiguousarray(own_array).tobytes()


@each_library(["jax"])
def test_moments_are_those_of_numpy(library: ArrayLibrary) -> None:
    """Moments of a norm's own pass and of `moments` are JAX arrays of NumPy's numbers."""
    x = np.random.default_rng(3).normal(5, 2, (4, 6, 9)).astype("float32")
    calls: list[Any] = [lambda x: an.moments(x, axis=(0, 2)), lambda x: an.batch_norm(x, return_moments=True)[1]]
    for call in calls:
        found, expected = call(library.make(x)), call(x)
        assert isinstance(found.mean, jax.Array)
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.m2, expected.m2)


@each_library(["jax"])
def test_no_copy_is_made(library: ArrayLibrary) -> None:  # noqa: ARG001  for its setting
    """The engine reads the buffers of x and dy where they are, and those of y and dx are what it wrote."""
    from anynorm_jax import _launch

    x, dy = _x(64, 48), _x(64, 48)
    written: list[int] = []
    read: list[int] = []

    def keep(array: Any, of: list[int]) -> Any:
        of.append(array.ctypes.data)
        return array

    new, view = _launch._empty_like, _launch._view
    with (
        mock.patch.object(_launch, "_empty_like", lambda array: keep(new(array), written)),
        mock.patch.object(_launch, "_view", lambda array: keep(view(array), read)),
    ):
        y, pullback = an.vjp(an.layer_norm, x)
        assert written[-1] == y.unsafe_buffer_pointer()
        assert x.unsafe_buffer_pointer() in read
        dx = pullback(dy).x
    assert written[-1] == dx.unsafe_buffer_pointer()
    assert dy.unsafe_buffer_pointer() in read


@each_library(["jax"])
def test_arrays_that_are_not_computed_yet(library: ArrayLibrary) -> None:  # noqa: ARG001
    """The engine waits for an array that XLA is still computing."""
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, a: jnp.sin(a) + a @ a.T @ a * 1e-6, x))
    x = _x(400, 400)
    expected = an.layer_norm(jax.block_until_ready(slow(x)))
    np.testing.assert_array_equal(an.layer_norm(slow(x)), expected)


@each_library(["jax"])
def test_donation_and_deletion(library: ArrayLibrary) -> None:  # noqa: ARG001
    """x may be donated after a call, and so may y, whose numbers then are the program's; a deleted x is refused."""
    donate = jax.jit(lambda a: a + 1, donate_argnums=0)
    x = jax.block_until_ready(_x(64, 48) + 0)  # memory of JAX's own, which a donation reuses
    y, pullback = an.vjp(an.layer_norm, x)
    kept, moved = np.array(y), np.array(x)
    at = x.unsafe_buffer_pointer()
    assert donate(x).unsafe_buffer_pointer() == at
    np.testing.assert_array_equal(y, kept)
    for call in (lambda: pullback(y), lambda: an.layer_norm(x)):
        with pytest.raises(RuntimeError, match="deleted"):
            call()
    np.testing.assert_array_equal(donate(y), kept + 1)
    again = an.layer_norm(jax.device_put(moved))
    np.testing.assert_array_equal(again, kept)


@each_library(["jax"])
def test_memory_outlives_what_the_caller_drops(library: ArrayLibrary) -> None:  # noqa: ARG001
    """y, dx and what is computed of them keep the memory that the engine wrote, and only as long as they live."""
    x = _x(512, 512)
    expected = np.array(an.layer_norm(x))
    results = [an.layer_norm(x) for _ in range(8)]
    views = [np.asarray(y) for y in results]
    del results
    for _ in range(8):
        an.layer_norm(x + 1)
    for view in views:
        np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize("level", ["disallow", "disallow_explicit"])
@each_library(["jax"])
def test_transfer_guards(library: ArrayLibrary, level: str) -> None:  # noqa: ARG001
    """A guard against transfers, of which there is none, refuses nothing."""
    x, weight = _x(8, 64), _x(64)
    with nothing_known(), jax.transfer_guard(level):
        y, pullback = an.vjp(an.layer_norm, x, weight)
        pullback(y)
        an.batch_norm(x, return_moments=True)
        an.moments(x)


@each_library(["jax"])
def test_settings_that_only_xla_obeys(library: ArrayLibrary) -> None:  # noqa: ARG001
    """What is set to look for NaN finds it, and what is placed by a mesh stays on it, also after calls without."""
    x = _x(8, 64).at[0, 0].set(np.nan)
    assert np.isnan(an.layer_norm(x)).any()
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        an.layer_norm(x)
    mesh = jax.make_mesh((1,), ("a",), devices=jax.devices()[:1])
    placed = jax.device_put(_x(8, 64), jax.NamedSharding(mesh, jax.P("a")))
    assert "mesh" in str(an.explain(an.layer_norm, placed))
    assert an.layer_norm(placed).sharding.mesh == mesh
    x = _x(8, 64)
    assert an.explain(an.layer_norm, x).path == "anynorm_numba"
    with jax.set_mesh(mesh):
        assert "mesh" in str(an.explain(an.layer_norm, x))
    with jax.disable_jit():
        np.testing.assert_array_equal(an.layer_norm(x), jax.device_put(an.layer_norm(np.asarray(x))))


@each_library(["jax"])
def test_a_layout_of_another_order(library: ArrayLibrary) -> None:  # noqa: ARG001
    """An array whose axes JAX was told to keep in another order is read in its own."""
    from jax.experimental.layout import Format, Layout

    x = _x(6, 8, 5)
    other = jax.device_put(x, Format(Layout(major_to_minor=(2, 0, 1)), x.sharding))
    assert not np.asarray(other).flags.c_contiguous
    np.testing.assert_array_equal(an.layer_norm(other), an.layer_norm(x))
    pulled = [an.vjp(an.layer_norm, array)[1](array).x for array in (other, x)]
    np.testing.assert_array_equal(*pulled)


@pytest.mark.parametrize("known", [False, True], ids=["first", "again"])
@each_library(["jax"])
def test_constants_of_what_is_traced(library: ArrayLibrary, known: bool) -> None:  # noqa: ARG001
    """Inside of jax.jit an array from outside is one of the program: its norm is computed there, not while tracing."""
    x, weight = _x(8, 64), _x(64)
    y, pullback = an.vjp(an.layer_norm, x, weight)
    dx = pullback(y).x
    moments = an.moments(x, axis=1)

    def traced(dy: Any) -> Any:
        inside = an.layer_norm(x, weight), pullback(x).x, an.moments(x, axis=1).mean
        assert all(isinstance(array, jax.core.Tracer) for array in inside)
        return *inside, pullback(dy).x

    with nothing_known() if not known else mock.patch.dict({}):
        found = jax.jit(traced)(y)
        again = an.layer_norm(x, weight)
    for array, expected in zip(found, (y, pullback(x).x, moments.mean, dx), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(again, y)
    for call in (lambda: an.layer_norm(x, weight), lambda: pullback(x).x, lambda: an.moments(x, axis=1).mean):
        assert "anynorm_sum" in str(jax.make_jaxpr(call)())


@each_library(["jax"])
def test_threads(library: ArrayLibrary) -> None:  # noqa: ARG001
    """Calls of several threads at once have the bits of one."""
    x = _x(64, 300)
    y, pullback = an.vjp(an.layer_norm, x)
    expected = np.array(y), np.array(pullback(y).x)

    def call(_: int) -> bool:
        y, pullback = an.vjp(an.layer_norm, x)
        return bool((np.asarray(y) == expected[0]).all() and (np.asarray(pullback(y).x) == expected[1]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(200)))


PLACES = """
import itertools, json
import jax, jax.numpy as jnp, numpy as np
import anynorm as an
from libraries import without_engine

devices = jax.devices()
x = jnp.ones((4, 8)) * jnp.arange(8.0)
with jax.default_device(devices[1]):
    elsewhere = jnp.arange(32.0).reshape(4, 8)
xs = {"free": x, "free elsewhere": elsewhere, "weak": jnp.full((4, 8), 1.0)}
xs |= {f"committed {i}": jax.device_put(x, devices[i]) for i in (0, 1)}
xs["host memory"] = jax.device_put(x, jax.sharding.SingleDeviceSharding(devices[0], memory_kind="pinned_host"))
xs["sharded"] = jax.device_put(x, jax.NamedSharding(jax.make_mesh((2,), ("a",)), jax.P("a")))
weights = {"none": None, "free": jnp.ones(8), "weak": jnp.full((8,), 1.0)}
weights["committed"] = jax.device_put(jnp.ones(8), devices[1])

def placed(array):
    return None if array is None else [str(array.sharding), array.committed, array.weak_type, str(array.dtype)]

def results(x, weight, dy):
    try:
        y, pullback = an.vjp(an.layer_norm, x, weight)
        moments = an.moments(x, axis=1)
        return [placed(array) for array in (y, *pullback(dy), moments.mean)]
    except ValueError as error:
        return type(error).__name__

found, by_engine = {}, 0
# Each x with each weight and default device; beside them a dy like x, which is in no conflict with it, and one of the
# others in turn: eight turns for each x, so that it meets every kind of dy.
turns = itertools.product(xs, (None, devices[2]), weights)
for (i, default, j), other in zip(turns, itertools.cycle(xs)):
    x, weight = xs[i], weights[j]
    with jax.default_device(default):
        try:
            by_engine += an.explain(an.layer_norm, x, weight).path == "anynorm_numba"
        except ValueError:
            pass
        for k in {i, other}:
            own = results(x, weight, xs[k])
            with without_engine():
                expected = results(x, weight, xs[k])
            if own != expected:
                found[f"{i}, {j}, {k}, {default}"] = own, expected
moved = [str(an.explain(an.layer_norm, elsewhere))]
stays = str(an.explain(an.layer_norm, x := jnp.ones((4, 8))))
with jax.default_device(devices[2]):
    moved.append(str(an.explain(an.layer_norm, x)))
print(json.dumps([found, by_engine, stays, moved]))
"""


def test_placement_is_that_of_xla() -> None:
    """Results lie on the device, are committed, and have the type that XLA's would, whatever the arguments are."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # the folders of tests among them
    done = subprocess.run(
        [sys.executable, "-c", PLACES], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found, by_engine, stays, moved = json.loads(done.stdout.splitlines()[-1])
    assert found == {}
    assert by_engine > 10
    assert stays == "anynorm_numba"
    assert all("JAX moves x to its default device" in route for route in moved)
