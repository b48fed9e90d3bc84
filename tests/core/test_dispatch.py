"""Which implementation serves a call: that explain tells the truth, and how fast paths take part.

What an implementation computes is compared with the reference elsewhere; packages of others have a file of their own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libraries import ONE_OF_EACH, ArrayLibrary, each_library, nothing_known, without_engine

import anynorm as an
from anynorm._core import backends, dispatch, formula
from anynorm.backend import Executable

CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "layer_norm": (an.layer_norm, ()),
    "rms_norm": (an.rms_norm, ()),
    "group_norm": (an.group_norm, (2,)),
    "instance_norm": (an.instance_norm, ()),
    "batch_norm": (an.batch_norm, ()),
    "moments": (an.moments, ()),
}

X = np.random.default_rng(7).standard_normal((3, 6, 5)).astype(np.float32)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return a list into which every executable enters its engine when it is asked for a result, and the formula."""
    names: list[str] = []

    def enter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def entered(*args: Any, **options: Any) -> Any:
            names.append(name)
            return function(*args, **options)

        return entered

    def noted(compile_: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(self: Any, plan: Any, operands: Any) -> Any:
            found = compile_(self, plan, operands)
            if isinstance(found, Executable):
                for step in ("forward", "measure"):
                    setattr(found, step, enter(found.engine, getattr(found, step)))
            return found

        return compiled

    for function in ("forward", "measure"):
        monkeypatch.setattr(formula, function, enter("formula", getattr(formula, function)))
    for library in ("numpy", "cupy", "torch", "jax", "dask"):
        try:
            backend: Any = backends._first_party(library)
        except ImportError:  # the library is not installed
            continue
        monkeypatch.setattr(backend, "compile", noted(backend.compile))
    with nothing_known():
        yield names


@pytest.mark.quick
@each_library(ONE_OF_EACH)
@pytest.mark.parametrize("function", CALLS)
def test_explain_agrees_with_what_runs(function: str, library: ArrayLibrary, ran: list[str]) -> None:
    """The path that explain names is the one that is taken, and a path that is not a backend's has a reason."""
    call, args = CALLS[function]
    x = library.make(X)

    explained = an.explain(call, x, *args)
    assert not ran
    call(x, *args)

    assert ran[0] == explained.path  # what else ran, the first asked for itself
    assert (explained.reason is None) == (explained.path != "formula")
    assert str(explained) == (explained.path if explained.reason is None else f"formula ({explained.reason})")


@each_library(ONE_OF_EACH)
@pytest.mark.parametrize("function", CALLS)
def test_fast_paths_off(function: str, library: ArrayLibrary, ran: list[str]) -> None:
    """With fast paths off, every array is served by the formula alone, and the numbers are the same to rounding."""
    call, args = CALLS[function]
    x = library.make(X)
    fast = call(x, *args)
    ran.clear()

    with an.fast_paths(False):
        explained = an.explain(call, x, *args)
        plain = call(x, *args)

    assert set(ran) == {"formula"}
    assert explained.path == "formula"
    results = [(value.mean, value.m2) if function == "moments" else (value,) for value in (fast, plain)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(library.to_numpy(one), library.to_numpy(other), rtol=1e-5, atol=1e-6)


def fast() -> bool:
    """Say whether the engine would serve a call."""
    return an.explain(an.rms_norm, X).path == "anynorm_numba"


@pytest.mark.quick
def test_fast_paths_nest() -> None:
    """A block inside another decides for itself and leaves the outer one's decision as it was."""
    assert fast()
    with an.fast_paths(False):
        assert not fast()
        with an.fast_paths(True):
            assert fast()
            with an.fast_paths(False):
                assert not fast()
            assert fast()
        assert not fast()
    assert fast()


def test_fast_paths_take_true_or_false() -> None:
    """Anything else is refused, and changes nothing: a name, say, as if one path could be chosen."""
    message = r"^fast_paths: enabled must be True or False, got 'numba' of type str\.$"
    with pytest.raises(TypeError, match=message), an.fast_paths("numba"):  # type: ignore[arg-type]
        pass
    assert fast()


def test_fast_paths_after_an_exception() -> None:
    """A block that ends in an exception restores what was before it."""
    with pytest.raises(KeyError), an.fast_paths(False):
        raise KeyError
    assert fast()


def test_fast_paths_are_per_thread() -> None:
    """A block in one thread is not seen in another, and another's not here."""
    inside, checked = threading.Event(), threading.Event()
    seen = {}

    def other() -> None:
        seen["at start"] = fast()
        with an.fast_paths(False):
            inside.set()
            assert checked.wait(10)
            seen["inside"] = fast()

    with an.fast_paths(True):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
        seen["here"] = fast()
        checked.set()
        thread.join()

    assert seen == {"at start": True, "here": True, "inside": False}


def test_fast_paths_are_per_task() -> None:
    """A block in one task is not seen in another that runs in between."""

    async def sees(enabled: bool) -> list[bool]:
        found = []
        with an.fast_paths(enabled):
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(fast())
        return found

    async def both() -> list[list[bool]]:
        return list(await asyncio.gather(sees(False), sees(True)))

    assert asyncio.run(both()) == [[False] * 3, [True] * 3]


@each_library(ONE_OF_EACH)
def test_one_look_up_for_each_array(library: ArrayLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a type was met, dispatch costs at most one look-up of it for each array, and no namespace is asked for."""
    x, weight = library.make(X), library.make(X[0, 0])
    an.layer_norm(x, weight)
    looked_up = []

    class Counting(dict[type, Any]):
        def get(self, key: type, default: Any = None) -> Any:
            looked_up.append(key)
            return super().get(key, default)

        def __getitem__(self, key: type) -> Any:
            raise AssertionError

    def namespace(_: object) -> None:
        raise AssertionError

    counting = Counting(backends.by_type)
    monkeypatch.setattr(backends, "by_type", counting)
    monkeypatch.setattr(dispatch, "by_type", counting)
    monkeypatch.setattr(backends, "namespace", namespace)
    an.layer_norm(x, weight)

    # Of a call whose signature is known x's type alone is looked up: what the other arrays are is part of that.
    assert looked_up in ([type(x)], [type(x), type(weight)])


def test_numpy_memmap(tmp_path: Path) -> None:
    """An array in a file is a NumPy array like any other."""
    x: Any = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    x[...] = X

    assert an.explain(an.layer_norm, x) == ("anynorm_numba", None)
    np.testing.assert_array_equal(np.asarray(an.layer_norm(x)), an.layer_norm(X))


def test_numpy_memmap_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls on arrays in files are checked and compiled once; what such an array was given itself still counts."""
    x: Any = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    x[...] = X
    weight: Any = np.memmap(tmp_path / "weight", np.float32, "w+", shape=X.shape[-1:])
    weight[...] = 2
    plain = an.layer_norm(X, np.asarray(weight))
    an.layer_norm(x, weight)
    y, pullback = an.vjp(an.layer_norm, x, weight)
    expected = pullback(x).x
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "checked_plan", None)
        patched.setattr(dispatch, "check_gradient", None)
        np.testing.assert_array_equal(an.layer_norm(x, weight), plain)
        np.testing.assert_array_equal(pullback(x).x, expected)
    assert type(y) is np.ndarray
    for array, name in ((x, "x"), (weight, "weight")):
        array.unit = "m"
        with pytest.raises(TypeError, match=f"{name} is numpy.memmap, which has a unit"):
            an.layer_norm(x, weight)
        del array.unit


def test_numpy_subclass() -> None:
    """Another subclass of ndarray is left to the formula, with a reason and with the right numbers."""

    class Labelled(np.ndarray[Any, Any]):
        pass

    x = X.view(Labelled)
    explained = an.explain(an.layer_norm, x)

    assert explained.path == "formula"
    assert explained.reason is not None
    assert "Labelled" in explained.reason
    np.testing.assert_allclose(np.asarray(an.layer_norm(x)), an.layer_norm(X), rtol=1e-6, atol=1e-6)


def test_jax_tracers() -> None:
    """What JAX traces is served by the formula, and explain says why; the numbers are those of the eager call."""
    jax = pytest.importorskip("jax")
    routes = []

    def call(x: Any) -> Any:
        routes.append(an.explain(an.layer_norm, x))
        return an.layer_norm(x)

    x = jax.numpy.asarray(X)
    for transformed in (jax.jit(call), jax.vmap(call), lambda tensor: jax.jvp(call, (tensor,), (tensor,))[0]):
        np.testing.assert_allclose(transformed(x), an.layer_norm(x), rtol=1e-5, atol=1e-6)

    assert [route.path for route in routes] == ["formula"] * 3
    assert all("tracing" in str(route.reason) for route in routes)
    assert an.explain(an.layer_norm, x) == ("anynorm_numba", None)


def test_jax_is_compiled_once_for_each_plan(ran: list[str]) -> None:
    """Eager JAX traces the formula once for each plan, eps and dtype; another array of the same kind traces nothing."""
    jnp = pytest.importorskip("jax.numpy")

    def traces(x: Any, **options: Any) -> int:
        ran.clear()
        an.rms_norm(x, **options)
        assert ran[0] == "anynorm_jax"
        return ran.count("formula")

    x, other = jnp.ones((3, 17, 11)), jnp.zeros((3, 17, 11))
    with without_engine():
        assert (traces(x), traces(other), traces(x + 1, axis=2)) == (1, 0, 0)
        assert (traces(x, eps=0.0173), traces(other, eps=0.0173)) == (1, 0)
        assert (traces(x[:2]), traces(other[1:])) == (1, 0)
        assert (traces(x.astype("float16")), traces(other.astype("float16"))) == (1, 0)
