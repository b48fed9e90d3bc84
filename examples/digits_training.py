"""The digits and how the network learns them: gradient descent with momentum, the same on any array library.

What belongs to one library only is here: how its namespace is imported. Draws and prints nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from digits_network import Network, cross_entropy
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# Where each library's array API namespace is: array-api-compat gives three of them what the standard asks for.
NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "cupy": "array_api_compat.cupy",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
}

HELD_OUT = 360
EPOCHS, BATCH_SIZE = 10, 32
RATE, MOMENTUM = 0.04, 0.9  # the rate for 32 samples in a batch
WARM_UP = 0.3  # the part of training in which the rate rises


class Digits(NamedTuple):
    """Images (N, 8, 8, 1) and labels (N,): those to learn from and those held out."""

    images: Any
    labels: Any
    held_out_images: Any
    held_out_labels: Any


class Trained(NamedTuple):
    """A trained network, and its mean loss over each epoch."""

    network: Network
    losses: list[float]


def namespace(library: str) -> Any:
    """Import a library and return its array API namespace."""
    return importlib.import_module(NAMESPACES[library])


def load_data(xp: Any) -> Digits:
    """Return scikit-learn's handwritten digits, 1437 to learn from and 360 held out.

    The split is always the same, with equal parts of each digit; the pixels of those to learn from have mean 0 and
    standard deviation 1.
    """
    digits = load_digits()
    images, held_out_images, labels, held_out_labels = train_test_split(
        digits.images[..., None], digits.target, test_size=HELD_OUT, stratify=digits.target, random_state=0
    )
    mean, spread = images.mean(), images.std()
    return Digits(
        xp.asarray((images - mean) / spread, dtype=xp.float32),
        xp.asarray(labels),
        xp.asarray((held_out_images - mean) / spread, dtype=xp.float32),
        xp.asarray(held_out_labels),
    )


def learning_rate(done: float, batch_size: int) -> float:
    """Return the rate when a part of the training, from 0 to 1, is done: up in a line, then down to 0 in another.

    It is proportional to the batch size: P. Goyal et al., arXiv:1706.02677, 2017, who also begin with small steps.
    """
    return RATE * batch_size / 32 * min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


def train(
    digits: Digits,
    norm: str,
    xp: Any,
    *,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    blocks: int = 3,
    report: Callable[[int, float], None] = lambda epoch, loss: None,  # noqa: ARG005
) -> Trained:
    """Train a network. In each epoch, samples that do not fill a batch are left out; they are others each time.

    The order of the samples and the first weights follow from the seed alone, and so does the result on one library;
    another library's differs by rounding.
    """
    network = Network(norm, xp, blocks=blocks, seed=seed)
    velocity = {name: xp.zeros_like(parameter) for name, parameter in network.params.items()}
    random = np.random.default_rng(seed)
    count = digits.labels.shape[0]
    steps = count // batch_size  # in an epoch
    losses = []
    for epoch in range(epochs):
        order = xp.asarray(random.permutation(count))
        of_steps = []
        for step in range(steps):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            logits, pullback = network.vjp(xp.take(digits.images, chosen, axis=0))
            loss, dlogits = cross_entropy(xp, logits, xp.take(digits.labels, chosen, axis=0))
            _, grads = pullback(dlogits)
            rate = learning_rate((epoch * steps + step + 0.5) / (epochs * steps), batch_size)
            velocity = {name: MOMENTUM * value + grads[name] for name, value in velocity.items()}
            network.params = {name: parameter - rate * velocity[name] for name, parameter in network.params.items()}
            of_steps.append(loss)
        losses.append(fmean([float(loss) for loss in of_steps]))
        report(epoch, losses[-1])
    return Trained(network, losses)


def predict(network: Network, images: Any) -> list[int]:
    """Return the digit that the network takes each image for."""
    found = network.xp.argmax(network(images), axis=1)
    return [int(found[sample]) for sample in range(found.shape[0])]


def accuracy(predictions: list[int], labels: Any) -> float:
    """Return the part of the predictions that is right."""
    return fmean([predicted == int(labels[sample]) for sample, predicted in enumerate(predictions)])
