"""Where torch's modules are: in anynorm_torch.nn, which the adapter for tensors does not load."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("torch")

import anynorm_torch
import anynorm_torch.nn


def test_names() -> None:
    """Each public name is there, and each class names the public place as its own, which is what saved models hold."""
    public = {name: getattr(anynorm_torch.nn, name) for name in anynorm_torch.nn.__all__}
    assert {"LayerNorm", "accelerate"} <= public.keys()
    classes = [member for name, member in public.items() if name.endswith(("Norm", "1d", "2d", "3d"))]
    assert {cls.__module__ for cls in classes} == {"anynorm_torch.nn"}


@pytest.mark.parametrize("name", anynorm_torch.nn.__all__)
def test_names_of_before(name: str) -> None:
    """A name that stood in anynorm_torch is an error that says where it is now."""
    with pytest.raises(AttributeError, match=rf"It is anynorm_torch\.nn\.{name}: import anynorm_torch\.nn$"):
        getattr(anynorm_torch, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from anynorm_torch import {name}")


@pytest.mark.parametrize("name", ["LayerNorms", "BatchNorm", "BatchNorm4d", "accelerated", "missing"])
def test_names_that_are_nowhere(name: str) -> None:
    """What is in neither package is an error that advises nothing."""
    adapter: Any = anynorm_torch
    assert not hasattr(anynorm_torch.nn, name)
    with pytest.raises(AttributeError, match=f"^module 'anynorm_torch' has no attribute '{name}'$"):
        getattr(adapter, name)


ALONE = """
import sys
import torch
import anynorm as an
an.layer_norm(torch.ones(2, 3, requires_grad=True)).sum().backward()
an.explain(an.layer_norm, torch.ones(2, 3))
assert "anynorm_torch" in sys.modules
assert "anynorm_torch.nn" not in sys.modules
import anynorm_torch
try:
    anynorm_torch.nn
except AttributeError as error:
    print(error)
"""


def test_the_adapter_loads_no_module() -> None:
    """Calls on tensors load no torch module of anynorm's, and who looks for them is told what to import."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("because nothing imported it: import anynorm_torch.nn")
