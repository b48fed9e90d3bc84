"""Several processes that write one file, while another reads it: what is read is whole, of one writer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.fuzz.case import fail
from benchmarks.fuzz.trial import Trial, Way, an

_WRITER = """
import sys
import numpy as np
import anynorm as an
file, number, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for _ in range(40):
    an.save_state({"one": np.full(size, number, "float32"), "two": np.full(size, number, "float32")}, file)
"""
WRITERS = 3


def files(trial: Trial) -> None:
    """Save states under one name at once, and read it all the while."""
    size = trial.random.choice((1, 1000, 300_000))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "state.safetensors")
        an.save_state({"one": np.zeros(size, "float32"), "two": np.zeros(size, "float32")}, file)
        command = [sys.executable, "-c", _WRITER, str(file)]
        writers = [
            subprocess.Popen([*command, str(number), str(size)], stderr=subprocess.PIPE, text=True)
            for number in range(1, WRITERS + 1)
        ]
        while any(writer.poll() is None for writer in writers):
            state = an.load_state(file)
            if len({float(number) for value in state.values() for number in value[[0, -1]]}) != 1:
                fail("a file is of two writers")
        for writer in writers:
            _, said = writer.communicate()
            if writer.returncode:
                fail("a writer of a shared file fails", said.strip().splitlines()[-1])
        left = [path.name for path in Path(folder).iterdir() if path != file]
        if left:
            fail("files are left beside a state", ", ".join(left))


FILES: dict[str, Way] = {"files": files}
