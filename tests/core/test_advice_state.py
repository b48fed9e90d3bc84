"""What a state cannot hold is refused by function and entry, and what is advised instead can be stored and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anynorm
import anynorm as an

pytest.importorskip("safetensors", reason="safetensors is not installed")

X = np.arange(6, dtype="float32").reshape(2, 3)
PLACE = "state['net']['a']"


def refused(value: Any, error: type[Exception], file: Path) -> str:
    """Return what is said of a value two mappings deep; nothing is written, and no norm is spoken of."""
    with pytest.raises(error, match=r"^save_state: net\.a\b") as caught:
        an.save_state({"net": {"a": value}}, file)
    assert not file.exists()
    said = str(caught.value)
    assert "norm" not in said.replace("anynorm", "")
    assert "statistics" not in said
    return said


def stored(value: Any, error: type[Exception], code: str, file: Path) -> dict[str, Any]:
    """Return what is read after the advice was followed."""
    said = refused(value, error, file)
    code = code.replace("IT", PLACE)
    assert code in said
    an.save_state({"b": eval(code, {"state": {"net": {"a": value}}, "numpy": np})}, file)
    return an.load_state(file)


@pytest.mark.parametrize(
    ("value", "error", "code", "expected"),
    [
        (np.asarray([None, 3]), ValueError, "IT.astype('float64')", [np.nan, 3]),
        (X.astype("longdouble"), ValueError, "IT.astype('float64')", X),
        (X.astype("complex128"), ValueError, "IT.astype('complex64')", X),
        (np.asarray(["1970-01-03"], "M8[D]"), ValueError, "IT.astype('int64')", [2]),
        (np.asarray([5], "m8[s]"), ValueError, "IT.astype('int64')", [5]),
        (3, TypeError, "numpy.asarray(IT)", 3),
        (2.5, TypeError, "numpy.asarray(IT)", 2.5),
        (True, TypeError, "numpy.asarray(IT)", True),
        ([1.0, 2.0], TypeError, "numpy.asarray(IT)", [1, 2]),
        ((X, X), TypeError, "numpy.asarray(IT)", [X, X]),
    ],
    ids=lambda tensor: type(tensor).__name__,
)
def test_converted(value: Any, error: type[Exception], code: str, expected: Any, tmp_path: Path) -> None:
    """The advised conversion keeps the numbers."""
    np.testing.assert_array_equal(stored(value, error, code, tmp_path / "a")["b"], expected)


def test_masked(tmp_path: Path) -> None:
    """Of a masked array both its numbers and its mask can be stored."""
    x = np.ma.MaskedArray(X, X > 3)
    for code, expected in ((f"{PLACE}.data", X), (f"numpy.ma.getmaskarray({PLACE})", X > 3)):
        file = tmp_path / code[:5]
        np.testing.assert_array_equal(stored(x, TypeError, code, file)["b"], expected)


def test_moments(tmp_path: Path) -> None:
    """Moments are stored by field, and made again from what was read."""
    m = an.moments(X, axis=0)
    code = '{"n": numpy.asarray(IT.n), "mean": IT.mean, "m2": IT.m2}'
    read = stored(m, TypeError, code, tmp_path / "a")
    again = anynorm.Moments(read["b.n"], read["b.mean"], read["b.m2"])
    np.testing.assert_array_equal(again.mean, m.mean)
    np.testing.assert_allclose(again.var(1), X.var(0, ddof=1))
    np.testing.assert_allclose((again + m).mean, m.mean)


def test_fields(tmp_path: Path) -> None:
    """A structured array is stored field by field."""
    x = np.asarray([(1.0, 2), (3.0, 4)], [("one", "f4"), ("two", "i8")])
    read = stored(x, ValueError, "{field: IT[field] for field in IT.dtype.names}", tmp_path / "a")
    assert read["b.one"].tolist() == [1, 3]
    assert read["b.two"].tolist() == [2, 4]


@pytest.mark.parametrize("value", ["text", b"text", None, {1}, len, np.asarray(["a"]), np.asarray([b"a"])])
def test_no_numbers(value: Any, tmp_path: Path) -> None:
    """What holds no numbers is kept elsewhere; no cast is advised."""
    said = refused(value, ValueError if isinstance(value, np.ndarray) else TypeError, tmp_path / "a")
    assert "elsewhere" in said
    assert "Cast" not in said


def test_layers(tmp_path: Path) -> None:
    """Of a layer its state is stored."""
    read = stored(an.RMSNorm(3), TypeError, "IT.state_dict()", tmp_path / "a")
    assert read["b.weight"].tolist() == [1, 1, 1]


def test_tensors_that_have_no_numbers_of_their_own(tmp_path: Path) -> None:
    """Sparse, nested, meta and float8 tensors are refused by function and entry."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    rows = [torch.ones(2), torch.ones(3)]
    for tensor in (
        torch.eye(3).to_sparse(),
        torch.nested.nested_tensor(rows, layout=torch.jagged),
        torch.empty(3, device="meta"),
    ):
        assert "Store arrays whose numbers NumPy can read" in refused(tensor, TypeError, tmp_path / "a")
    tensor = torch.ones(3).to(torch.float8_e5m2)
    code = f"{PLACE}.to(torch.float64)"
    assert code in refused(tensor, ValueError, tmp_path / "a")
    an.save_state({"b": eval(code, {"state": {"net": {"a": tensor}}, "torch": torch})}, tmp_path / "b")
    assert an.load_state(tmp_path / "b")["b"].tolist() == [1, 1, 1]


def test_arrays_of_jax(tmp_path: Path) -> None:
    """Random keys are stored as their numbers; traced arrays have none."""
    jax: Any = pytest.importorskip("jax", reason="jax is not installed")
    key = jax.random.key(3)
    code = f"jax.random.key_data({PLACE})"
    assert code in refused(key, ValueError, tmp_path / "a")
    an.save_state({"b": eval(code, {"state": {"net": {"a": key}}, "jax": jax})}, tmp_path / "b")
    traced = []
    jax.jit(lambda x: traced.append(refused(x, TypeError, tmp_path / "a")))(X)
    assert len(traced) == 1
