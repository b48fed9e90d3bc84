"""`python -m anynorm`: wrong usage, what is not installed, help, version. What commands report is not tested here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, files, process, run

import anynorm
from anynorm._cli import libraries

__all__ = ["run"]  # a fixture

WRONG = {
    "a file that is not there": (["nowhere.npy"], "there is no file nowhere.npy"),
    "a folder": (["folder"], "is not a file"),
    "an unknown type": (["text.txt"], "is of no known type"),
    "a broken npy": (["broken.npy"], "is not a valid .npy file"),
    "a broken npz": (["broken.npz"], "is not a valid .npz file"),
    "a truncated npy": (["short.npy"], "is not a valid .npy file"),
    "an npz named npy": (["zip.npy"], "is an .npz file by its content"),
    "an npy named npz": (["array.npz"], "is an .npy file by its content"),
    "Python objects": (["objects.npy"], "holds Python objects"),
    "Python objects in npz": (["objects.npz"], "holds Python objects"),
    "complex numbers": (["complex.npy"], "has dtype complex128, which holds no real numbers"),
    "text": (["strings.npy"], "holds no real numbers"),
    "a single number": (["scalar.npy"], "At least two axes are needed"),
    "a vector": (["vector.npy"], "At least two axes are needed"),
    "an empty array": (["empty.npy"], "is empty"),
    "several arrays": (["two.npz"], "Choose one with --array: x, y"),
    "no such array": (["two.npz", "--array", "z"], "holds no array 'z'"),
    "an array of npy": (["table.npy", "--array", "x"], "--array names an array of an .npz file"),
    "file and data": (["table.npy", "--data", "digits"], "give FILE or --data, not both"),
    "an axis out of range": (["table.npy", "--channel-axis", "2"], "--channel-axis 2 is out of range"),
    "groups that do not divide": (["table.npy", "--groups", "5"], "--groups 5 does not divide the 6 channels"),
    "no groups": (["table.npy", "--groups", "0"], "--groups 0 does not divide"),
    "an unknown library": (["table.npy", "--libraries", "numpy,nunpy"], "there is no array library 'nunpy'"),
    "no picture file": (["table.npy", "--picture", "picture.jpg"], "must end in .png"),
    "no picture folder": (["table.npy", "--picture", "nowhere/a.png"], "there is no folder nowhere"),
    "the input as picture": (["photo.png", "--picture", "photo.png"], "would overwrite the file that is read"),
    "an unknown dtype": (["table.npy", "--dtype", "int8"], "invalid choice: 'int8'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_sentence_and_exit_code_2(run: Run, tmp_path: Path, case: str) -> None:
    """What cannot run says why on stderr, without a traceback, and nothing on stdout; no picture is written."""
    files(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("text.txt", "broken.npy", "broken.npz"):
        (tmp_path / name).write_text("nothing of the kind")
    (tmp_path / "short.npy").write_bytes((tmp_path / "table.npy").read_bytes()[:200])
    shutil.copy(tmp_path / "one.npz", tmp_path / "zip.npy")
    shutil.copy(tmp_path / "table.npy", tmp_path / "array.npz")
    np.save(tmp_path / "objects.npy", np.asarray([[{}]]))
    np.savez(tmp_path / "objects.npz", x=np.asarray([[{}]]))
    np.save(tmp_path / "complex.npy", np.ones((2, 2), complex))
    np.save(tmp_path / "strings.npy", np.asarray([["a"]]))
    np.save(tmp_path / "scalar.npy", np.float32(1))
    np.save(tmp_path / "vector.npy", np.ones(3))
    np.save(tmp_path / "empty.npy", np.ones((0, 3)))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    arguments, message = WRONG[case]
    code, out, err = run("compare", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_wanted_library_must_be_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library asked for by name that is not installed is wrong usage, in both commands."""

    def absent() -> libraries.ArrayLibrary:
        raise ModuleNotFoundError(name="torch")

    monkeypatch.setattr(libraries, "_MAKERS", {"numpy": libraries._MAKERS["numpy"], "torch": absent})
    for arguments in (["compare", "--libraries", "numpy,torch"], ["check", "--libraries", "torch"]):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert "torch: not installed" in err


@pytest.mark.parametrize(
    ("module", "command", "name"),
    [
        ("numpy", "check", "NumPy"),
        ("rich", "check", "rich"),
        ("matplotlib", "compare", "matplotlib"),
        ("sklearn", "compare", "scikit-learn"),
    ],
)
def test_a_missing_extra_is_one_sentence(tmp_path: Path, module: str, command: str, name: str) -> None:
    """Without a package of the extra, the command says what to install, with exit code 2 and no traceback."""
    program = (
        f"import sys; sys.modules[{module!r}] = None; from anynorm.__main__ import main; sys.exit(main([{command!r}]))"
    )
    done = process("-c", program, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"python -m anynorm {command} needs {name}, which is not installed: pip install 'anynorm[cli]'\n"
    )


def test_help_and_version_need_no_extra(tmp_path: Path) -> None:
    """Without arguments there is help; help, version and `import anynorm` import no array library and no command."""
    program = (
        "import sys; from anynorm.__main__ import main; code = main([]); "
        "print([name for name in ('numpy', 'rich', 'matplotlib', 'anynorm._cli.compare') if name in sys.modules], code)"
    )
    done = process("-c", program, cwd=tmp_path)
    assert done.stdout.endswith("[] 0\n")
    assert "compare" in done.stdout
    assert "check" in done.stdout
    imported = process("-c", "import anynorm, sys; print('anynorm._cli' in sys.modules)", cwd=tmp_path)
    assert imported.stdout == "False\n"
    version = process("-m", "anynorm", "--version", cwd=tmp_path)
    assert (version.stdout, version.returncode) == (f"anynorm {anynorm.__version__}\n", 0)
