"""The numbers that arrays are filled with: ordinary ones, and those on which norms go wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.fuzz.case import Shape
from benchmarks.fuzz.memory import NumPyArray, numpy_dtype

SMALLEST = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
_SUBNORMAL = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
LARGEST = {
    "float16": 65504.0,
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
    "float32": (2 - 2.0**-23) * 2.0**127,
    "float64": (2 - 2.0**-52) * 2.0**1023,
}

# Of x, with how often each is drawn. All are finite but "poisoned".
OF_X = {
    "normal": 30,
    "offset": 12,
    "far": 6,
    "constant": 6,
    "constant_rows": 3,
    "pixels": 4,
    "huge": 4,
    "minute": 4,
    "every_magnitude": 4,
    "subnormal": 3,
    "limits": 3,
    "spike": 4,
    "zeros": 3,
    "negative_zeros": 2,
    "poisoned": 4,
}


def drawn(values: str, shape: Shape, dtype: str, random: np.random.Generator) -> NumPyArray:
    """Return numbers of a kind, in a dense array."""
    with np.errstate(over="ignore", under="ignore"):
        found = np.asarray(_KINDS[values](random, shape, dtype))
        limit = LARGEST.get(dtype)
        if limit is not None and values != "poisoned":
            found = np.clip(found, -limit, limit)
        return np.array(np.broadcast_to(found, shape), order="C").astype(numpy_dtype(dtype))


def _normal(random: np.random.Generator, shape: Shape, _: str = "") -> Any:
    return random.normal(size=shape) * 10 ** random.uniform(-2, 2)


def _offset(random: np.random.Generator, shape: Shape, low: float, high: float) -> Any:
    """Return normal numbers with a mean of 10^low to 10^high deviations, which fit float16."""
    ratio = 10 ** random.uniform(low, high)
    return 0.05 * (random.normal(size=shape) + ratio * random.choice([-1, 1]))


def _constant_rows(random: np.random.Generator, shape: Shape, _: str) -> Any:
    """Return numbers that are equal along some axes."""
    alike = [1 if random.random() < 0.5 else length for length in shape]
    return random.normal(size=alike) * 10 ** random.uniform(-3, 4)


def _spike(random: np.random.Generator, shape: Shape, dtype: str) -> Any:
    found = random.normal(size=shape) * random.choice([0, 1])
    if found.size:
        size = random.choice([1.0, -1.0, LARGEST[dtype], SMALLEST[dtype], 1e3])
        found.reshape(-1)[random.integers(found.size)] = size
    return found


def _every_magnitude(random: np.random.Generator, shape: Shape, dtype: str) -> Any:
    low, high = np.log2(SMALLEST[dtype]), np.log2(LARGEST[dtype]) - 1
    if random.random() < 0.5:
        middle = random.uniform(low, high)
        low, high = max(low, middle - 100), min(high, middle + 100)
    return random.choice([-1, 1], size=shape) * np.exp2(random.uniform(low, high, size=shape))


def _limits(random: np.random.Generator, shape: Shape, dtype: str) -> Any:
    signs = random.choice([-1.0, 1.0], size=shape) if random.random() < 0.5 else random.choice([-1.0, 1.0])
    return LARGEST[dtype] * random.uniform(0.9, 1, size=shape) * signs


def _poisoned(random: np.random.Generator, shape: Shape, _: str) -> Any:
    """Return normal numbers, of which a few are NaN or infinite."""
    found = random.normal(size=shape) + random.choice([0, 30])
    for _i in range(random.integers(1, 3)):
        if found.size:
            found.reshape(-1)[random.integers(found.size)] = random.choice([np.nan, np.inf, -np.inf])
    return found


def _variance(random: np.random.Generator, shape: Shape, _: str) -> Any:
    return random.uniform(0.5, 100, size=shape) * random.choice([1, 1, 1, 1e-8, 1e4])


_KINDS: dict[str, Any] = {
    "normal": _normal,
    "offset": lambda random, shape, _: _offset(random, shape, 0, 3),
    "far": lambda random, shape, _: _offset(random, shape, 3, 6),
    "constant": lambda random, _, dtype: random.choice([1000000.1, 0.1, -12345.678, 1e10, 1e30, LARGEST[dtype], 0.375]),
    "constant_rows": _constant_rows,
    "pixels": lambda random, shape, _: random.integers(256, size=shape),
    "huge": lambda random, shape, _: random.normal(size=shape) * 10 ** random.uniform(15, 37),
    "minute": lambda random, shape, _: random.normal(size=shape) * 10 ** random.uniform(-37, -15),
    "every_magnitude": _every_magnitude,
    "subnormal": lambda random, shape, dtype: _SUBNORMAL[dtype] * random.integers(-3, 4, size=shape),
    "limits": _limits,
    "spike": _spike,
    "zeros": lambda *_: 0.0,
    "negative_zeros": lambda *_: -0.0,
    "poisoned": _poisoned,
    # Of parameters, statistics and gradients.
    "ordinary": lambda random, shape, _: random.normal(size=shape) + 0.5,
    "ones": lambda *_: 1.0,
    "mean": lambda random, shape, _: random.normal(size=shape) * random.choice([0, 1, 30]),
    "variance": _variance,
    "variance_0": lambda random, shape, _: random.uniform(0.5, 2, size=shape) * random.integers(2, size=shape),
    "large": lambda random, shape, _: random.normal(size=shape) * 1e18,
    "small": lambda random, shape, _: random.normal(size=shape) * 1e-15,
    "integers": lambda random, shape, _: random.integers(5, size=shape),
}
