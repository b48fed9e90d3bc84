"""What errors advise is right when it is followed: the code in a message is run, and gives what was meant."""

from __future__ import annotations

import re
import types
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anynorm

an: Any = anynorm  # called here with what its annotations forbid
NORMS = [an.layer_norm, an.rms_norm, an.group_norm, an.instance_norm, an.batch_norm]

X = np.random.default_rng(4).normal(3, 2, (4, 6)).astype("float32")


def refused(call: Callable[[], Any]) -> str:
    """Return the message of the TypeError that a call must raise, in anynorm's words and no other's."""
    with pytest.raises(TypeError, match=r"^\w+: ") as caught:
        call()
    return str(caught.value)


def follow(message: str, code: str, **names: Any) -> Any:
    """Return what a piece of code is, which must be in a message."""
    assert code in message
    return eval(code, {"numpy": np, "anynorm": anynorm, **names})


def exact(x: Any, eps: float = 1e-5) -> Any:
    """Return layer norm along the last axis, in float64."""
    z = np.asarray(x, np.float64)
    return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + eps)


def close(y: Any, expected: Any) -> None:
    """Compare to float32's rounding."""
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=1e-5, atol=1e-5)


def test_masked() -> None:
    """What is not masked has the statistics that it has alone; no number stands for what is."""
    x = np.ma.MaskedArray(X, X < 2)
    assert 0 < x.mask.sum() < x.size
    said = refused(lambda: an.layer_norm(x))
    assert "filled(" not in said
    close(an.layer_norm(follow(said, "x.compressed()", x=x)), exact(X[X >= 2]))
    close(an.layer_norm(follow(said, "x.data", x=np.ma.MaskedArray(X))), exact(X))


def test_sparse_of_scipy() -> None:
    """A sparse matrix becomes an array of numbers, not of objects, and the message says as what missing ones count."""
    sparse: Any = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    dense = np.where(X > 3, X, 0)
    for x in (sparse.csr_array(dense), sparse.coo_matrix(dense)):
        said = refused(lambda: an.layer_norm(x))  # noqa: B023
        assert "meant as zeros" in said
        close(an.layer_norm(follow(said, "x.toarray()", x=x)), exact(dense))


def test_what_answers_every_attribute() -> None:
    """An object that has whatever it is asked for is no sparse array; a Delayed becomes an array, lazily too."""
    from unittest.mock import MagicMock

    said = refused(lambda: an.layer_norm(MagicMock()))
    assert "todense" not in said
    assert "Pass an array" in said
    dask: Any = pytest.importorskip("dask", reason="dask is not installed")
    pytest.importorskip("dask.array", reason="dask.array is not installed")
    x = dask.delayed(X)
    said = refused(lambda: an.layer_norm(x))
    close(an.layer_norm(follow(said, "x.compute()", x=x)), exact(X))
    lazy = follow(said, "dask.array.from_delayed(x, shape, dtype)", x=x, dask=dask, shape=X.shape, dtype=X.dtype)
    close(an.layer_norm(lazy).compute(), exact(X))


def test_masked_weight() -> None:
    """A parameter has no statistics: where its mask is, a number that does nothing is filled in."""
    weight, bias = np.ma.MaskedArray(X[0], X[0] < 3), np.ma.MaskedArray(X[1], X[1] < 3)
    said = refused(lambda: an.layer_norm(X, weight))
    assert "statistics" not in said
    close(an.layer_norm(X, follow(said, "weight.filled(1)", weight=weight)), exact(X) * np.where(X[0] < 3, 1, X[0]))
    follow(refused(lambda: an.layer_norm(X, bias=bias)), "bias.filled(0)", bias=bias)


def test_moments_of_numbers() -> None:
    """Moments made of numbers are told to make arrays, not to look at an x that there is none of."""
    made = an.Moments(4, 2.5, 5.0)
    with pytest.raises(TypeError, match=r"^Moments\.var: mean must be an array") as caught:
        made.var()
    mean = follow(str(caught.value), "numpy.asarray(mean, dtype='float32')", mean=2.5)
    with pytest.raises(TypeError, match=r"^Moments\.var: m2 must be an array") as caught:
        an.Moments(4, mean, 5.0).var()
    m2 = follow(str(caught.value), "numpy.asarray(m2, dtype='float32')", m2=5.0)
    assert an.Moments(4, mean, m2).var() == 1.25


def test_in_a_file(tmp_path: Path) -> None:
    """A data set in a file is read in part, or chunk by chunk; nobody is told to convert it."""
    h5py: Any = pytest.importorskip("h5py", reason="h5py is not installed")
    pytest.importorskip("dask.array", reason="dask is not installed")
    import dask

    with h5py.File(tmp_path / "x.h5", "w") as file:
        x = file.create_dataset("x", data=X)
        said = refused(lambda: an.layer_norm(x))
        assert "asarray" not in said
        close(an.layer_norm(follow(said, "x[...]", x=x)), exact(X))
        close(an.layer_norm(follow(said, "dask.array.from_array(x)", x=x, dask=dask)).compute(), exact(X))


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("zarr.core.array", "x[...]"),
        ("netCDF4", "x.set_auto_mask(False)"),
        ("xarray.core.dataarray", "x.copy(data=y)"),
        ("pandas.core.frame", "x.to_numpy().astype('float32')"),
        ("polars.dataframe.frame", "x.to_numpy().astype('float32')"),
        ("tensorflow.python.framework.ops", "x.numpy()"),
    ],
)
def test_by_module(module: str, advice: str) -> None:
    """Objects of libraries that need not be installed are known by the module of their type, or of its base."""
    kind = types.new_class("Thing", (), {}, lambda names: names.update(__module__=module))
    for x in (kind(), types.new_class("Own", (kind,))()):
        said = refused(lambda: an.layer_norm(x))  # noqa: B023
        assert advice in said
        assert "asarray" not in said


@pytest.mark.parametrize("name", ["pandas", "polars", "xarray", "zarr"])
def test_of_other_libraries(name: str) -> None:
    """The code for other libraries' objects works on theirs, where they are installed."""
    library: Any = pytest.importorskip(name, reason=f"{name} is not installed")
    frames = "x.to_numpy().astype('float32')"
    made: dict[str, Callable[[], tuple[Any, str]]] = {
        "pandas": lambda: (library.DataFrame(X), frames),
        "polars": lambda: (library.DataFrame(X), frames),
        "xarray": lambda: (library.DataArray(X), "x.data"),
        "zarr": lambda: (library.array(X), "x[...]"),
    }
    x, code = made[name]()
    close(an.layer_norm(follow(refused(lambda: an.layer_norm(x)), code, x=x)), exact(X))


@pytest.mark.parametrize("x", [[[1.0, 2.0], [3.0, 5.0]], [[1, 2], [3, 5]], array("f", [1, 2, 5])])
def test_convertible(x: Any) -> None:
    """Lists, of integers too, and buffers become arrays that the call takes."""
    said = refused(lambda: an.layer_norm(x))
    close(an.layer_norm(follow(said, "numpy.asarray(x, dtype='float32')", x=x)), exact(x))


@pytest.mark.filterwarnings("ignore:the matrix subclass is not the recommended way:PendingDeprecationWarning")
def test_matrix() -> None:
    """A matrix becomes a plain array of its two axes."""
    x = X.view(np.matrix)
    close(an.layer_norm(follow(refused(lambda: an.layer_norm(x)), "numpy.asarray(x)", x=x)), exact(X))


def test_lists_of_arrays() -> None:
    """A list of arrays is stacked, in its own library."""
    x = [X, 2 * X]
    close(an.layer_norm(follow(refused(lambda: an.layer_norm(x)), "numpy.stack(x)", x=x)), exact(x))


@pytest.mark.parametrize("norm", [an.layer_norm, an.batch_norm])
def test_one_number_as_weight(norm: Any) -> None:
    """One number for all becomes a weight of the right length."""
    x = X.reshape(2, 4, 3)
    said = refused(lambda: norm(x, weight=2.0))
    along = "x.shape[1:2]" if norm is an.batch_norm else "x.shape[-1:]"
    weight = follow(said, f"numpy.full({along}, 2.0, dtype='float32')", x=x)
    np.testing.assert_array_equal(norm(x, weight=weight), 2 * norm(x))


@pytest.mark.parametrize("value", [None, "file.npy", b"", {}, len])
def test_no_numbers(value: Any) -> None:
    """What holds no numbers is not to be converted."""
    assert "Pass an array" in refused(lambda: an.layer_norm(value))


def test_out_that_is_no_array() -> None:
    """Nobody is told to convert `out`: the result would go into the copy."""
    out = follow(refused(lambda: an.layer_norm(X, out=[0.0])), "xp.empty_like(x)", xp=np, x=X)
    close(an.layer_norm(X, out=out), exact(X))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "longdouble", "object"])
def test_cast(dtype: str) -> None:
    """A cast to the dtype that is advised can be normalized; where digits may go, the message says so."""
    x = np.rint(X).astype(dtype)
    said = refused(lambda: an.layer_norm(x))
    wide = "float64" if dtype in ("longdouble", "object") else "float32"
    close(an.layer_norm(follow(said, f"x.astype('{wide}')", x=x)), exact(x))
    assert ("2**24" in said) == (dtype in ("int32", "int64"))
    assert ("53 bits" in said) == (dtype == "longdouble")


@pytest.mark.parametrize("name", ["torch", "jax", "dask", "array_api_strict"])
def test_cast_of_other_libraries(name: str) -> None:
    """The cast is written as the library of x writes it; of complex numbers no cast is advised."""
    from libraries import LIBRARIES

    library = next(library for library in LIBRARIES.values() if library.package == name)
    if (missing := library.missing()) is not None:
        pytest.skip(missing)
    xp = pytest.importorskip({"jax": "jax.numpy", "dask": "dask.array"}.get(name, name))
    code = {"torch": "x.to(torch.float32)", "array_api_strict": "xp.astype(x, xp.float32)"}.get(
        name, "x.astype('float32')"
    )
    x = library.make(np.rint(X).astype("int32"))
    cast = follow(refused(lambda: an.layer_norm(x)), code, x=x, xp=xp, torch=xp)
    close(library.to_numpy(an.layer_norm(cast)), exact(np.rint(X)))

    x = library.make((X + 2j * X).astype("complex64"))
    said = refused(lambda: an.layer_norm(x))
    assert "Cast it" not in said
    for part in ("real", "imag"):
        code = f"xp.{part}(x)" if name == "array_api_strict" else f"x.{part}"
        y = an.layer_norm(follow(said, code, x=x, xp=xp))
        close(library.to_numpy(y), exact(getattr(X + 2j * X, part)))


def test_tensors_of_torch() -> None:
    """Nested tensors are normalized one by one, none padded; what sparse ones lack counts as zeros, which is said."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    rows = [torch.from_numpy(X[:2]), torch.from_numpy(X[2:, :])[:1]]
    code = "torch.nested.as_nested_tensor([norm(row) for row in x.unbind()], layout=x.layout)"
    x = torch.nested.nested_tensor(rows, layout=torch.jagged)
    said = refused(lambda: an.layer_norm(x))
    assert "to_padded_tensor" not in said
    y = follow(said, code, x=x, torch=torch, norm=an.layer_norm)
    assert y.is_nested
    assert y.layout is x.layout
    for each, row in zip(y.unbind(), rows, strict=True):
        close(each, exact(row))
    said = refused(lambda: an.layer_norm(torch.eye(3).to_sparse()))
    assert "meant as zeros" in said
    close(an.layer_norm(torch.eye(3).to_sparse().to_dense()), exact(np.eye(3)))


@pytest.mark.parametrize(
    ("eps", "code"), [("1e-5", "float(eps)"), (np.asarray(0.1), "float(eps)"), (None, "a Python float.")]
)
def test_eps_that_is_no_number(eps: Any, code: str) -> None:
    """What float() takes is given to float(); what it does not take is not."""
    said = refused(lambda: an.layer_norm(X, eps=eps))
    assert ("float(eps)" in said) == (eps is not None)
    if eps is not None:
        close(an.layer_norm(X, eps=follow(said, code, eps=eps)), exact(X, float(eps)))


def test_complex_state() -> None:
    """A complex array is to be saved as one of half the digits, not as a real one."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    with pytest.raises(ValueError, match=r"Cast it first, e\.g\. state\['a'\]\.astype\('complex64'\)"):
        an.save_state({"a": np.ones(3, "complex128")}, "never.safetensors")


W, B = np.linspace(1, 2, 6, dtype="float32"), np.linspace(-1, 1, 6, dtype="float32")
MEAN, VAR = np.linspace(2, 4, 6, dtype="float32"), np.linspace(1, 3, 6, dtype="float32")


@pytest.mark.parametrize(
    ("norm", "given"),
    [
        ("layer_norm", ((6,), W, B)),
        ("layer_norm", ([6], W, B, 0.1)),
        ("layer_norm", ((4, 6), None, np.ones((4, 6), "float32"))),
        ("layer_norm", ((6,),)),
        ("rms_norm", ((6,), W, 0.1)),
        ("rms_norm", ((4, 6), None, 0.1)),
        ("group_norm", (3, W, B, 0.1)),
        ("group_norm", (3, None, B, 0.1)),
        ("instance_norm", (None, None, W, B)),
        ("batch_norm", (MEAN, VAR, W, B)),
        ("batch_norm", (MEAN, VAR)),
        ("batch_norm", (MEAN, VAR, W, None, False, 0.3, 0.1)),
        ("batch_norm", (MEAN, VAR, W, B, True, 0.3, 0.1)),
        ("batch_norm", (None, None, W, B, True)),
    ],
)
def test_torchs_order(norm: str, given: tuple[Any, ...]) -> None:
    """Arguments in torch's order are refused in our words, with the call that gives what torch's would."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    x = np.random.default_rng(2).normal(size=(4, 6, 5)[: 3 if norm == "instance_norm" else 2]).astype("float32")
    names = {
        "layer_norm": ("normalized_shape", "weight", "bias", "eps"),
        "rms_norm": ("normalized_shape", "weight", "eps"),
        "group_norm": ("num_groups", "weight", "bias", "eps"),
    }.get(norm, ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"))
    ours: dict[str, Any] = {"anynorm": anynorm, "x": x, **dict(zip(names, given, strict=False))}
    code = re.split(r"the (?:same )?call is ", refused(lambda: getattr(an, norm)(x, *given)))[1].rstrip(".")
    exec(code if code.startswith("y, ") else f"y = {code}", ours)

    tensors = [torch.from_numpy(array.copy()) if isinstance(array, np.ndarray) else array for array in (x, *given)]
    close(ours["y"], getattr(torch.nn.functional, norm)(*tensors).numpy())
    for name, tensor in zip(names[:2], tensors[1:3], strict=False):
        if isinstance(tensor, torch.Tensor) and name.startswith("running"):
            close(ours[name], tensor.numpy())  # torch updates its own in place


@pytest.mark.parametrize("norm", ["layer_norm", "batch_norm", "instance_norm"])
def test_surplus_arguments(norm: str) -> None:
    """In no order of torch's the message says what goes by keyword; explain and vjp say the same as the function."""
    given = (W, B, 1e-5) if norm == "layer_norm" else (W,)
    function = getattr(an, norm)
    said = refused(lambda: function(X, *given))
    assert "by keyword" in said
    assert refused(lambda: an.explain(function, X, *given)) == said
    assert refused(lambda: an.vjp(function, X, *given)) == said
