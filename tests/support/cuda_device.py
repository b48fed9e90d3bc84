"""What stands for a device where there is none: a launcher's kernels run on the CPU, and fail when told to.

No test is in here, and no array library.
"""

from __future__ import annotations

import ctypes
from typing import Any

from anynorm_cuda import _argument
from anynorm_cuda._launcher import Loaded
from anynorm_cuda._program import Kernel, Launch
from anynorm_cuda.engine import Run


class HostDevice:
    """A device as `anynorm_cuda._launcher.Launcher` is told of it."""

    def __init__(self, run: Run, device: int = 0) -> None:
        self.run, self.device = run, device
        self.kernels: list[Kernel] = []  # that were loaded
        self.launches: list[Launch] = []
        self.tried = 0  # launches, those that failed included
        self.streams: set[int] = set()
        self.fails: dict[str, Exception] = {}  # by the name of a function here
        self.threads = 1024  # that a block may have
        self.held: int | None = 1  # clusters; None if nobody can tell
        self.refuses: set[str] = set()  # kernels that alone this is so of; none for all
        self.declared = 0  # bytes of shared memory in the source
        self.allowed: list[int] = []  # that were made
        self.asked: list[Launch] = []  # of whose clusters

    def load(self, kernel: Kernel) -> Loaded:
        """Note a kernel as loaded."""
        self._fail("load", kernel)
        self.kernels.append(kernel)
        return Loaded(len(self.kernels), self.declared, self.threads if self._concerns(kernel) else 1024)

    def allow_shared(self, loaded: Loaded, shared: int) -> None:
        """Have as much shared memory as is asked for."""
        self._fail("allow_shared", self.kernels[loaded.function - 1])
        self.allowed.append(shared)

    def clusters(self, loaded: Loaded, launch: Launch) -> int | None:
        """Return what was set."""
        assert self.kernels[loaded.function - 1] == launch.kernel
        self.asked.append(launch)
        self._fail("clusters", launch.kernel)
        return self.held if self._concerns(launch.kernel) else 1

    def launch(self, *given: int) -> None:
        """Run a kernel, with a copy of its argument."""
        function, x, y, z, threads, threads_y, threads_z, shared, stream, parameters, extra = given
        assert (z, threads_y, threads_z, extra) == (1, 1, 1, 0)
        kernel = self.kernels[function - 1]
        self.tried += 1
        self._fail("launch", kernel)
        begin: Any = ctypes.c_size_t.from_address(parameters).value
        self.streams.add(stream)
        self.launches.append(Launch(kernel, (x, y), threads, shared))
        self.run(self.launches[-1], ctypes.string_at(begin, _argument.SIZE))

    def _fail(self, what: str, kernel: Kernel) -> None:
        if what in self.fails and self._concerns(kernel):
            raise self.fails[what]

    def _concerns(self, kernel: Kernel) -> bool:
        return not self.refuses or kernel.name in self.refuses
