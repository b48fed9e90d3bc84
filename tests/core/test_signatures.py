"""A public function, the body that runs, and its half that checks and plans: one signature, written three times."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import anynorm as an
from anynorm._advice import MISSING
from anynorm._calls import _CALLS

# Unlike the functions, the others take what is too much as well, to say what is wrong with it.
SURPLUS = {"excess", "unknown"}


def _parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return how each argument is passed, and its default, as they are when the function runs."""
    found = inspect.signature(function, follow_wrapped=False).parameters
    given = {name: (its.kind, its.default) for name, its in found.items() if name not in SURPLUS}
    # What stands for an argument that was left out is no default.
    return {name: (kind, its if its is not MISSING else inspect.Parameter.empty) for name, (kind, its) in given.items()}


@pytest.mark.parametrize("function", list(_CALLS), ids=lambda its: its.__name__)
def test_defaults_are_those_that_run(function: Callable[..., Any]) -> None:
    """What help and inspect show of a function is what runs, and what `vjp` and `explain` plan with."""
    shown = {name: (its.kind, its.default) for name, its in inspect.signature(function).parameters.items()}
    assert not SURPLUS & shown.keys()
    assert list(shown.items()) == list(_parameters(function).items())
    assert list(shown.items()) == list(_parameters(_CALLS[function]).items())


def test_every_norm_is_compared() -> None:
    """No public function that runs as another is missing here."""
    public = [getattr(an, name) for name in an.__all__]
    functions = [its for its in public if inspect.isfunction(its)]
    run_as = [its for its in functions if SURPLUS & inspect.signature(its, follow_wrapped=False).parameters.keys()]
    assert len(run_as) >= 5
    assert set(run_as) <= _CALLS.keys()
