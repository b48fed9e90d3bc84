"""Which implementation serves a call: that explain tells the truth, and how fast paths and outside backends take part.

What an implementation computes is compared with the reference elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libraries import ONE_OF_EACH, ArrayLibrary, each_library

import anynorm as an
from anynorm import _dispatch, _formula
from anynorm_numba import _engine

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
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list into which every implementation enters its name when it is asked for a result."""
    names: list[str] = []

    def enter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def entered(*args: Any, **options: Any) -> Any:
            names.append(name)
            return function(*args, **options)

        return entered

    for function in ("forward", "moments"):
        monkeypatch.setattr(_formula, function, enter("formula", getattr(_formula, function)))
        for loader in _dispatch._FIRST_PARTY.values():
            try:
                package = loader()
            except ImportError:  # the library is not installed
                continue
            if hasattr(package, function):
                monkeypatch.setattr(package, function, enter(package.__name__, getattr(package, function)))
    monkeypatch.setattr(_engine, "forward", enter("anynorm_numba", _engine.forward))
    # What a package offers is looked up when its library is first met.
    monkeypatch.setattr(_dispatch, "_libraries", {})
    return names


@each_library(ONE_OF_EACH)
@pytest.mark.parametrize("function", CALLS)
def test_explain_agrees_with_what_runs(function: str, library: ArrayLibrary, ran: list[str]) -> None:
    """The path that explain names is the one that is taken, and a path that is not a backend's has a reason."""
    call, args = CALLS[function]
    x = library.make(X)

    explained = an.explain(call, x, *args)
    assert not ran
    call(x, *args)

    # What else ran, the first asked for itself; an adapter hands arrays to the engine.
    assert ("anynorm_numba" if "anynorm_numba" in ran else ran[0]) == explained.path
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
    for one, other in zip(*[its[1:] if function == "moments" else [its] for its in (fast, plain)], strict=True):
        np.testing.assert_allclose(library.to_numpy(one), library.to_numpy(other), rtol=1e-5, atol=1e-6)


def fast() -> bool:
    """Say whether the engine would serve a call."""
    return an.explain(an.rms_norm, X).path == "anynorm_numba"


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

    monkeypatch.setattr(_dispatch, "_libraries", Counting(_dispatch._libraries))
    monkeypatch.setattr(_dispatch, "namespace", namespace)
    an.layer_norm(x, weight)

    # Of a call of a known kind x's type alone is looked up: what the other arrays are is part of the kind.
    assert looked_up in ([type(x)], [type(x), type(weight)])


def test_numpy_memmap(tmp_path: Path) -> None:
    """An array in a file is a NumPy array like any other."""
    x: Any = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    x[...] = X

    assert an.explain(an.layer_norm, x) == ("anynorm_numba", None)
    np.testing.assert_array_equal(np.asarray(an.layer_norm(x)), an.layer_norm(X))


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
    for transformed in (jax.jit(call), jax.vmap(call), lambda its: jax.jvp(call, (its,), (its,))[0]):
        np.testing.assert_allclose(transformed(x), an.layer_norm(x), rtol=1e-5, atol=1e-6)

    assert [route.path for route in routes] == ["formula"] * 3
    assert all("tracing" in str(route.reason) for route in routes)
    assert an.explain(an.layer_norm, x) == ("anynorm_jax", None)


def test_jax_is_compiled_once_for_each_plan(ran: list[str]) -> None:
    """Eager JAX traces the formula once for each plan, eps and dtype; another array of the same kind traces nothing."""
    jnp = pytest.importorskip("jax.numpy")

    def traces(x: Any, **options: Any) -> int:
        ran.clear()
        an.rms_norm(x, **options)
        assert ran[0] == "anynorm_jax"
        return ran.count("formula")

    x, other = jnp.ones((3, 17, 11)), jnp.zeros((3, 17, 11))
    assert (traces(x), traces(other), traces(x + 1, axis=2)) == (1, 0, 0)
    assert (traces(x, eps=0.0173), traces(other, eps=0.0173)) == (1, 0)
    assert (traces(x[:2]), traces(other[1:])) == (1, 0)
    assert (traces(x.astype("float16")), traces(other.astype("float16"))) == (1, 0)


STRICT = "array_api_strict._array_object.Array"


def install(folder: Path, source: str, array_type: str = STRICT, value: str = "outside") -> None:
    """Lay a backend into `folder` as a wheel's installation would: the package, and metadata with its entry point."""
    package = folder / value.partition(":")[0]
    package.mkdir()
    (package / "__init__.py").write_text(source)
    metadata = folder / f"{package.name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[anynorm.backends]\n{array_type} = {value}\n")


def run(folder: Path, script: str) -> Any:
    """Run a script in a Python that finds the packages in `folder`, and return what it assigned to `found`."""
    pytest.importorskip("array_api_strict")
    before = """
import json, sys, warnings
import numpy as np
import anynorm as an
"""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{before}\n{script}\nprint(json.dumps(found))"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def example() -> tuple[str, str, str]:
    """Return the complete backend that backends/README.md shows: the array type, the package's name and its source."""
    text = (Path(__file__).parents[1] / "backends" / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ((array_type, value),) = tomllib.loads(table)["project"]["entry-points"]["anynorm.backends"].items()
    return array_type, value, source


def test_outside_backend_is_used(tmp_path: Path) -> None:
    """The README's backend is loaded when an array of its type is met, not before, is used, and can be turned off."""
    array_type, value, source = example()
    install(tmp_path, source, array_type, value)

    found = run(
        tmp_path,
        f"""
seen = []
an.layer_norm(np.ones((2, 3)))
seen.append({value!r} in sys.modules)
import array_api_strict as xp
x = xp.asarray([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], dtype=xp.float32)
seen.append({value!r} in sys.modules)
routes = [an.explain(an.layer_norm, x), an.explain(an.layer_norm, x, out=x)]
seen.append({value!r} in sys.modules)
from anynorm import _formula
formula, _formula.forward = _formula.forward, None
fast = an.layer_norm(x, eps=0)
_formula.forward = formula
with an.fast_paths(False):
    routes.append(an.explain(an.layer_norm, x))
    plain = an.layer_norm(x, eps=0)
found = seen, routes, *[np.asarray(its).tolist() for its in (fast, plain)]
""",
    )

    seen, routes, served, plain = found
    assert seen == [False, False, True]
    assert routes == [
        [value, None],
        ["formula", "neither given statistics nor out are served"],
        ["formula", "fast paths are turned off"],
    ]
    expected = [[-2 / 14**0.5 * 3**0.5, -1 / 14**0.5 * 3**0.5, 3 / 14**0.5 * 3**0.5], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(served, expected, rtol=1e-6)
    np.testing.assert_allclose(plain, expected, rtol=1e-6)


def test_readme_example_is_right(tmp_path: Path) -> None:
    """The backend that the README shows gives the right numbers for every norm, and the moments of the batch."""
    array_type, value, source = example()
    install(tmp_path, source, array_type, value)

    found = run(
        tmp_path,
        f"""
import array_api_strict as xp
x = np.random.default_rng(3).standard_normal((3, 6, 5)).astype(np.float32) + 1000
weight = np.linspace(1, 2, 6)[:, None] + 0 * x[:1]
x, weight, bias = [xp.asarray(its, dtype=xp.float32) for its in (x, weight, weight - 2.5)]
def call(function, args, options):
    made = getattr(an, function)(x, *args, weight=weight, bias=bias, **options)
    y, moments = made if options else (made, ())
    return [np.asarray(its).tolist() for its in (y, *moments)]
found = {{}}
for function in ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm"):
    args = (2,) if function == "group_norm" else ()
    options = {{"return_moments": True}} if function in ("instance_norm", "batch_norm") else {{}}
    assert an.explain(getattr(an, function), x, *args, weight=weight, bias=bias).path == {value!r}
    fast = call(function, args, options)
    with an.fast_paths(False):
        found[function] = fast, call(function, args, options)
""",
    )

    assert len(found) == 5
    for fast, plain in found.values():
        for one, other in zip(fast, plain, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


SUM = """
calls = []

def sum(x, axes):
    calls.append("sum")
    import array_api_strict as xp
    return xp.sum(x, axis=axes, keepdims=True)
"""

FORWARD = """
calls = []

def forward(plan, x, weight, bias, eps, *, stats, out, save):
    calls.append("forward")
    return x + 1.0, None
"""

MOMENTS = """
calls = []

def moments(plan, x):
    calls.append("moments")
    from anynorm._formula import moments
    from anynorm._array import namespace, Library
    return moments(plan, x, library=Library(*namespace(x)))
"""

DECLINES = """
def declines(plan, x, weight, bias, *, stats, out):
    return None
"""


@pytest.mark.parametrize(
    ("source", "path", "layer_norm", "moments"),
    [
        pytest.param(SUM, "formula", {"sum"}, {"sum"}, id="sum"),
        pytest.param(FORWARD, "outside", {"forward"}, set(), id="forward"),
        pytest.param(MOMENTS, "formula", set(), {"moments"}, id="moments"),
        pytest.param(SUM + MOMENTS, "formula", {"sum"}, {"moments"}, id="sum-moments"),
        pytest.param(DECLINES + MOMENTS, "formula", set(), {"moments"}, id="declines-moments"),
        pytest.param("calls = []", "formula", set(), set(), id="nothing"),
    ],
)
def test_what_a_backend_lacks_the_formula_does(
    source: str, path: str, layer_norm: set[str], moments: set[str], tmp_path: Path
) -> None:
    """A backend may offer any of its functions alone: what is there is used, and for the rest there is the formula."""
    install(tmp_path, source)

    found = run(
        tmp_path,
        """
import array_api_strict as xp
x = xp.asarray([[-1.0, 1.0]])
route = an.explain(an.layer_norm, x)
import outside
y = np.asarray(an.layer_norm(x, eps=0)).tolist()
asked = sorted(set(outside.calls))
outside.calls.clear()
m2 = float(an.moments(x).m2)
found = route.path, y, m2, asked, sorted(set(outside.calls))
""",
    )

    y = [[0.0, 2.0]] if path == "outside" else [[-1.0, 1.0]]
    assert found == [path, y, 2.0, sorted(layer_norm), sorted(moments)]


@pytest.mark.parametrize(
    ("source", "value", "reason"),
    [
        pytest.param("import there_is_no_such_module", "outside", "ModuleNotFoundError", id="missing-module"),
        pytest.param("raise RuntimeError('no device')", "outside", "no device", id="raises"),
        pytest.param("", "outside:missing", "AttributeError", id="missing-attribute"),
        pytest.param("def sum(x, axes): ...", "outside:sum", "outside:sum", id="no-module"),
    ],
)
def test_outside_backend_fails_to_import(source: str, value: str, reason: str, tmp_path: Path) -> None:
    """A backend that cannot be imported is one warning, which says why; then the formula serves its arrays."""
    install(tmp_path, source, value=value)

    messages, path, y = run(
        tmp_path,
        """
import array_api_strict as xp
x = xp.asarray([[-1.0, 1.0]])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = [an.layer_norm(x, xp.ones(2), eps=0), an.rms_norm(x, eps=0)]
    path = an.explain(an.layer_norm, x).path
found = [[its.category.__name__, str(its.message)] for its in caught], path, [np.asarray(its).tolist() for its in y]
""",
    )

    ((category, message),) = messages
    assert category == "RuntimeWarning"
    for part in ("'outside", STRICT, reason):
        assert part in message
    assert path == "formula"
    assert y == [[[-1.0, 1.0]]] * 2


def test_first_party_comes_first(tmp_path: Path) -> None:
    """A backend registered for an array type that a package of anynorm serves is not even imported."""
    install(tmp_path, "raise RuntimeError", "numpy.ndarray")

    assert run(tmp_path, "found = str(an.explain(an.layer_norm, np.ones((2, 3))))") == "anynorm_numba"
