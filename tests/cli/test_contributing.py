"""What the documents say of the repository: the files that they name are there, the backend that they show works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anynorm import _reference
from tests.core.test_dispatch_outside import install, run

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    """What a page links to, other than on the web, is a file or folder here."""
    links = re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_files_of_the_map_are_there() -> None:
    """Each file that CONTRIBUTING names by its path is there, but for those that its example adds."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\.ci|anynorm|backends|tests|benchmarks|docs)/[\w./]*)`", text)
    assert len(named) > 20
    assert {name for name in named if not (ROOT / name).exists()} == {"anynorm/site_norm.py"}
    kernels = re.search(r"## Recipe: fix a kernel\n(.*?)\n1\. ", text, re.DOTALL)
    assert kernels is not None
    folders = [ROOT / "backends" / name for name in ("anynorm_numba", "anynorm_cuda")]
    short = re.findall(r"`(_\w+\.py)`", kernels[1])
    assert [name for name in short if not any((folder / name).exists() for folder in folders)] == []


def shown_backend() -> tuple[str, str, str]:
    """Return the backend that CONTRIBUTING shows: the array type, where its class is, and its source."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Recipe: add an array library")[2]
    (table,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (source,) = re.findall(r"<!-- backend -->\n```python\n(.*?)```", text, re.DOTALL)
    ((array_type, value),) = tomllib.loads(table)["project"]["entry-points"]["anynorm.backends"].items()
    return array_type, value, source


CALLS = """
import array_api_strict as xp
x = np.load("x.npy")
weight, bias = np.load("weight.npy"), np.load("bias.npy")
strict = [xp.asarray(array) for array in (x, weight, bias)]
route = an.explain(an.layer_norm, *strict)
y, pullback = an.vjp(an.layer_norm, *strict, eps=0)
again = an.layer_norm(*strict, eps=0)
rms = an.rms_norm(strict[0])
try:
    an.layer_norm(strict[0], [1.0] * 40)
except TypeError as error:
    refused = str(error)
gradients = pullback(strict[0])
declined = [an.explain(an.layer_norm, strict[0], out=strict[0]), an.explain(an.moments, strict[0]),
            an.explain(an.layer_norm, xp.asarray(x, dtype=xp.float64))]
np.savez("results.npz", y=y, again=again, rms=rms, dx=gradients.x, dweight=gradients.weight)
found = [refused, route, *declined]
"""


def test_shown_backend_serves(tmp_path: Path) -> None:
    """The backend that CONTRIBUTING shows is used, says what it declines, and keeps the bound; so do its gradients."""
    from anynorm._reference_gradients import gradients

    array_type, value, source = shown_backend()
    install(tmp_path, source, array_type, value)
    generator = np.random.default_rng(0)
    x = generator.normal(1e6, 1.0, (6, 40)).astype("float32")
    x[3] = 5.0
    arrays: dict[str, Any] = {"x": x}
    arrays |= {name: generator.normal(size=40).astype("float32") for name in ("weight", "bias")}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    refused, *routes = run(tmp_path, CALLS)
    assert refused.startswith("layer_norm: weight")
    assert routes[0] == ["anynorm_strict", None]
    assert [path for path, _ in routes[1:]] == ["formula"] * 3
    assert "moments" in routes[1][1]
    assert "only float32" in routes[3][1]
    results = np.load(tmp_path / "results.npz")
    assert _reference.layer_norm(**arrays, eps=0).units(results["y"]) <= 1
    np.testing.assert_array_equal(results["y"], results["again"])
    assert _reference.rms_norm(x).units(results["rms"]) <= 1
    exact = gradients("layer_norm", x, **arrays, eps=0)
    assert exact.x.units(results["dx"]) <= 1
    assert exact.weight is not None
    assert exact.weight.units(results["dweight"]) <= 1
