"""An `out` that does not fit, cannot be written to or meets other memory: refused, and left as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from libraries import ArrayLibrary, each_library
from wrong_calls import READ_ONLY, WRITABLE, Of, an, of_library, words


@pytest.mark.quick
@each_library(WRITABLE)
@pytest.mark.parametrize(
    ("out", "error", "said"),
    [
        (Of((4, 6, 4)), ValueError, "out must have x's shape (4, 6, 5), got (4, 6, 4). Allocate it"),
        (Of(()), ValueError, "out must have x's shape (4, 6, 5), got (). Allocate it"),
        (Of(dtype="float64"), TypeError, "out must have x's dtype float32, got float64. Allocate it"),
        (Of(dtype="int32"), TypeError, "out must have x's dtype float32, got int32. Allocate it"),
        (
            [0.0],
            TypeError,
            "out must be an array of a library that follows the array API standard, got list. Allocate it",
        ),
        (
            1.0,
            TypeError,
            "out must be an array of a library that follows the array API standard, got float. Allocate it",
        ),
    ],
    ids=["shape", "no-axes", "float64", "int32", "list", "float"],
)
def test_out_does_not_fit(out: Any, error: type[Exception], said: str, library: ArrayLibrary) -> None:
    """An out that is not like x is refused and left as it was."""
    made = of_library(out, library)

    with pytest.raises(error) as caught:
        an.layer_norm(library.make(np.arange(120, dtype="float32").reshape(4, 6, 5)), out=made)

    assert type(caught.value) is error
    assert said in words(str(caught.value))
    if isinstance(out, Of):
        np.testing.assert_array_equal(library.to_numpy(made), 0)


@pytest.mark.quick
@each_library(READ_ONLY)
@pytest.mark.parametrize(
    "out",
    [Of(), Of((3,)), Of(dtype="float64"), Of(dtype="int32"), np.zeros((4, 6, 5), "float32")],
    ids=["fits", "shape", "float64", "int32", "of-numpy"],
)
def test_out_that_cannot_be_written(out: Any, library: ArrayLibrary) -> None:
    """JAX and Dask arrays cannot be written to: a TypeError that says so, whatever out is."""
    said = rf"^layer_norm: {library.family} arrays cannot be written to.* Use the returned"
    with pytest.raises(TypeError, match=said):
        an.layer_norm(Of().make(library), out=of_library(out, library))


@each_library(WRITABLE)
@pytest.mark.parametrize("options", [{"axis": 3}, {"eps": -1.0}, {"weight": Of((7,))}, {"bias": 1.0}], ids=str)
def test_out_is_untouched_by_an_error(options: dict[str, Any], library: ArrayLibrary) -> None:
    """A wrong call writes nothing to out."""
    out = library.make(np.full((4, 6, 5), 7, "float32"))

    with pytest.raises((TypeError, ValueError)):
        an.layer_norm(
            Of().make(library), out=out, **{name: of_library(option, library) for name, option in options.items()}
        )

    np.testing.assert_array_equal(library.to_numpy(out), 7)


@pytest.mark.parametrize(
    "case", ["read-only", "ahead", "behind", "weight", "bias", "mean", "var", "repeats", "windows", "reversed"]
)
def test_out_shares_memory(case: str) -> None:
    """An out that is read-only, meets another argument in memory or itself is a ValueError, and nothing changes."""
    memory = np.arange(50, dtype="float32")
    before = memory.copy()
    x, options, out = memory[:40].reshape(5, 8), {}, memory[10:].reshape(5, 8)
    if case == "read-only":
        out = np.zeros_like(x)
        out.flags.writeable = False
    elif case == "ahead":
        x, out = out, x
    elif case == "repeats":
        out = np.lib.stride_tricks.as_strided(np.zeros(8, "float32"), (5, 8), (0, 4))
    elif case == "windows":
        out = np.lib.stride_tricks.as_strided(np.zeros(20, "float32"), (5, 8), (12, 4))
    elif case == "reversed":
        out = x[::-1]
    elif case != "behind":
        x, options = np.zeros_like(x), {"mean": np.zeros(8, "float32"), "var": np.ones(8, "float32"), case: out[1]}

    with pytest.raises(ValueError, match=r"^batch_norm: (several elements of )?out .* Pass "):
        an.batch_norm(x, out=out, **options)

    np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("argument", ["x", "weight", "bias", "out"])
def test_out_beside_gradients(argument: str) -> None:
    """On torch, an out beside anything that requires a gradient is a ValueError that says what; not under no_grad."""
    torch = pytest.importorskip("torch")
    arguments = {"x": torch.ones(4, 6), "weight": torch.ones(6), "bias": torch.ones(6), "out": torch.zeros(4, 6)}
    arguments[argument].requires_grad_()
    x = arguments.pop("x")

    with pytest.raises(ValueError, match=rf"^layer_norm: .*gradient.*\b{argument} requires one.*\. [A-Z]"):
        an.layer_norm(x, **arguments)
    assert not arguments["out"].any()
    with torch.no_grad():
        assert an.layer_norm(x, **arguments) is arguments["out"]
    assert (arguments["out"] == 1).all()
