"""`python -m benchmarks bits` and `before`: what is compared, and whose modules a call finds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anynorm
from benchmarks import before, before_calls, bits
from benchmarks.grid import common, data, norms, parts
from benchmarks.grid.case import Case, digest, lines, outcome

X = np.asarray([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], np.float32)
ALIKE: dict[str, Any] = {
    "C": X,
    "F": np.asfortranarray(X),
    "float64": X.astype("float64"),
    "signed zero": X * np.asarray([-1, 1, 1], "float32"),
    "flat": X.reshape(-1),
    "last bit": np.nextafter(X, np.float32(9)),
    "subclass": X.view(data.Plain),
    "tensor": torch.from_numpy(X.copy()),
    "tensor that requires grad": torch.from_numpy(X.copy()).requires_grad_(),
    "tuple": (X,),
    "pair": (X, None),
    "dict": {"x": X},
}


@pytest.fixture(autouse=True)
def threads_of_torch() -> Iterator[None]:
    """Leave torch as many threads as it had: whatever of the grid runs, runs with one, then with two."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_digest_tells_apart() -> None:
    """The hash differs where dtype, shape, strides, type, one bit, or what holds the array does, and nowhere else."""
    digests = {name: digest(value) for name, value in ALIKE.items()}
    assert len(set(digests.values())) == len(ALIKE)
    assert digest(X.copy()) == digests["C"]


def test_digest_of_lazy_arrays() -> None:
    """The hash of a Dask array is that of its numbers, which are computed, and of the dtype that it declares."""
    da = pytest.importorskip("dask.array")
    ones = [digest(da.from_array(X + step, chunks=1)) for step in (0, 0, 1)]
    assert ones[0] == ones[1] != ones[2]
    declaring = da.map_blocks(lambda block: block, da.from_array(X), dtype="float64", meta=np.zeros((0, 0)))
    assert digest(declaring) != ones[0]


def test_second_call_differs() -> None:
    """A call whose second run returns other bits than its first is reported, and so are those that fail differently."""
    numbers = count()
    cases = [Case("stable", lambda: X), Case("unstable", lambda: next(numbers)), Case("stable", lambda: 1)]
    found = dict(lines(iter(cases)))
    assert found["stable"] == digest(X)
    assert found["unstable"].startswith("DIFFERS")

    def fails() -> None:
        raise ValueError(next(numbers))

    assert dict(lines(iter([Case("fails", fails)])))["fails"].startswith("DIFFERS ValueError: 2")


def test_threads() -> None:
    """A call runs with one thread first, then with two."""
    found: list[int] = []
    list(lines(iter([Case("a call", lambda: found.append(torch.get_num_threads()))])))
    assert found == [1, 2]


@pytest.mark.parametrize("dtype", data.DTYPES)
def test_layouts_hold_their_numbers(dtype: str) -> None:
    """An array has the same numbers in every layout that repeats none of them, and other strides or memory."""
    for kind in (*data.VALUES, "positive"):
        values = data.numbers(kind, (4, 3, 2), dtype)
        placed = {layout: data.placed(values, layout) for layout in data.LAYOUTS + data.ODD_LAYOUTS}
        assert len({placed[layout].strides for layout in data.LAYOUTS}) > len(data.LAYOUTS) - 3
        for layout, array in placed.items():
            assert array.shape == values.shape
            if not layout.startswith(("repeated", "windows")):
                np.testing.assert_array_equal(np.asarray(array, "float64"), np.asarray(values, "float64"))


def test_numbers_do_not_depend_on_a_generator() -> None:
    """The numbers of the grid are fixed for good: files of hashes would not be comparable otherwise."""
    found = data.normal((100_000,))
    assert [float(one) for one in found[:3]] == NUMBERS
    assert abs(float(found.mean())) < 0.01
    assert abs(float(found.std()) - 1) < 0.2


NUMBERS = [1.649627685546875, 0.160675048828125, -1.67803955078125]


def test_one_call_of_each_kind() -> None:
    """The ways of calling return results, not errors, on a norm that has them all."""
    problem = common.Problem(common.NUMPY, norms.batch(4, 6, 5))
    ways: list[Callable[[common.Problem], Any]] = [
        common.call,
        common.explain,
        common.explain_out,
        common.vjp,
        common.several_pullbacks,
        common.vjp_out,
        common.out,
        common.in_place,
        common.returning_moments,
    ]
    for way in ways:
        assert "Error" not in outcome(common.case(problem, way))


def test_every_part_has_calls() -> None:
    """Every part of the grid has calls, which begin with its name."""
    for part in bits.PARTS:
        assert next(parts.of(part)).name.partition(" ")[0] == part


def _options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"write": None, "against": None, "part": ["numpy"], "only": ""} | given)


def test_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that was written compares equal; a hash that differs and a call that is not there any more are named."""
    file = tmp_path / "hashes.txt"
    only = r"^numpy rms_norm\(\(8, 64\), axis=-1\) float32 (call|explain|vjp)$"
    assert bits.run(_options(write=file, only=only)) == 0
    found = dict([line.split("\t") for line in file.read_text().splitlines()])
    monkeypatch.setattr(bits, "_of_process", lambda *_: found)
    assert bits.run(_options(against=file, only=only)) == 0
    capsys.readouterr()
    kept = file.read_text().splitlines()
    assert [line.split("\t")[0].split()[-1] for line in kept] == ["call", "explain", "vjp"]
    file.write_text("\n".join([kept[0] + "0", *kept[1:], "numpy rms_norm((8, 64), axis=-1) float32 call\tgone"][:3]))
    assert bits.run(_options(against=file, only=only)) == 1
    assert "float32 call\n" in capsys.readouterr().out
    file.write_text("\n".join(kept[1:]))
    assert bits.run(_options(against=file, only=only)) == 1
    assert "no such call" in capsys.readouterr().out


def _previous(folder: Path) -> Path:
    """Write a version of two modules, of which one is imported when it is called."""
    package = folder / "anynorm"
    package.mkdir()
    (package / "__init__.py").write_text("def which():\n    import anynorm.late\n    return anynorm.late.NAME\n")
    (package / "late.py").write_text("NAME = 'previous'\n")
    return folder


def test_versions_are_apart(tmp_path: Path) -> None:
    """Each version finds its own modules, also those that a call imports, and afterwards this one's are there again."""
    old, new = before.versions(_previous(tmp_path))
    mine = {name: module for name, module in sys.modules.items() if name.partition(".")[0].startswith("anynorm")}
    path = list(sys.path)

    def make(an: Any) -> Callable[[], Any]:
        return an.which if hasattr(an, "which") else lambda: an.layer_norm(X)

    calls = [(version, version.made(make)) for version in (old, new)]
    for version, call in (*calls, *calls):
        with version.active():
            found = call()
        assert found == "previous" if version is old else (found == anynorm.layer_norm(X)).all()
    there = {name: module for name, module in sys.modules.items() if name.partition(".")[0].startswith("anynorm")}
    assert there == mine
    assert sys.path == path


def test_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that takes twice the time of the other has a ratio of 2; disturbed rounds do not count."""
    old, new = before.Version([]), before.Version([])
    disturbed = count()

    def block(version: before.Version, call: Callable[[], Any], _: int) -> tuple[float, int]:
        call()
        bad = next(disturbed) % 4 == 3
        return (2.0 if version is new else 1.0) * (100 if bad else 1), int(bad)

    monkeypatch.setattr(before, "_block", block)
    row = before._timed(before_calls.Call("a call", lambda _: lambda: None), old, new, rounds=100)
    assert (row.old, row.new, row.ratio, row.rounds) == (1, 2, 2, 50)


def test_no_previous_version(tmp_path: Path) -> None:
    """A folder without anynorm is refused in words."""
    with pytest.raises(FileNotFoundError, match="holds no anynorm"):
        before.versions(tmp_path)


def test_calls_of_this_version() -> None:
    """Every small call that is timed can be made."""
    for call in before_calls.CALLS:
        call.make(anynorm)()
