"""States of layers: taken out, loaded from any library, in files. And how arrays are converted on the way."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libraries import ArrayLibrary, NumPyArray, each_library, each_library_and_dtype, numpy_dtype

import anynorm as an
from anynorm._convert import copied, dtype_of, from_numpy, to_numpy
from anynorm._core.backends import ops_of

LIBRARIES = ["numpy", "torch", "jax", "dask", "strict_CPU_DEVICE", "strict_device1"]
NAMES = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def _state(dtype: str = "float32", count: int = 7) -> dict[str, NumPyArray]:
    """Return a state of BatchNorm(3)."""
    rng = np.random.default_rng(2)
    state = {name: rng.uniform(0.5, 2.0, 3).astype(numpy_dtype(dtype)) for name in NAMES[:4]}
    return {**state, "num_batches_tracked": np.asarray(count)}


def test_keys() -> None:
    """A state has torch's keys, those that exist, in torch's order, behind the prefix."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pairs = [
        (an.LayerNorm(3), torch.nn.LayerNorm(3)),
        (an.LayerNorm(3, bias=False), torch.nn.LayerNorm(3, bias=False)),
        (an.RMSNorm(3), torch.nn.RMSNorm(3)),
        (an.GroupNorm(1, 3), torch.nn.GroupNorm(1, 3)),
        (an.InstanceNorm(3), torch.nn.InstanceNorm1d(3)),
        (an.InstanceNorm(3, track_running_stats=True), torch.nn.InstanceNorm1d(3, track_running_stats=True)),
        (an.BatchNorm(3), torch.nn.BatchNorm1d(3)),
        (an.BatchNorm(3, track_running_stats=False), torch.nn.BatchNorm1d(3, track_running_stats=False)),
    ]
    for ours, theirs in pairs:
        state = ours.state_dict()
        assert list(state) == list(theirs.state_dict())
        assert list(ours.state_dict("a.b.")) == [f"a.b.{name}" for name in state]
        assert all(state[name] is getattr(ours, name) for name in state)


@each_library_and_dtype(LIBRARIES)
def test_a_state_of_any_library(library: ArrayLibrary, dtype: str) -> None:
    """Entries of any library and dtype come in as copies, in the layer's own library and dtype, exactly if they fit."""
    values = _state(dtype)
    state = {name: library.make(value.copy()) for name, value in values.items()}
    for own in ("float32", "float64"):
        layer = an.BatchNorm(3, dtype=own)
        assert layer.load_state_dict(state) == ((), ())
        for name in NAMES:
            value = getattr(layer, name)
            assert type(value) is np.ndarray
            assert value.dtype == (own if name != "num_batches_tracked" else np.int64)
            np.testing.assert_array_equal(value, values[name].astype(value.dtype))
            value += 1
    for name, value in values.items():
        np.testing.assert_array_equal(library.to_numpy(state[name]), value)


@each_library_and_dtype(LIBRARIES)
def test_a_state_into_any_library(library: ArrayLibrary, dtype: str) -> None:
    """Whatever is loaded ends in the layer's own library, dtype and device; later changes to it do not show."""
    layer = an.BatchNorm(3, dtype="float32")
    own = {name: library.make(np.asarray(value)) for name, value in _state(dtype, count=0).items()}
    layer._assign({**own, "num_batches_skipped": own["num_batches_tracked"]})
    state = _state("float32")
    layer.load_state_dict(state)
    expected = {name: value.astype(library.to_numpy(own[name]).dtype) for name, value in state.items()}
    for value in state.values():
        value *= 0
    for name, value in layer.state_dict().items():
        assert type(value) is type(own[name])
        assert value.dtype == own[name].dtype
        assert getattr(value, "device", None) == getattr(own[name], "device", None)
        np.testing.assert_array_equal(library.to_numpy(value), expected[name])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_checkpoint_of_torch(dtype: str) -> None:
    """The state of a torch model, parameters of any dtype and prefixes and all, gives the model's predictions."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv1d(2, 4, 1), torch.nn.BatchNorm1d(4), torch.nn.GroupNorm(2, 4))
    model(torch.randn(8, 2, 5))
    model = model.to(getattr(torch, dtype)).eval()
    batch, group = an.BatchNorm(4, dtype="float64").eval(), an.GroupNorm(2, 4, dtype="float64")
    for state in (model.state_dict(), dict(model.state_dict(keep_vars=True))):
        batch.load_state_dict(state, prefix="1.")
        group.load_state_dict(state, prefix="2.")
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    with torch.no_grad():
        expected = model[1:].double()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(group(batch(x)), expected, rtol=1e-12, atol=1e-12)
    assert int(batch.num_batches_tracked) == 1


def test_a_state_for_torch() -> None:
    """torch's module loads a layer's state, strictly, once its arrays are torch's."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = an.BatchNorm(3)
    layer(np.random.default_rng(0).normal(size=(9, 3)))
    module = torch.nn.BatchNorm1d(3)
    module.load_state_dict(layer.to(torch).state_dict())
    np.testing.assert_array_equal(module.running_var.numpy(), layer.running_var)
    assert int(module.num_batches_tracked) == 1


def test_everything_wrong_is_said_at_once() -> None:
    """Missing, unexpected, misshapen entries, and those that are no arrays or of a wrong kind, are in one error."""
    layer = an.BatchNorm(3)
    before = layer.state_dict()
    state: dict[str, Any] = {
        "m.weight": np.ones(3),
        "m.bias": np.ones((3, 1)),
        "m.running_mean": [0.0, 0.0, 0.0],
        "m.num_batches_tracked": np.asarray(1.0),
        "m.scale": np.ones(3),
        "other.scale": np.ones(3),
    }
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        layer.load_state_dict(state, prefix="m.")
    said = str(error.value)
    for words in (
        "m.running_var is missing",
        "m.scale is unexpected",
        "m.bias has shape (3, 1), the layer's has (3,)",
        "m.running_mean is not an array but [0.0, 0.0, 0.0] of type list",
        "m.num_batches_tracked has dtype float64, but is a count",
    ):
        assert words in said
    assert "weight" not in said
    assert "other" not in said
    assert all(layer.state_dict()[name] is value for name, value in before.items())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weight": np.ones(3, int)}, "weight has dtype int64, which is none of float16"),
        ({"weight": np.ones(3, complex)}, "weight has dtype complex128"),
        ({"weight": np.ones(3, bool)}, "weight has dtype bool"),
        ({"weight": None}, "weight is not an array but None"),
        ({"num_batches_tracked": np.asarray(True)}, "num_batches_tracked has dtype bool"),
        ({"num_batches_tracked": np.ones(1, int)}, r"num_batches_tracked has shape \(1,\), the layer's has \(\)"),
    ],
    ids=["integers", "complex", "bools", "none", "bool-count", "count-of-one-axis"],
)
@pytest.mark.parametrize("strict", [True, False])
def test_an_entry_that_does_not_fit(strict: bool, changed: dict[str, Any], words: str) -> None:
    """An entry of the wrong kind is refused, strictly or not, and all others with it."""
    layer = an.BatchNorm(3)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=words) as error:
        layer.load_state_dict({**_state(), **changed}, strict=strict)
    assert "strict=False" not in str(error.value)
    assert all(layer.state_dict()[name] is value for name, value in before.items())


def test_not_strict() -> None:
    """strict=False loads what there is, leaves the rest and returns the names of what differed."""
    layer = an.BatchNorm(3)
    mean = layer.running_mean
    state = {"p.weight": np.full(3, 2.0), "p.gamma": np.ones(3), "q.bias": np.ones(3)}
    found = layer.load_state_dict(state, strict=False, prefix="p.")
    assert found.missing == ("p.bias", "p.running_mean", "p.running_var", "p.num_batches_tracked")
    assert found.unexpected == ("p.gamma",)
    assert layer.weight.tolist() == [2, 2, 2]
    assert layer.running_mean is mean


def test_what_a_layer_has_no_place_for() -> None:
    """Learned arrays that the layer was made without are not dropped: it is to be made with them."""
    state = {key: value for key, value in _state().items() if key != "running_var"}
    with pytest.raises(ValueError, match="Make the layer with weight=True, bias=True, track_running_stats=True first"):
        an.InstanceNorm(3).load_state_dict(state)
    layer = an.InstanceNorm(3, weight=True, bias=True, track_running_stats=True)
    layer.load_state_dict(_state())
    assert layer.weight.tolist() == _state()["weight"].tolist()


def test_advice_for_keys() -> None:
    """Where all keys are missing for want of a prefix, the error names the prefix, and else strict=False."""
    layer = an.LayerNorm(3)
    state = {"encoder.norm.weight": np.ones(3), "encoder.norm.bias": np.ones(3)}
    with pytest.raises(ValueError, match=r"pass prefix='encoder\.norm\.'"):
        layer.load_state_dict(state)
    with pytest.raises(ValueError, match="pass strict=False"):
        layer.load_state_dict({"weight": np.ones(3)})
    with pytest.raises(TypeError, match=r"takes a dict of arrays, got .* of type list"):
        layer.load_state_dict([np.ones(3)])  # type: ignore[arg-type]


def test_prefix_that_fits() -> None:
    """Of several prefixes the error names those whose entries fit the layer."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.BatchNorm2d(8)).state_dict()
    with pytest.raises(ValueError, match=r"pass prefix='1\.' or prefix='2\.'\.$"):
        an.BatchNorm(8).load_state_dict(state)


@each_library_and_dtype(LIBRARIES)
def test_files(library: ArrayLibrary, dtype: str, tmp_path: Path) -> None:
    """A file holds every library's arrays bit for bit, with shape and dtype, 0-d counts and nested names."""
    file, values = tmp_path / "state.safetensors", _state(dtype)
    values["matrix"] = np.arange(6).reshape(2, 3).astype(numpy_dtype(dtype)).T  # not in C order
    values["empty"] = np.zeros((0, 2), numpy_dtype(dtype))
    state = {name: library.make(value) for name, value in values.items()}
    an.save_state({"net": {"norm": state}, "alone": state["bias"]}, file)
    loaded = an.load_state(str(file))
    assert set(loaded) == {f"net.norm.{name}" for name in values} | {"alone"}
    for name, value in values.items():
        found = loaded[f"net.norm.{name}"]
        count = library.to_numpy(state[name]).dtype  # int32 on JAX
        assert type(found) is np.ndarray
        assert found.dtype == (count if name == "num_batches_tracked" else value.dtype)
        assert found.shape == value.shape
        assert found.tobytes() == value.astype(found.dtype).tobytes()
        found += 1  # writable


def test_files_of_a_layer_go_anywhere(tmp_path: Path) -> None:
    """What one library's layer saves, another's loads, and both predict the same."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    x = np.random.default_rng(5).normal(size=(8, 3, 4)).astype("float32")
    layer = an.BatchNorm(3, xp=torch)
    layer(torch.from_numpy(x))
    an.save_state(layer.state_dict("norm."), tmp_path / "model.safetensors")
    expected = layer.eval()(torch.from_numpy(x)).numpy()
    for xp in (np, jnp, torch):
        other = an.BatchNorm(3, xp=xp).eval()
        other.load_state_dict(an.load_state(tmp_path / "model.safetensors"), prefix="norm.")
        np.testing.assert_allclose(np.asarray(other(xp.asarray(x))), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_files_beside_safetensors_of_torch(dtype: str, tmp_path: Path) -> None:
    """safetensors.torch reads what save_state wrote, and load_state what safetensors.torch wrote."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    numbers = torch.arange(6.0).reshape(2, 3).to(getattr(torch, dtype)) / 3
    state = {"a.weight": numbers, "count": torch.tensor(5), "mask": torch.tensor([True, False])}
    an.save_state(state, tmp_path / "ours.safetensors")
    files.save_file(state, tmp_path / "theirs.safetensors")
    theirs, ours = files.load_file(tmp_path / "ours.safetensors"), an.load_state(tmp_path / "theirs.safetensors")
    assert sorted(theirs) == list(ours) == sorted(state)
    for name, value in state.items():
        assert theirs[name].dtype == value.dtype
        assert torch.equal(theirs[name], value)
        assert ours[name].shape == tuple(value.shape)
        np.testing.assert_array_equal(ours[name].astype("float64"), value.double().numpy())
    assert ours["a.weight"].dtype == numpy_dtype(dtype)


def test_files_of_big_endian_arrays(tmp_path: Path) -> None:
    """Arrays in another machine's byte order are saved by value."""
    an.save_state({"a": np.asarray([1.0, 256.0], ">f4")}, tmp_path / "a.safetensors")
    found = an.load_state(tmp_path / "a.safetensors")["a"]
    assert found.tolist() == [1.0, 256.0]
    assert found.dtype.isnative


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ([1], TypeError, "state must be a dict"),
        ({"a": [1.0]}, TypeError, "a must be an array"),
        ({"a": {3: np.ones(1)}}, TypeError, "names must be str, got 3 of type int in 'a.'"),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, ValueError, "two entries come to the name 'a.b'"),
        ({"a": np.asarray(["text"])}, ValueError, "which the format does not have"),
    ],
    ids=["list", "no-array", "name", "twice", "strings"],
)
def test_states_that_cannot_be_saved(state: Any, error: type[Exception], words: str, tmp_path: Path) -> None:
    """What cannot be saved is an error before anything is written."""
    with pytest.raises(error, match=words):
        an.save_state(state, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    """A file of another kind is a ValueError that names it, an absent one an OSError; nothing in it is executed."""
    other = tmp_path / "other.pt"
    other.write_bytes(b"\x80\x04cbuiltins\nprint\n(S'executed'\ntR.")
    with pytest.raises(ValueError, match=r"other\.pt is not a safetensors file"):
        an.load_state(other)
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    other.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00")
    with pytest.raises(ValueError, match=r"a in .* has dtype F8_E4M3"):
        an.load_state(other)
    with pytest.raises(FileNotFoundError):
        an.load_state(tmp_path / "absent.safetensors")


def test_without_safetensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where safetensors is missing, saving and loading say what to install."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"save_state: files of this kind need .* pip install safetensors"):
        an.save_state(_state(), tmp_path / "a.safetensors")
    with pytest.raises(ImportError, match=r"load_state: files of this kind need .* pip install safetensors"):
        an.load_state(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where ml_dtypes is missing, torch's bfloat16 can be loaded; what would be NumPy's says what to install."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    file = tmp_path / "a.safetensors"
    state = {"weight": torch.asarray([1.0, 0.3, -2.0], dtype=torch.bfloat16)}
    an.save_state(state, file)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    layer = an.RMSNorm(3)
    layer.load_state_dict(state)
    assert layer.weight.tolist() == state["weight"].tolist()
    for call in (
        lambda: an.RMSNorm(3, dtype="bfloat16"),
        lambda: an.save_state(state, tmp_path / "b.safetensors"),
        lambda: an.load_state(file),
    ):
        with pytest.raises(ImportError, match="pip install ml_dtypes"):
            call()
    assert list(tmp_path.iterdir()) == [file]


@each_library_and_dtype(LIBRARIES)
def test_conversion(library: ArrayLibrary, dtype: str) -> None:
    """There and back gives every value, dtype and shape, of any strides and byte order, and shares no memory."""
    values = np.arange(-3, 3).reshape(2, 3).astype(numpy_dtype(dtype))
    reference = library.make(np.zeros(1, "float32"))
    target = ops_of("test", "x", reference)
    device = getattr(reference, "device", None)
    for given in (values, values.T, values[:, ::-1], values[0, 0].reshape(()), values[:0]):
        source = np.array(given)
        made = from_numpy(source, target, dtype, device)
        source *= 0
        assert type(made) is type(reference)
        assert getattr(made, "device", None) == device
        back = to_numpy(made)
        assert back.dtype == values.dtype
        assert back.shape == given.shape
        np.testing.assert_array_equal(back, given)
        again = copied(made, dtype)
        assert again is not made
        np.testing.assert_array_equal(to_numpy(again), given)


@each_library(["torch"])
def test_conversion_of_what_torch_marks(library: ArrayLibrary) -> None:
    """A tensor that requires a gradient, or is negated lazily, is converted by its values."""
    import torch

    leaf = library.make(np.asarray([1.0, 2.0])).requires_grad_(True)
    assert to_numpy(leaf * 2).tolist() == [2, 4]
    assert not copied(leaf, "float64").requires_grad
    assert to_numpy(torch.tensor([1 + 2j]).conj().imag).tolist() == [-2]
    with pytest.raises(ValueError, match="array_api_strict has no float16 here"):
        dtype_of(ops_of("test", "x", pytest.importorskip("array_api_strict").ones(1)), "float16")


def test_values_that_do_not_fit() -> None:
    """A count beyond JAX's int32 and a weight beyond float16 are refused, and nothing is loaded."""
    jnp: Any = pytest.importorskip("jax.numpy", reason="jax is not installed")
    state = an.BatchNorm(2).state_dict() | {"num_batches_tracked": np.asarray(2**31 + 5), "weight": np.full(2, 7.0)}
    layer = an.BatchNorm(2, xp=jnp)
    with pytest.raises(ValueError, match="2147483653 does not fit int32"):
        layer.load_state_dict(state)
    assert layer.weight.tolist() == [1, 1]
    with pytest.raises(ValueError, match="does not fit float16"):
        an.LayerNorm(2, dtype="float16").load_state_dict({"weight": np.full(2, 1e6), "bias": np.zeros(2)})


def test_file_that_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was saved before stays whole where saving fails halfway, and no other file is left."""
    file = tmp_path / "model.safetensors"
    an.save_state({"a": np.ones(3)}, file)

    def fail(number: int) -> None:
        os.ftruncate(number, 10)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"No space left .*{file.name}"):
        an.save_state({"a": np.zeros(3)}, file)
    assert an.load_state(file)["a"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [file]


def test_name_of_the_format() -> None:
    """The one name that the format keeps for itself is refused."""
    with pytest.raises(ValueError, match="Rename that entry"):
        an.save_state({"__metadata__": np.ones(3)}, "never.safetensors")
