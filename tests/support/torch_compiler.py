"""Marks of tests that compile with torch."""

from __future__ import annotations

import pytest

COMPILES = [
    pytest.mark.usefixtures("fresh_compiler"),
    # Given once per process where the compiler meets a cache; test_ways_torch.py says where there must be none.
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"),
    # torch's own, when it loads its compiler, its exporter, and the rules of forward mode.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]
