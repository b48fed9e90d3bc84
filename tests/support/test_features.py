"""The account that conftest.py keeps: the feature table, the closing line, and what ANYNORM_REQUIRE demands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import features
import pytest

README = "before\n\n<!-- features -->\nold\n<!-- /features -->\n\nafter\n"


def test_table_says_yes_where_a_test_passed() -> None:
    """A feature is said to be there for the libraries a test of it passed on, and for no others."""
    table = features.render({("numpy", "layer_norm"), ("jax", "vmap")})
    lines = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()
    }
    assert lines[""] == ["NumPy", "PyTorch", "JAX", "Dask", "array-api-strict"]
    assert lines["layer_norm"] == ["yes", "–", "–", "–", "–"]
    assert lines["vmap"] == ["–", "–", "yes", "–", "–"]
    assert lines["moments"] == ["–"] * 5
    assert set(lines) == {"", "---", *features.FEATURES}


def test_table_goes_between_its_marks() -> None:
    """Inserting keeps everything around the marks, and extracting gives back what was inserted."""
    text = features.insert(README, "| new |")
    assert text == README.replace("old", "| new |")
    assert features.extract(text) == "| new |"


@pytest.mark.parametrize("text", ["", "<!-- features -->", README + README])
def test_marks_must_be_there_once(text: str) -> None:
    """A file without the marks, or with two pairs, is an error and not left as it is in silence."""
    with pytest.raises(ValueError, match="must occur once"):
        features.extract(text)


def _pytest(libraries: str, *options: str, **environment: str) -> tuple[int, str]:
    """Run one norm of the matrix on libraries, given as for -k; return exit status and output."""
    root = Path(__file__).parents[2]
    selection = ["-k", f"layer-all and float32-contiguous and {libraries}", "-p", "no:cacheprovider", "-p", "no:cov"]
    matrix = root / "tests" / "core" / "test_matrix.py"
    command = [sys.executable, "-m", "pytest", "-q", str(matrix), *selection, *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")} | environment
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_run_writes_the_table_and_names_the_libraries(tmp_path: Path) -> None:
    """--feature-table writes what passed; the closing line names every library, tested or not."""
    for package in ("torch", "jax", "dask", "array_api_strict"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    readme = tmp_path / "README.md"
    readme.write_text(README, encoding="utf-8")
    status, output = _pytest(
        "layer", f"--feature-table={readme}", ANYNORM_REQUIRE="numpy,torch,jax,dask,array_api_strict"
    )
    assert status == 0, output
    assert features.extract(readme.read_text(encoding="utf-8")) == features.render(
        {(family, "layer_norm") for family in features.FAMILIES}
    )
    (closing,) = [line for line in output.splitlines() if line.startswith("libraries tested: ")]
    tested, missing = closing.split("; not tested: ")
    for title in ("NumPy", "PyTorch", "JAX", "Dask", "array-api-strict"):
        assert title in tested
    assert ("CuPy" in tested) != ("CuPy (" in missing)


def test_a_run_fails_where_the_table_differs_or_a_library_is_missing(tmp_path: Path) -> None:
    """--check-feature-table and ANYNORM_REQUIRE turn a run in which every test passed into a failure, and say why."""
    readme = tmp_path / "README.md"
    readme.write_text(README, encoding="utf-8")
    status, output = _pytest(
        "(numpy or torch_cuda)",
        f"--check-feature-table={readme}",
        "-n",
        "1",
        ANYNORM_REQUIRE="numpy,torch_cuda,nonsense",
        CUDA_VISIBLE_DEVICES="",
    )
    assert status == 1
    assert " failed" not in output
    assert "its feature table is not what the tests found" in output
    assert "torch_cuda, which was not tested" in output
    assert "nonsense, which is none of" in output
    assert "names numpy" not in output
    assert readme.read_text(encoding="utf-8") == README
