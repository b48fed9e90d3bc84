"""Backends of others, found by their entry points, each in a Python of its own. Packages of anynorm's own are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


HEAD = """
import array_api_strict as xp
from anynorm.backend import ArrayOps, Backend, Declined, Executable, formula

calls = []
"""
SUM = """
class Ops(ArrayOps):
    def sum(self, x, axes):
        calls.append("sum")
        return xp.sum(x, axis=axes, keepdims=True)
"""
LAUNCH = """
class Launch(Executable):
    engine = "outside"

    def forward(self, x, weight, bias, eps, given, out, save):
        calls.append("forward")
        return x + 1.0, None
"""
MEASURE = """
class Launch(Executable):
    engine = "outside"

    def measure(self, x, eps=0.0):
        calls.append("measure")
        return super().measure(x, eps)
"""
COMPILE = """
    def compile(self, plan, operands):
        return Launch(plan, self.ops, None) if operands.out is None else Declined("no out is served")
"""


def backend(*parts: str, ops: str = "ArrayOps", compiles: bool = False) -> str:
    """Return the source of a package with a backend of these parts."""
    own = f"""
class Strangers(Backend):
    def __init__(self):
        super().__init__({ops}("array_api_strict", xp))
"""
    return HEAD + "".join(parts) + own + (COMPILE if compiles else "")


def test_outside_backend_is_used(tmp_path: Path) -> None:
    """A backend is loaded when an array of its type is met, not before, is used, and can be turned off."""
    install(tmp_path, backend(LAUNCH, compiles=True), value="outside:Strangers")

    found = run(
        tmp_path,
        """
seen = []
an.layer_norm(np.ones((2, 3)))
seen.append("outside" in sys.modules)
import array_api_strict as xp
x = xp.asarray([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], dtype=xp.float32)
seen.append("outside" in sys.modules)
routes = [an.explain(an.layer_norm, x), an.explain(an.layer_norm, x, out=x)]
seen.append("outside" in sys.modules)
fast = an.layer_norm(x, eps=0)
with an.fast_paths(False):
    routes.append(an.explain(an.layer_norm, x))
    plain = an.layer_norm(x, eps=0)
y, pullback = an.vjp(an.layer_norm, x, eps=0)
found = seen, routes, *[np.asarray(its).tolist() for its in (fast, plain)]
""",
    )

    seen, routes, served, plain = found
    assert seen == [False, False, True]
    assert routes == [
        ["outside", None],
        ["formula", "no out is served"],
        ["formula", "fast paths are turned off"],
    ]
    assert served == [[2.0, 3.0, 7.0], [6.0, 6.0, 6.0]]
    expected = [[-2 / 14**0.5 * 3**0.5, -1 / 14**0.5 * 3**0.5, 3 / 14**0.5 * 3**0.5], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(plain, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("source", "path", "layer_norm", "moments"),
    [
        pytest.param(backend(SUM, ops="Ops"), "formula", {"sum"}, {"sum"}, id="sum"),
        pytest.param(backend(LAUNCH, compiles=True), "outside", {"forward"}, set(), id="forward"),
        pytest.param(backend(MEASURE, compiles=True), "outside", set(), {"measure"}, id="measure"),
        pytest.param(
            backend(SUM, MEASURE, ops="Ops", compiles=True), "outside", {"sum"}, {"sum", "measure"}, id="sum-measure"
        ),
        pytest.param(backend(), "formula", set(), set(), id="nothing"),
    ],
)
def test_what_a_backend_lacks_the_formula_does(
    source: str, path: str, layer_norm: set[str], moments: set[str], tmp_path: Path
) -> None:
    """A backend may serve any step alone: what is there is used, and for the rest there is the formula."""
    install(tmp_path, source, value="outside:Strangers")

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

    y = [[0.0, 2.0]] if "forward" in layer_norm else [[-1.0, 1.0]]
    assert found == [path, y, 2.0, sorted(layer_norm), sorted(moments)]


PLAIN_LIBRARY = """
import numpy as np
import array_api_compat.numpy as xp
from anynorm.backend import ArrayOps, Backend


class Plain:
    # An array without a namespace of its own, of which a few operations are known.

    def __init__(self, values):
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, index):
        return Plain(self.values[index])


def _lifted(function):
    def lifted(*arguments, **options):
        found = function(*[its.values if isinstance(its, Plain) else its for its in arguments], **options)
        return Plain(np.asarray(found)) if isinstance(found, np.ndarray | np.generic) else found
    return lifted


for _name in ("add", "radd", "sub", "mul", "rmul", "truediv", "rtruediv", "neg", "eq", "gt", "lt", "ge", "le", "and"):
    setattr(Plain, f"__{_name}__", _lifted(getattr(np.ndarray, f"__{_name}__")))


class Namespace:
    def __getattr__(self, name):
        found = getattr(xp, name)
        return _lifted(found) if callable(found) and not isinstance(found, type) else found


class Plains(Backend):
    def __init__(self):
        super().__init__(ArrayOps("plain", Namespace()))

    def accepts(self, x):
        return x.values.ndim > 0

    def writable(self, x):
        return False
"""


def test_a_library_without_a_namespace_is_served(tmp_path: Path) -> None:
    """A backend is asked before a type is rejected, so that arrays without `__array_namespace__` can be served."""
    install(tmp_path, PLAIN_LIBRARY, "plain.Plain", "plain:Plains")

    found = run(
        tmp_path,
        """
import plain
values = np.asarray([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], dtype=np.float32)
x, weight = plain.Plain(values), plain.Plain(np.asarray([1.0, 2.0, 3.0], dtype=np.float32))
y, pullback = an.vjp(an.layer_norm, x, weight)
gradients = pullback(x)
with an.fast_paths(False):
    expected, own = an.vjp(an.layer_norm, values, weight.values)
    expected_gradients = own(values)
def difference(one, other):
    return float(np.abs(one.values - other).max())
found = [type(y).__name__, difference(y, expected), difference(gradients.x, expected_gradients.x),
         difference(an.moments(x, axis=1).mean, values.mean(1)), str(an.explain(an.layer_norm, x))]
""",
    )

    name, *differences, route = found
    assert name == "Plain"
    assert differences == [0.0, 0.0, 0.0]
    assert route == "formula (no backend computes on plain arrays)"


def test_a_backend_may_decline_an_array(tmp_path: Path) -> None:
    """What its backend does not accept is rejected as if there were none."""
    install(tmp_path, PLAIN_LIBRARY, "plain.Plain", "plain:Plains")

    found = run(
        tmp_path,
        """
import plain
try:
    an.layer_norm(plain.Plain(np.asarray(1.0)))
except TypeError as error:
    found = str(error)
""",
    )

    assert found.startswith("layer_norm: x must be an array of a library that follows the array API standard")


def test_a_backend_is_asked_until_it_accepts(tmp_path: Path) -> None:
    """An array that its backend declines leaves the next one of its type to be asked about; after a yes none is."""
    accepts = """
    def accepts(self, x):
        calls.append("accepts")
        return x.ndim > 1
"""
    install(tmp_path, backend(LAUNCH, compiles=True) + accepts, value="outside:Strangers")

    found = run(
        tmp_path,
        """
import array_api_strict as xp
paths = [an.explain(an.layer_norm, xp.ones(shape)).path for shape in (3, 4, (2, 3), 3)]
import outside
found = paths, outside.calls
""",
    )

    assert found == [["formula", "formula", "outside", "outside"], ["accepts"] * 3]


SIGNATURE = """
    def signature(self, x, weight, bias, mean, var, out, dy=None):
        return [x.shape] if dy is {} None else x.shape
"""


@pytest.mark.parametrize(
    ("own", "said"),
    [
        pytest.param(
            SIGNATURE.format(""),
            "outside.Strangers.signature must return something that can be hashed, or None, got [(2, 3)] of type list.",
            id="signature",
        ),
        pytest.param(
            SIGNATURE.format("not"),
            "outside.Strangers.signature must return something that can be hashed, or None, got [(2, 3)] of type list.",
            id="signature-backward",
        ),
        pytest.param(
            "    def accepts(self, x):\n        return x.values\n",
            f"anynorm: outside.Strangers.accepts must say whether it serves {STRICT}, it raised AttributeError(",
            id="accepts",
        ),
    ],
)
def test_a_backend_that_answers_wrongly_is_named(own: str, said: str, tmp_path: Path) -> None:
    """An answer that cannot be used, or an error in its place, is an error that names the backend and the method."""
    install(tmp_path, backend() + own, value="outside:Strangers")

    found = run(
        tmp_path,
        """
import array_api_strict as xp
x = xp.ones((2, 3), dtype=xp.float32)
try:
    y, pullback = an.vjp(an.layer_norm, x)
    pullback(y)
except (TypeError, RuntimeError) as error:
    found = str(error)
""",
    )

    assert found.startswith(said)


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        pytest.param(LAUNCH, "outside.Launch.forward must return (y, residuals) where save is True", id="no-residuals"),
        pytest.param(
            LAUNCH.replace("x + 1.0, None", "x + 1.0"), "outside.Launch.forward must return (y, residuals), got", id="y"
        ),
        pytest.param(
            LAUNCH + "    def __init__(self, plan, ops, reason): ...",
            "outside.Launch.__init__ must call super().__init__(plan, ops)",
            id="no-plan",
        ),
    ],
)
def test_what_an_executable_lacks_is_named(launch: str, said: str, tmp_path: Path) -> None:
    """An executable that forgot what every one needs is named, with what it forgot."""
    install(tmp_path, backend(launch + "\n", compiles=True), value="outside:Strangers")

    found = run(
        tmp_path,
        """
import array_api_strict as xp
x = xp.ones((2, 3), dtype=xp.float32)
try:
    y, pullback = an.vjp(an.layer_norm, x)
    pullback(y)
except TypeError as error:
    found = str(error)
""",
    )

    assert found.startswith(said)


@pytest.mark.parametrize("returned", ["None", "'no out is served'", "Launch"])
def test_what_compile_returns_is_checked(returned: str, tmp_path: Path) -> None:
    """A backend whose `compile` returns neither an Executable nor a Declined is named in a TypeError."""
    source = backend(LAUNCH, compiles=True).replace('Declined("no out is served")', returned)
    install(tmp_path, source, value="outside:Strangers")

    found = run(
        tmp_path,
        """
import array_api_strict as xp
x = xp.ones((2, 3), dtype=xp.float32)
try:
    an.layer_norm(x, out=x)
except TypeError as error:
    found = str(error)
""",
    )

    assert found.startswith("outside.Strangers.compile must return an Executable, or Declined(reason), got ")


@pytest.mark.parametrize(
    ("source", "value", "reason"),
    [
        pytest.param("import there_is_no_such_module", "outside", "ModuleNotFoundError", id="missing-module"),
        pytest.param("raise RuntimeError('no device')", "outside", "no device", id="raises"),
        pytest.param("", "outside:missing", "AttributeError", id="missing-attribute"),
        pytest.param("def sum(x, axes): ...", "outside:sum", "no subclass of", id="no-backend"),
        pytest.param(
            backend().replace("def __init__", "summ = None\n    def __init__"),
            "outside:Strangers",
            "Did you mean",
            id="misspelt",
        ),
        pytest.param(
            backend().replace("super().__init__", "id"),
            "outside:Strangers",
            "must call super().__init__(ops)",
            id="no-ops",
        ),
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


def test_a_backend_is_asked_for_the_activations_it_names(tmp_path: Path) -> None:
    """One that knows nothing of activations is not asked for a norm with one, which it would leave out."""
    install(tmp_path, backend(LAUNCH, compiles=True), value="outside:Strangers")

    found = run(
        tmp_path,
        """
import array_api_strict as xp
x = xp.asarray([[1.0], [3.0]], dtype=xp.float32)
y, pullback = an.vjp(an.batch_norm, x, eps=0, activation="relu")
found = [an.explain(an.batch_norm, x), an.explain(an.batch_norm, x, activation="relu"), np.asarray(y).tolist()]
""",
    )

    plain, activated, y = found
    assert plain == ["outside", None]
    assert activated == ["formula", "no backend applies an activation to array_api_strict arrays"]
    assert y == [[0.0], [1.0]]


def test_first_party_comes_first(tmp_path: Path) -> None:
    """A backend registered for an array type that a package of anynorm serves is not even imported."""
    install(tmp_path, "raise RuntimeError", "numpy.ndarray")

    assert run(tmp_path, "found = str(an.explain(an.layer_norm, np.ones((2, 3))))") == "anynorm_numba"
