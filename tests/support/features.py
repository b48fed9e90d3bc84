"""The table of libraries and features in the README, as text. Which tests passed is for conftest.py to find out."""

from __future__ import annotations

from collections.abc import Collection

from libraries import TITLES

# One line each. A test claims one by @pytest.mark.feature(name): "yes" for every library that the test passed on.
FEATURES = (
    "layer_norm",
    "rms_norm",
    "group_norm",
    "instance_norm",
    "batch_norm",
    "moments",
    "float16",
    "bfloat16",
    "float64",
    "hostile inputs",
    "layout kept",
    "out=",
    "gradients",
    "layers",
    "autodiff",
    "compiled",
    "vmap",
    "lazy graph",
)

# One column each. Libraries that need a device which few machines have are tested where they can be, and left out here.
FAMILIES = ("numpy", "torch", "jax", "dask", "array_api_strict")

_START, _END = "<!-- features -->", "<!-- /features -->"


def render(passed: Collection[tuple[str, str]]) -> str:
    """Return the table as Markdown, libraries across and features down; `passed` holds (family, feature)."""
    lines = [
        f"| | {' | '.join(TITLES[family] for family in FAMILIES)} |",
        f"|---|{':-:|' * len(FAMILIES)}",
    ]
    for feature in FEATURES:
        cells = ["yes" if (family, feature) in passed else "–" for family in FAMILIES]
        lines.append(f"| {feature} | {' | '.join(cells)} |")
    return "\n".join(lines)


def extract(text: str) -> str:
    """Return the table between the two marks; a ValueError unless each is there once."""
    for mark in (_START, _END):
        if text.count(mark) != 1:
            msg = f"{mark} must occur once, found {text.count(mark)} times"
            raise ValueError(msg)
    return text.partition(_START)[2].partition(_END)[0].strip()


def insert(text: str, table: str) -> str:
    """Return the text with `table` between the two marks."""
    extract(text)
    before, after = text.partition(_START)[0], text.partition(_END)[2]
    return f"{before}{_START}\n{table}\n{_END}{after}"
