"""An LSTM with layer norm inside its cell reads handwritten digits row by row.

Layer norm, and in its supplement where it goes in an LSTM: J. L. Ba, J. R. Kiros, G. E. Hinton, arXiv:1607.06450, 2016.
Data: scikit-learn's load_digits, 1797 real handwritten digits of 8x8 pixels, 360 of them held out. Rows are time steps.

    python examples/lstm.py [--steps N] [--seed S] [--json]
"""

from __future__ import annotations

import argparse
import json
from statistics import fmean

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from sklearn.datasets import load_digits
from torch import Tensor, nn

import anynorm as an


class LayerNormLSTMCell(nn.Module):
    """One time step, with a layer norm on what comes from the input, from the hidden state, and on the cell state."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(inputs, 4 * width, bias=False)
        self.from_hidden = nn.Linear(width, 4 * width, bias=False)
        self.input_weight = nn.Parameter(torch.ones(4 * width))
        self.hidden_weight = nn.Parameter(torch.ones(4 * width))
        self.gate_bias = nn.Parameter(torch.zeros(4 * width))  # the bias of both norms
        self.cell_weight = nn.Parameter(torch.ones(width))
        self.cell_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, inputs), hidden and cell (N, width) -> the new hidden and cell."""
        gates = an.layer_norm(self.from_input(x), self.input_weight, self.gate_bias)
        gates = gates + an.layer_norm(self.from_hidden(hidden), self.hidden_weight)
        forget, take, show, new = gates.chunk(4, dim=-1)  # each (N, width)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
        hidden = torch.sigmoid(show) * torch.tanh(an.layer_norm(cell, self.cell_weight, self.cell_bias))
        return hidden, cell


class Reader(nn.Module):
    """The cell, step by step over a sequence, and a linear layer that says after each step what it has read."""

    def __init__(self, inputs: int = 8, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.cell = LayerNormLSTMCell(inputs, width)
        self.head = nn.Linear(width, classes)

    def forward(self, sequence: Tensor) -> Tensor:
        """(N, T, inputs) -> (N, T, classes)."""
        hidden = cell = sequence.new_zeros(len(sequence), self.head.in_features)
        seen = []
        for x in sequence.unbind(1):
            hidden, cell = self.cell(x, hidden, cell)
            seen.append(hidden)
        logits: Tensor = self.head(torch.stack(seen, dim=1))
        return logits


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images (N, 8, 8) between 0 and 1 and labels (N,) to learn from, then those held out."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    known, held_out = order[360:], order[:360]
    return images[known], labels[known], images[held_out], labels[held_out]


def train(steps: int = 150, seed: int = 0, verbose: bool = False) -> tuple[Reader, list[float]]:
    """Train on batches of 64 to name the digit after every row; return the network and the loss of each step."""
    torch.manual_seed(seed)
    images, labels, _, _ = digits()
    network = Reader()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        batch = torch.randint(len(labels), (64,))
        logits = network(images[batch])  # (64, 8, 10)
        loss = F.cross_entropy(logits.flatten(0, 1), labels[batch].repeat_interleave(8))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1)
        optimizer.step()
        losses.append(loss.item())
        if verbose and step % 10 == 9:
            print(f"step {step + 1:4}   loss {fmean(losses[-10:]):.4f}", flush=True)
    return network, losses


@torch.no_grad()
def evaluate(network: Reader) -> list[float]:
    """Return the share of held-out digits that are known after each row, the first to the last."""
    _, _, images, labels = digits()
    right = network(images).argmax(-1) == labels[:, None]  # (N, T)
    return [share.item() for share in right.float().mean(0)]


def main() -> None:
    """Train and evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
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
        for row, share in enumerate(results, 1):
            print(f"{share:6.1%} of held-out digits known after {row} of 8 rows")


if __name__ == "__main__":
    main()
