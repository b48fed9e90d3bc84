"""Which module may import which: the user side the core, the core a backend by its loader alone; never the other way.

The graph is that of the import statements, wherever they stand; those for type checkers alone are left out. That Python
runs `anynorm/__init__.py`, which only re-exports, before any module of anynorm is no import of that module's.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
Graph = dict[str, set[str]]

LOADERS = {"anynorm._core.backends"}


def _sources() -> dict[str, str]:
    """Return the source of every module, by the name it is imported under."""
    files = [(ROOT, file) for file in (ROOT / "anynorm").rglob("*.py")]
    files += [(ROOT / "backends", file) for file in (ROOT / "backends").rglob("*.py")]
    names = {".".join(file.relative_to(root).with_suffix("").parts): file for root, file in files}
    return {name.removesuffix(".__init__"): file.read_text(encoding="utf-8") for name, file in names.items()}


@cache
def _imported(source: str, modules: frozenset[str]) -> set[str]:
    """Return the full name of everything that a module imports at its top or in a function."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert not node.level, "imports are absolute"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & modules) | ({node.module} if submodules - modules else set())
    return found


def _graph(sources: dict[str, str]) -> Graph:
    """Return which modules of ours each imports, with the packages, other than its own and anynorm, that hold them."""
    modules = frozenset(sources)
    graph: Graph = {}
    for name, source in sources.items():
        found = _imported(source, modules) & modules
        above = {".".join(result.split(".")[:depth]) for result in found for depth in range(1, result.count(".") + 1)}
        graph[name] = found | {
            value for value in above if value != "anynorm" and not f"{name}.".startswith(f"{value}.")
        }
    return graph


def _without_loaders(graph: Graph) -> Graph:
    """Return the graph without the imports by which the core loads the packages of backends."""
    return {
        name: {result for result in found if name not in LOADERS or not result.startswith("anynorm_") or "." in result}
        for name, found in graph.items()
    }


def _chain(graph: Graph, start: str, ends: set[str]) -> list[str]:
    """Return the shortest chain of imports from a module to one of others, or to itself; empty if there is none."""
    chains = [[start, value] for value in sorted(graph[start])]
    seen = set(graph[start])
    for chain in chains:  # it grows
        if chain[-1] in ends:
            return chain
        chains += [[*chain, value] for value in sorted(graph[chain[-1]] - seen)]
        seen |= graph[chain[-1]]
    return []


def _is_user_side(name: str) -> bool:
    """Say whether a module is one that users call, or is there for those alone."""
    package, _, rest = name.partition(".")
    if package != "anynorm":
        return rest.split(".")[0] == "nn"
    return rest != "backend" and (not rest.startswith("_") or rest.split(".")[0] in ("_cli", "__main__"))


def _circles(graph: Graph) -> list[list[str]]:
    """Return the shortest chain from each module to itself, where there is one."""
    return [chain for name in sorted(graph) if (chain := _chain(_without_loaders(graph), name, {name}))]


def _ways_to_the_user_side(graph: Graph) -> list[list[str]]:
    """Return the shortest chain from each module of a backend, or of the core, to the user side, where there is one."""
    graph = _without_loaders(graph)
    user_side = {name for name in graph if _is_user_side(name)}
    below = {name for name in graph if name.startswith(("anynorm_", "anynorm._core"))} - user_side
    return [chain for name in sorted(below) if (chain := _chain(graph, name, user_side))]


def test_no_circles() -> None:
    """No module imports itself by way of others, but for the core's loading of backends."""
    assert _circles(_graph(_sources())) == []


def test_imports_point_one_way() -> None:
    """What backends and the core import leads to no public function, no layer, no torch module and no command line."""
    assert _ways_to_the_user_side(_graph(_sources())) == []


def test_what_is_private_to_backends() -> None:
    """anynorm itself imports no module of a backend whose name begins with an underscore."""
    graph = _graph(_sources())
    inside = [(name, value) for name in graph if name.split(".")[0] == "anynorm" for value in sorted(graph[name])]
    assert [pair for pair in inside if pair[1].startswith("anynorm_") and "._" in pair[1]] == []


def test_what_would_be_found() -> None:
    """The graph has what a function imports, by any form of statement, and nothing that type checkers alone see."""
    sources = _sources()
    loader = next(iter(LOADERS & sources.keys()))
    assert {"anynorm_numpy", "anynorm_torch"} <= _graph(sources)[loader]
    planted = {
        "anynorm_jax._sums": "def late() -> None:\n    from anynorm import layers\n",
        "anynorm_torch._ops": "from anynorm_torch.nn import LayerNorm\n",
        "anynorm_dask": "import anynorm as an\n",
        "anynorm_numpy._sets": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from anynorm import layers\n",
    }
    graph = _graph(sources | {name: planted[name] + sources[name] for name in planted})
    ways = {chain[0]: chain for chain in _ways_to_the_user_side(graph) if chain[0] in planted}
    assert ways == {
        "anynorm_jax._sums": ["anynorm_jax._sums", "anynorm.layers"],
        "anynorm_torch._ops": ["anynorm_torch._ops", "anynorm_torch.nn"],
        "anynorm_dask": ["anynorm_dask", "anynorm"],
    }
    assert ["anynorm_torch._ops", "anynorm_torch.nn", "anynorm_torch._ops"] not in _circles(_graph(sources))
    assert "anynorm_torch._ops" in {chain[0] for chain in _circles(graph)}
