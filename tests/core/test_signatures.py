"""A public function has one signature: what help and inspect show is what binds the arguments of a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import anynorm as an
from anynorm._functions import NORMS


@pytest.mark.parametrize("function", [*NORMS, an.moments], ids=lambda norm: norm.__name__)
def test_the_signature_shown_is_the_one_that_binds(function: Callable[..., Any]) -> None:
    """Nothing is written twice: the function that binds is the one whose signature, name and docstring are shown."""
    bind = function.__wrapped__  # type: ignore[attr-defined]
    assert inspect.signature(function) == inspect.signature(bind)
    assert (function.__name__, function.__qualname__, function.__module__) == (
        bind.__name__,
        bind.__qualname__,
        bind.__module__,
    )
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
