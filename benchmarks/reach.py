"""python -m benchmarks reach: how many norm layers of other libraries `accelerate` takes. Times nothing.

Of timm, a small model of each family; of the others, each class that is called a norm, with arguments guessed from
their names. A class that has norm layers in it is none itself: those are counted where they are defined.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from anynorm_torch.nn import accelerate
from benchmarks.torchvision_import import import_torchvision

_SMALL = ("test_", "atto", "femto", "pico", "nano", "xxs", "tiny", "_t", "_xs", "small", "_s", "18", "050")
_LENGTH = 64
_GROUPS = {"num_groups": 4, "n_groups": 4, "group_size": 16, "feature_dims": (4,)}
# Where a library's norm layers are defined.
_FILES = {
    "transformers": "models/*/modeling_*.py",
    "diffusers": "models/**/*.py",
    "torch_geometric": "nn/norm/*.py",
}


class Row(NamedTuple):
    """A model or a class, how many norm layers of it were taken and left, and why those were."""

    library: str
    name: str
    taken: int
    left: int
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Return all, some, none, or that there is no norm layer in it."""
        if not self.taken + self.left:
            return "no norms"
        return "all" if not self.left else "some" if self.taken else "none"


def rows(library: str, only: str = "") -> Iterator[Row]:
    """Yield what there is to reach in a library, where its name matches."""
    import_torchvision()  # which timm and transformers import
    found = _families() if library == "timm" else _classes(library)
    for name, make in found:
        if re.search(only, name):
            yield row(library, name, make)


def row(library: str, name: str, make: Callable[[], Any]) -> Row:
    """Return the row of what a function makes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = make()
    except Exception as error:  # whatever another's code raises
        return Row(library, name, 0, 1, (f"it could not be made: {type(error).__name__}: {error}".splitlines()[0],))
    acceleration = accelerate(model)
    return Row(library, name, len(acceleration.swapped), len(acceleration.left), tuple(set(acceleration.left.values())))


def lines(library: str, found: list[Row]) -> list[str]:
    """Return a table of one library's rows: all, some, none of the layers taken; then the reasons."""
    counted = [each for each in found if each.verdict != "no norms"]
    counts = [f"{sum([each.verdict == word for each in counted])} {word}" for word in ("all", "some", "none")]
    share = 100 * sum([each.verdict == "all" for each in counted]) / max(1, len(counted))
    what = "families" if library == "timm" else "classes"
    reasons = [f"    {each.name}: {reason}" for each in counted for reason in sorted(each.reasons)]
    return [f"{library}: {len(counted)} {what}, {share:.0f} % fully taken ({', '.join(counts)})", *reasons]


def libraries() -> list[str]:
    """Return the libraries that are installed."""
    return [name for name in ("timm", *_FILES) if find_spec(name)]


def _families() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield timm's families, each with what makes a small model of it; parameters are not needed and so not made."""
    timm: Any = importlib.import_module("timm")
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        if names:
            small = min(names, key=lambda name: (*[part not in name for part in _SMALL], len(name), name))
            yield f"{family} ({small})", partial(_on_meta, timm.create_model, small)


def _on_meta(make: Callable[[str], Any], name: str) -> Any:
    try:
        with torch.device("meta"):
            return make(name)
    except Exception:  # some compute with what they make
        return make(name)


def _classes(library: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield a library's classes that are norm layers, each with what makes a layer of it."""
    spec = find_spec(library)
    folder = Path(str(spec and spec.origin)).parent
    for file in sorted(folder.glob(_FILES[library])):
        if not re.search(r"^\s*class \w*norm", file.read_text(encoding="utf-8"), re.IGNORECASE | re.MULTILINE):
            continue
        module = importlib.import_module(".".join((library, *file.relative_to(folder).with_suffix("").parts)))
        for name, cls in vars(module).items():
            defined = isinstance(cls, type) and cls.__module__ == module.__name__
            if defined and issubclass(cls, torch.nn.Module) and "norm" in name.lower() and not _is_larger(cls):
                yield f"{file.parent.name}.{name}", partial(made, cls)


def _is_larger(cls: Any) -> bool:
    """Return whether a class is more than a norm layer: it has norm layers or others with parameters in it."""
    try:
        layer = made(cls)
    except Exception:  # then its code tells: a norm layer has its own parameters
        code = inspect.getsource(cls)
        return not re.search(r"nn\.Parameter|register_buffer|rsqrt|\.Module\w*Norm", code)
    acceleration = accelerate(layer)
    return "" not in {*acceleration.swapped, *acceleration.left}


def made(cls: Any) -> Any:
    """Return a layer of a class, with arguments guessed from their names."""
    errors = []
    for arguments in ({}, *_guesses(cls)):
        try:
            return cls(**arguments) if isinstance(arguments, dict) else cls(*arguments)
        except Exception as error:
            errors.append(error)
    raise errors[1]


def _guesses(cls: Any) -> Iterator[Any]:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    named = [value for value in parameters if value.kind not in (value.VAR_POSITIONAL, value.VAR_KEYWORD)]
    needed = [value for value in named if value.default is value.empty or value.name in _GROUPS]
    yield {value.name: _guess(value.name) for value in needed}
    yield {value.name: _guess(value.name) for value in named if value.default in (None, value.empty)}
    yield from [(_LENGTH,), (4, _LENGTH)]


def _guess(name: str) -> Any:
    if name == "config":
        return _Config()
    return 1e-6 if "eps" in name else _GROUPS.get(name, _LENGTH)


class _Config:
    """A configuration that has whatever it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return "silu" if name == "hidden_act" else _guess(name)
