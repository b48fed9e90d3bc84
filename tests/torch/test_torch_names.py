"""What anynorm_torch shows of itself: the names that users call, and not what anynorm asks of a backend."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import anynorm_torch

# Hooks of the dispatcher, some of which have the names of builtins.
HOOKS = ("forward", "backward", "again", "kind", "path", "declines", "moments", "sum", "spread", "compiling")


def test_names() -> None:
    """`dir`, and with it completion, lists the public names alone; hooks are found by who asks for them by name."""
    assert dir(anynorm_torch) == sorted(anynorm_torch.__all__)
    assert {"LayerNorm", "accelerate"} <= set(dir(anynorm_torch))
    assert not set(dir(anynorm_torch)) & set(HOOKS)
    assert all(callable(getattr(anynorm_torch, name)) for name in (*HOOKS, *anynorm_torch.__all__))
