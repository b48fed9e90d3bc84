"""`python -m benchmarks`: what it says of wrong arguments and to whom. What it measures is not tested here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from anynorm._cli import show
from benchmarks import __main__ as command


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Return the exit code, be it returned or raised."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    try:
        return command.main()
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.parametrize("what", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        pytest.param("(", "'(' is no regular expression: missing )", id="open"),
        pytest.param("a{99999999999}", "is no regular expression", id="repeated"),
        pytest.param("no norm", "nothing matches 'no norm'", id="nothing"),
    ],
)
def test_wrong_pattern(
    what: str, pattern: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pattern that is no regular expression, or matches nothing, is wrong usage that one sentence explains."""
    assert _run(monkeypatch, what, "--only", pattern, "--list") == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert not printed.out


@pytest.mark.parametrize("arguments", [("numpy", "--json"), ("cpu", "--picture"), ("gpu", "--json")], ids=" ".join)
def test_results_that_cannot_be_written(
    arguments: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be written is wrong usage, before anything is measured."""
    for path in (tmp_path, tmp_path / "nowhere" / "file"):
        assert _run(monkeypatch, *arguments, str(path)) == 2
        assert f"{path} cannot be written" in capsys.readouterr().err


def test_folder_that_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where the results' folder should be is wrong usage, and is left as it is."""
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "inside"):
        assert _run(monkeypatch, "prove", "--out", str(path)) == 2
        assert f"prove: --out {path} cannot be made a folder" in capsys.readouterr().err
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="much"),
        pytest.param(("--only", r"^layer norm \(8, 64\) float32, torch.* forward, against torch$"), id="little"),
    ],
)
@pytest.mark.parametrize("what", ["cpu", "gpu"])
def test_reader_that_has_gone(
    what: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list that nobody reads to its end, as with `| head -1`, ends quietly: so does what is flushed at the end."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert _run(monkeypatch, what, "--list", *arguments) == 1
    assert not capsys.readouterr().err


@pytest.mark.parametrize("lines", [True, False])
def test_progress_without_a_terminal(
    lines: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What takes minutes says now and then, on stderr, what begins; other commands say nothing there."""
    monkeypatch.setattr(show, "QUIET", 0.0)
    with show.progress(lines=lines) as steps:
        steps.step("the first")
        monkeypatch.setattr(show, "QUIET", 60.0)
        steps.step("the second")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "... the first\n" if lines else "")
