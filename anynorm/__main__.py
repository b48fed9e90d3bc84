"""The command line, `python -m anynorm`: its arguments, its exit codes, and nothing it computes.

Only the standard library is imported until a command runs, so that help and version need no extra.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from anynorm import __version__
from anynorm._cli import UsageError, piped
from anynorm._core.arrays import FLOATING

# What the extra `cli` installs, by the name it is imported under.
_EXTRA = {"numpy": "NumPy", "rich": "rich", "matplotlib": "matplotlib", "PIL": "Pillow", "sklearn": "scikit-learn"}

_EXIT_CODES = "exit code: 0 all is well, 1 a library raised or is further off than the contract allows, 2 wrong usage"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; wrong arguments leave through argparse with code 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        # Imported only now: both commands need the extra.
        if arguments.command == "compare":
            from anynorm._cli.compare import compare as command
        else:
            from anynorm._cli.check import check as command
        return piped(lambda: command(arguments))
    except UsageError as error:
        print(f"{parser.prog} {arguments.command}: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        print(
            f"{parser.prog} {arguments.command} needs {_EXTRA[missing]}, which is not installed: "
            "pip install 'anynorm[cli]'",
            file=sys.stderr,
        )
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anynorm",
        description="Normalization layers on every array library: see what they do, check that they are right.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"anynorm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_compare(commands.add_parser("compare", help="run all five norms on real data through every installed library"))
    _add_check(commands.add_parser("check", help="measure every installed library against the exact result"))
    for name, command in commands.choices.items():
        command.epilog = f"{_EXIT_CODES}. The fields of --json are those of Report in anynorm/_cli/{name}.py."
        command.add_argument("--libraries", metavar="A,B", help="the array libraries (default: all that are installed)")
        command.add_argument("--json", action="store_true", help="machine-readable output, and nothing else, on stdout")
    return parser


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run all five norms on one array through every installed array library; show what each reduces, what it does "
        "to mean and spread, whether the batch matters, time and error per library; and draw it."
    )
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help=".npy, .npz or image file (default: data that ships with scikit-learn)"
    )
    parser.add_argument(
        "--data",
        choices=("photos", "digits"),
        help="which data of scikit-learn's: crops of two photos through a small filter bank (default), or handwritten "
        "digits",
    )
    parser.add_argument("--array", metavar="KEY", help="which array of an .npz file")
    parser.add_argument(
        "--channel-axis", type=int, metavar="AXIS", help="the axis of FILE's array that holds the channels or features"
    )
    groups = "groups of group norm (default: the largest divisor among 32, 16, ... 1)"
    parser.add_argument("--groups", type=int, metavar="G", help=groups)
    parser.add_argument("--dtype", choices=FLOATING, help="compute on the data in this dtype")
    parser.add_argument(
        "--picture", default="anynorm-compare.png", metavar="PATH", help="where to write the PNG (default: %(default)s)"
    )


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "For every installed array library, norm and dtype: the largest error on ordinary and hostile inputs in units "
        "of the contract's bound (at most 1), and the path taken."
    )


if __name__ == "__main__":
    sys.exit(main())
