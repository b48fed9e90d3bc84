"""What every test shares: the `library` fixture, and the account of what was tested, kept and closed here.

`--feature-table=FILE` writes the table of libraries and features into FILE, `--check-feature-table=FILE` fails the run
if FILE has another. ANYNORM_REQUIRE, a list of packages with commas between, fails it if one of them was not tested.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Generator, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import features
import hypothesis
import pytest
from libraries import LIBRARIES, TITLES, ArrayLibrary

from anynorm._core.files import write_whole

# Deterministic and without a database: a run depends on the code alone.
hypothesis.settings.register_profile("anynorm", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("anynorm")


@pytest.fixture
def library(request: pytest.FixtureRequest) -> Iterator[ArrayLibrary]:
    """Return the library that the test is parametrized by, or skip the test with the reason why there is none."""
    found = LIBRARIES[request.param]
    missing = found.missing()
    if missing is not None:
        request.node.user_properties.append(("missing", (found.family, missing)))
        pytest.skip(missing)
    with found.context():
        yield found


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Forget torch's compiled graphs: it gives up on a function that it had to compile eight times."""
    import torch

    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def kept(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives a folder for what compilers make: one for all workers of a run, and for later runs."""
    return lambda name: _kept(pytestconfig, name) or tmp_path_factory.getbasetemp().parent / name


@pytest.fixture(scope="session")
def cuda_programs(kept: Callable[[str], Path]) -> Path:
    """Return where kernels compiled for the CPU are kept."""
    return kept("cuda-programs")


def _kept(config: pytest.Config, name: str) -> Path | None:
    """Return a folder that outlives the run, until `pytest --cache-clear`; None with `-p no:cacheprovider`."""
    return config.cache.mkdir(name) if config.pluginmanager.has_plugin("cacheprovider") and config.cache else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options of the feature table."""
    group = parser.getgroup("anynorm")
    group.addoption("--feature-table", type=Path, metavar="FILE", help="write the feature table into FILE")
    group.addoption("--check-feature-table", type=Path, metavar="FILE", help="fail if FILE has another feature table")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the account, unless this is a worker, whose tests are reported to its controller."""
    _keep_what_xla_compiles(config)
    workers = getattr(config.option, "numprocesses", None)
    if workers:
        # Workers share the cores; OpenBLAS, torch and others start as many threads as there are, unless told otherwise
        # when they are imported: NumPy by a worker before this is called in it, so its controller tells it.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Account(config))


def _keep_what_xla_compiles(config: pytest.Config) -> None:
    """Let JAX, not imported yet, take programs from the disk: XLA takes 0.2 s for each, most of what tests of JAX take.

    The key of a program is what XLA is given, with its options and the version of JAX.
    """
    folder = _kept(config, "xla")
    if folder is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        # A program that another worker is about to write, or that a full disk has no room for, is compiled as ever.
        unread = "Error (reading|writing) persistent compilation cache entry"
        config.addinivalue_line("filterwarnings", f"ignore:{unread}:UserWarning")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker half of the tests as they stand in files, and of the other's half what is left at the end.

    What tests of one file share, such as compiled programs and exact references, is then made once, not by each worker.
    """
    from xdist.scheduler import WorkStealingScheduling  # type: ignore[import-untyped]

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_collection_finish() -> None:
    """Spare the garbage collector the tests themselves, which it would look through again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Fail a test that leaves torch another number of threads: workers that want more than there are cores all wait."""
    yield
    if "torch" in sys.modules:
        expected, found = _threads_of_torch(), sys.modules["torch"].get_num_threads()
        if found != expected:
            sys.modules["torch"].set_num_threads(expected)
            msg = f"the test leaves torch {found} threads and found {expected}"
            raise AssertionError(msg)


@cache
def _threads_of_torch() -> int:
    threads: int = sys.modules["torch"].get_num_threads()
    return threads


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a file that imports the kernels of numba where numba is not installed."""
    report = yield
    if report.failed and "No module named 'numba'" in str(report.longrepr) and find_spec("numba") is None:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, "Skipped: numba is not installed")
    return report


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note on each test which library and features it speaks for; user_properties travel from workers to controller."""
    _keep_one_of_each_missing(config, items)
    for item in items:
        callspec = getattr(item, "callspec", None)
        name = callspec.params.get("library") if callspec else None
        if name not in LIBRARIES:
            continue
        family = LIBRARIES[name].family
        item.user_properties.append(("tested", family))
        for mark in item.iter_markers("feature"):
            if mark.args[0] not in features.FEATURES:
                msg = f"{item.nodeid}: {mark.args[0]!r} is no feature. Add it to tests/support/features.py."
                raise pytest.UsageError(msg)
            item.user_properties.append(("feature", (family, mark.args[0])))


def _keep_one_of_each_missing(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect all but one test per function of a library that is missing: one skip with the reason says it all."""
    missing = {name for name, library in LIBRARIES.items() if library.missing() is not None}
    seen, left_out = set(), []
    for item in items:
        callspec = getattr(item, "callspec", None)
        name = callspec.params.get("library") if callspec else None
        if name in missing:
            function = item.nodeid.partition("[")[0]
            if (function, name) in seen:
                left_out.append(item)
            seen.add((function, name))
    if left_out:
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=left_out)


class Account:
    """What was tested, what not and why, and what follows from it at the end of the run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.tested: set[str] = set()
        self.missing: dict[str, str] = {}
        self.passed: set[tuple[str, str]] = set()
        self.complaints: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Enter one test."""
        for key, value in report.user_properties:
            if key == "missing":
                family, reason = cast("tuple[str, str]", value)
                self.missing[family] = reason
            elif report.when == "call" and report.passed and key == "tested":
                self.tested.add(str(value))
            elif report.when == "call" and report.passed and key == "feature":
                family, feature = cast("tuple[str, str]", value)  # a list once it came from a worker
                self.passed.add((family, feature))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write or compare the feature table, and fail the run for what is wrong."""
        required = [name.strip() for name in os.environ.get("ANYNORM_REQUIRE", "").split(",") if name.strip()]
        for family in required:
            if family not in TITLES:
                self.complaints.append(f"ANYNORM_REQUIRE names {family}, which is none of {', '.join(TITLES)}.")
            elif family in self.missing or family not in self.tested:
                reason = self.missing.get(family, "no test of it ran and passed")
                self.complaints.append(f"ANYNORM_REQUIRE names {family}, which was not tested: {reason}.")
        for option, use in (("feature_table", self._write), ("check_feature_table", self._compare)):
            path = self.config.getoption(option)
            if path is not None:
                use(path, bool(session.testsfailed))
        if self.complaints and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(self, path: Path, failed: bool) -> None:
        if failed or not self.tested.issuperset(features.FAMILIES):
            self.complaints.append(f"{path}: not written, because a test failed or a library of the table is missing.")
            return
        text = path.read_text(encoding="utf-8")
        write_whole(path, features.insert(text, features.render(self.passed)).encode())

    def _compare(self, path: Path, failed: bool) -> None:  # noqa: ARG002  a failure makes the run fail anyway
        if features.extract(path.read_text(encoding="utf-8")) != features.render(self.passed):
            self.complaints.append(
                f"{path}: its feature table is not what the tests found:\n{features.render(self.passed)}\n"
                f"Write it with --feature-table={path}."
            )

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # so that what follows the yield comes after pytest's own summary
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
        """Print the complaints, and as the closing line which libraries were tested."""
        yield
        for complaint in self.complaints:
            terminalreporter.write_line(complaint, red=True)
        tested = [f"{TITLES[family]} {_version(family)}" for family in TITLES if family in self.tested]
        missing = [f"{TITLES[family]} ({self.missing[family]})" for family in TITLES if family in self.missing]
        terminalreporter.write_line(
            f"libraries tested: {', '.join(tested) or 'none'}; not tested: {', '.join(missing) or 'none'}"
        )


def _version(family: str) -> str:
    package = next(library.package for library in LIBRARIES.values() if library.family == family)
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:  # CuPy's wheels are named after their CUDA version
        return ""
