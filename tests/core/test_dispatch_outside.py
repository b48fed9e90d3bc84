"""Backends of others, found by their entry points, each in a Python of its own. Packages of anynorm's own are not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
    text = (Path(__file__).parents[2] / "backends" / "README.md").read_text(encoding="utf-8")
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
