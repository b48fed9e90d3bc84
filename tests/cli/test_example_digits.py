"""The digits example: its own pullbacks are right, it learns, libraries agree, and its command line does what it says.

How exact the norms are is tested elsewhere.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anynorm as an

for needed in ("matplotlib", "rich", "safetensors", "sklearn"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    digits = importlib.import_module("digits")
    network = importlib.import_module("digits_network")
    training = importlib.import_module("digits_training")

# Strict has nothing but what the standard asks for, so that what runs there runs anywhere.
each_standard_library = pytest.mark.parametrize("namespace", ["array_api_compat.numpy", "array_api_strict"])

STEP = 1e-6  # of central differences in float64, whose rounding is then about 1e-10 of what is compared

LAYERS: dict[str, tuple[Callable[..., Any], tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "convolution": (network.Convolution, (2, 4, 6, 3), {"weight": (3, 3, 3, 5)}),
    "convolution of single places": (network.Convolution, (2, 1, 1, 3), {"weight": (3, 3, 3, 2)}),
    "bias": (network.Bias, (2, 4, 6, 3), {"bias": (3,)}),
    "relu": (network.ReLU, (2, 4, 6, 3), {}),
    "pool": (network.Pool, (2, 4, 6, 3), {}),
    "linear": (network.Linear, (4, 2, 2, 3), {"weight": (12, 5), "bias": (5,)}),
}


def import_namespace(name: str) -> Any:
    """Import an array library, or skip the test without it."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


def check_gradients(
    value: Callable[[dict[str, Any]], Any], arguments: dict[str, Any], gradients: dict[str, Any], xp: Any
) -> None:
    """Compare the gradient of a number by each argument with central differences along a random direction."""
    random = np.random.default_rng(3)
    assert set(gradients) == set(arguments)
    for name, argument in arguments.items():
        assert gradients[name].shape == argument.shape
        direction = xp.asarray(random.normal(size=argument.shape))
        ahead, behind = [value(arguments | {name: argument + step * direction}) for step in (STEP, -STEP)]
        difference = float(ahead - behind) / (2 * STEP)
        assert float(xp.sum(gradients[name] * direction)) == pytest.approx(difference, rel=1e-6, abs=1e-7), name


@each_standard_library
@pytest.mark.parametrize("layer", LAYERS)
def test_pullback_of_each_layer(layer: str, namespace: str) -> None:
    """The gradients of x and of every parameter are the derivatives that central differences find."""
    xp = import_namespace(namespace)
    make, shape, shapes = LAYERS[layer]
    random = np.random.default_rng(1)
    arguments = {name: xp.asarray(random.normal(size=value)) for name, value in {"x": shape, **shapes}.items()}

    def run(x: Any, **params: Any) -> tuple[Any, Any]:
        y, pullback = make(xp, **params).vjp(x)
        return y, pullback

    y, pullback = run(**arguments)
    dy = xp.asarray(random.normal(size=y.shape))
    dx, grads = pullback(dy)
    check_gradients(lambda moved: xp.sum(run(**moved)[0] * dy), arguments, {"x": dx, **grads}, xp)


@each_standard_library
def test_gradient_of_the_cross_entropy(namespace: str) -> None:
    """The gradient by the logits is the derivative that central differences find, and large logits do no harm."""
    xp = import_namespace(namespace)
    logits = xp.asarray(np.random.default_rng(1).normal(size=(4, 10)) + 1000)
    labels = xp.asarray([3, 0, 9, 3])
    _, dlogits = network.cross_entropy(xp, logits, labels)

    def loss(moved: dict[str, Any]) -> Any:
        return network.cross_entropy(xp, moved["logits"], labels)[0]

    check_gradients(loss, {"logits": logits}, {"logits": dlogits}, xp)


def test_cross_entropy_of_known_probabilities() -> None:
    """The loss is the mean negative logarithm of the probability that each label has."""
    probabilities = np.asarray([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
    loss, _ = network.cross_entropy(np, np.log(probabilities) + 7, np.asarray([1, 0]))
    assert loss == pytest.approx((np.log(4) + np.log(8)) / 2)


def test_convolution_is_its_formula() -> None:
    """Each place of y is the weighted sum over the 3 x 3 places around it, those outside of x counting 0."""
    random = np.random.default_rng(1)
    x, weight = random.normal(size=(2, 3, 4, 2)), random.normal(size=(3, 3, 2, 5))
    y = np.zeros((2, 3, 4, 5))
    for i, j, a, b in np.ndindex(3, 4, 3, 3):
        if 0 <= i + a - 1 < 3 and 0 <= j + b - 1 < 4:
            y[:, i, j] += x[:, i + a - 1, j + b - 1] @ weight[a, b]
    np.testing.assert_allclose(network.Convolution(np, weight=weight)(x), y, rtol=1e-13)


@each_standard_library
@pytest.mark.parametrize("blocks", [3, 4])
@pytest.mark.parametrize("norm", network.NORMS)
def test_pullback_of_the_network(norm: str, blocks: int, namespace: str) -> None:
    """With every norm, the gradients of all parameters and of the images are those that central differences find."""
    xp = import_namespace(namespace)
    net = network.Network(norm, xp, blocks=blocks, dtype="float64")
    random = np.random.default_rng(4)
    net.params = {
        name: parameter + xp.asarray(0.1 * random.normal(size=parameter.shape))
        for name, parameter in net.params.items()
    }
    images, dy = xp.asarray(random.normal(size=(3, 8, 8, 1))), xp.asarray(random.normal(size=(3, 10)))

    def value(moved: dict[str, Any]) -> Any:
        net.params = {name: tensor for name, tensor in moved.items() if name != "images"}
        return xp.sum(net.vjp(moved["images"])[0] * dy)

    arguments = {"images": images, **net.params}
    dimages, grads = net.vjp(images)[1](dy)
    check_gradients(value, arguments, {"images": dimages, **grads}, xp)


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_it_learns_to_read(norm: str) -> None:
    """With NumPy and the program's own settings, the loss falls 100 times and 97 % of held-out digits are right."""
    xp = training.namespace("numpy")
    data = training.load_data(xp)
    assert data.images.shape == (1437, 8, 8, 1)
    assert data.held_out_images.shape == (360, 8, 8, 1)
    net, losses = training.train(data, norm, xp)
    assert losses[-1] < losses[0] / 100
    assert training.accuracy(training.predict(net, data.held_out_images), data.held_out_labels) >= 0.97


def test_the_seed_decides() -> None:
    """Two trainings by one seed have the same losses and weights to the bit, another seed has others."""
    xp = training.namespace("numpy")
    data = training.load_data(xp)
    first, again, other = [training.train(data, "batch", xp, epochs=1, batch_size=256, seed=s) for s in (5, 5, 6)]
    assert first.losses == again.losses
    states = [trained.network.state_dict() for trained in (first, again)]
    assert [state.tobytes() for state in states[0].values()] == [state.tobytes() for state in states[1].values()]
    assert first.losses != other.losses


def test_evaluation_reads_each_image_by_itself() -> None:
    """A network with batch norm finds in an image what it finds in it alone, and learns nothing from evaluating."""
    xp = training.namespace("numpy")
    data = training.load_data(xp)
    net, _ = training.train(data, "batch", xp, epochs=1, batch_size=64)
    state = {name: value.tobytes() for name, value in net.state_dict().items()}
    images = data.held_out_images[:20]
    alone = np.concatenate([net(images[sample : sample + 1]) for sample in range(20)])
    np.testing.assert_allclose(net(images), alone, rtol=1e-4, atol=1e-5)
    assert {name: value.tobytes() for name, value in net.state_dict().items()} == state


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_libraries_train_alike(library: str) -> None:
    """The losses of a short training are NumPy's, to rounding."""
    import_namespace(library)
    losses = []
    for name in ("numpy", library):
        xp = training.namespace(name)
        # Two blocks have every kind of layer; JAX compiles each operation for each shape.
        data = training.load_data(xp)
        losses.append(training.train(data, "batch", xp, epochs=2, batch_size=512, blocks=2).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_weights_mean_the_same_to_every_library(tmp_path: Path) -> None:
    """Saved by one library and loaded by the next, from NumPy round to NumPy, they predict the same for all images.

    With batch norm, whose running statistics have to go along.
    """
    for library in ("torch", "jax"):
        import_namespace(library)
    xp = training.namespace("numpy")
    data = training.load_data(xp)
    net, _ = training.train(data, "batch", xp, epochs=3)
    expected, logits = training.predict(net, data.held_out_images), net(data.held_out_images)
    assert training.accuracy(expected, data.held_out_labels) > 0.9
    assert training.predict(network.Network("batch", xp), data.held_out_images) != expected
    for library in ("torch", "jax", "numpy"):
        an.save_state(net.state_dict(), tmp_path / library)
        xp = training.namespace(library)
        images = training.load_data(xp).held_out_images
        net = network.Network("batch", xp, seed=1)
        net.load_state_dict(an.load_state(tmp_path / library))
        assert training.predict(net, images) == expected
        np.testing.assert_allclose(np.asarray(net(images)), logits, rtol=1e-4, atol=1e-4)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run the command line in this process; return what it printed as JSON."""
    digits.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("norm", network.NORMS)
def test_command_line_trains_saves_and_loads(norm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With every norm it trains, tells accuracy and losses, and what it saved predicts the same when loaded."""
    file = str(tmp_path / "digits.safetensors")
    found = run(capsys, "--norm", norm, "--epochs", "2", "--batch-size", "64", "--save", file)
    assert found["norm"] == norm
    assert found["losses"][1] < found["losses"][0]
    assert len(found["predictions"]) == 360
    assert 0.3 < found["accuracy"] <= 1
    loaded = run(capsys, "--norm", norm, "--load", file)
    assert (loaded["predictions"], loaded["accuracy"]) == (found["predictions"], found["accuracy"])


def test_program_runs_as_a_command() -> None:
    """Started as a program of its own it prints a table, and nothing on stderr where that is no terminal."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / "digits.py"), "--epochs", "1", "--norm", "rms"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8", timeout=100)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "numpy" in ran.stdout
    assert "rms" in ran.stdout
    assert " %" in ran.stdout


def test_picture_of_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a PNG, and its numbers are the losses of every norm."""
    file = tmp_path / "losses.png"
    found = run(capsys, "--picture", str(file), "--epochs", "1", "--batch-size", "256")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert list(found["norms"]) == list(network.NORMS)
    assert len({tuple(result["losses"]) for result in found["norms"].values()}) == len(network.NORMS)


def test_picture_of_batch_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a PNG, and its numbers are an accuracy for each network, norm, batch size and seed."""
    monkeypatch.setattr(digits, "BATCH_SIZES", (256, 512))
    monkeypatch.setattr(digits, "NORMS_AGAINST_BATCH_SIZE", ("batch", "none"))
    file = tmp_path / "batch_sizes.png"
    found = run(capsys, "--picture-batch-sizes", str(file), "--epochs", "1", "--seeds", "2")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert len(found["runs"]) == 2 * 2 * 2
    assert all(len(result["accuracies"]) == 2 for result in found["runs"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--batch-size", "0"], "0 is not positive", id="no samples in a batch"),
        pytest.param(["--batch-size", "1438"], "more than the 1437 samples", id="batch larger than the data"),
        pytest.param(["--load", "nothing/here"], "nothing/here", id="no such file"),
        pytest.param(["--load", __file__], "not a safetensors file", id="file of another format"),
        pytest.param(["--array-library", "dask"], "invalid choice", id="library it does not know"),
    ],
)
def test_wrong_use_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ends with status 2 and a sentence about what is wrong, and no traceback."""
    with pytest.raises(SystemExit) as ended:
        digits.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_weights_of_another_network_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights saved with one norm are not taken for those of another."""
    file = tmp_path / "digits.safetensors"
    an.save_state(network.Network("group", np).state_dict(), file)
    with pytest.raises(SystemExit) as ended:
        digits.main(["--norm", "batch", "--load", str(file)])
    assert ended.value.code == 2
    assert "norm1.running_mean is missing" in capsys.readouterr().err
