"""A residual network with batch norm reads handwritten digits, and shows what its running statistics are for.

Deep residual learning: K. He, X. Zhang, S. Ren, J. Sun, arXiv:1512.03385, 2015.
Batch norm: S. Ioffe, C. Szegedy, arXiv:1502.03167, 2015.
Data: scikit-learn's load_digits, 1797 real handwritten digits of 8x8 pixels, 200 of them held out.

    python examples/resnet.py [--steps N] [--seed S] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
from statistics import fmean

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from sklearn.datasets import load_digits
from torch import Tensor, nn

from anynorm_torch.nn import BatchNorm2d, frozen_statistics


class ResidualBlock(nn.Module):
    """x + f(x), f being two convolutions; where the channels change, height and width are halved."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),  # the norm would take a bias away again
            BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()  # the identity
        if stride == 2:
            self.shortcut.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W) or (N, outputs, H/2, W/2)."""
        return F.relu(self.shortcut(x) + self.residual(x))


class ResNet(nn.Module):
    """A stem, three pairs of residual blocks, and a linear layer on what they see on average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), BatchNorm2d(16), nn.ReLU())
        widths = [16, 16, 16, 32, 32, 64, 64]
        self.blocks = nn.Sequential(*[ResidualBlock(a, b) for a, b in itertools.pairwise(widths)])
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        x: Tensor = self.blocks(self.stem(images))  # (N, 64, 2, 2)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images (N, 1, 8, 8) between 0 and 1 and labels (N,) to learn from, then those held out."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    known, held_out = order[200:], order[:200]
    return images[known], labels[known], images[held_out], labels[held_out]


def train(steps: int = 60, seed: int = 0, verbose: bool = False) -> tuple[ResNet, list[float]]:
    """Train on batches of 64; return the network and the loss of each step."""
    torch.manual_seed(seed)
    images, labels, _, _ = digits()
    network = ResNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        batch = torch.randint(len(labels), (64,))
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        if verbose and step % 10 == 9:
            print(f"step {step + 1:4}   loss {fmean(losses[-10:]):.4f}", flush=True)
    return network, losses


@torch.no_grad()
def evaluate(network: ResNet) -> dict[str, float]:
    """Return shares of digits that are read rightly, by several ways to normalize them."""
    known, known_labels, images, labels = digits()

    def accuracy(logits: Tensor, right: Tensor) -> float:
        return (logits.argmax(1) == right).float().mean().item()

    network.eval()  # normalize by the running statistics: an image's result depends on that image alone
    result = {
        "known": accuracy(network(known), known_labels),
        "held out": accuracy(network(images), labels),
        "held out, one image at a time": accuracy(torch.cat([network(image[None]) for image in images]), labels),
    }
    network.train()  # normalize by the batch, here of one image
    with frozen_statistics(network):
        own = torch.cat([network(image[None]) for image in images])
    return result | {"held out, one image at a time by its own statistics": accuracy(own, labels)}


def main() -> None:
    """Train and evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print losses and results as JSON")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    network, losses = train(options.steps, options.seed, verbose=not options.json)
    results = evaluate(network)
    if options.json:
        print(json.dumps({"losses": losses, "results": results}))
    else:
        for what, share in results.items():
            print(f"{share:6.1%} right: {what}")


if __name__ == "__main__":
    main()
