"""A transformer encoder finds where words end in text without spaces, by layer norm or RMS norm.

Transformer: A. Vaswani et al., arXiv:1706.03762, 2017. Norms ahead of each part: R. Xiong et al., arXiv:2002.04745,
2020. RMS norm: B. Zhang, R. Sennrich, arXiv:1910.07467, 2019. A norm on queries and keys: A. Henry et al.,
arXiv:2010.04245, 2020. Rotary embedding of places: J. Su et al., arXiv:2104.09864, 2021.
Data: the language reference that Python's own help() shows (pydoc_data), as the letters a to z without what lies
between words; held out is the Zen of Python (import this).

    python examples/transformer.py [--norm layer|rms] [--steps N] [--seed S] [--json]
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import re
import textwrap
from pydoc_data.topics import topics
from statistics import fmean

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from torch import Tensor, nn

import anynorm as an
from anynorm_torch.nn import LayerNorm, RMSNorm

NORMS = {"layer": LayerNorm, "rms": RMSNorm}
LENGTH = 64  # letters that are seen at once


def rotated(x: Tensor) -> Tensor:
    """Turn pairs of features by angles that grow with the place: products of two then tell how far apart they are."""
    angle = torch.arange(x.shape[-2])[:, None] / 30 ** torch.linspace(0, 1, x.shape[-1] // 2)  # (T, features/2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


class Attention(nn.Module):
    """Attention in several heads, with an RMS norm per head on queries and keys, so that logits stay in bounds."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.query_scale = nn.Parameter(torch.ones(1, heads, 1, width // heads))
        self.key_scale = nn.Parameter(torch.ones(1, heads, 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        projected = self.project(x).unflatten(-1, (3, self.heads, -1))  # (N, T, 3, heads, width/heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each (N, heads, T, width/heads)
        query = rotated(an.rms_norm(query, self.query_scale))
        key = rotated(an.rms_norm(key, self.key_scale))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, norm: str) -> None:
        super().__init__()
        self.attention = nn.Sequential(NORMS[norm](width), Attention(width, heads), nn.Linear(width, width))
        mlp = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(NORMS[norm](width), *mlp)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


class Encoder(nn.Module):
    """Letters in, for each the log odds that a word ends with it out."""

    def __init__(self, norm: str, width: int = 64, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.letter = nn.Embedding(26, width)
        self.blocks = nn.Sequential(*[Block(width, heads, norm) for _ in range(depth)])
        self.head = nn.Sequential(NORMS[norm](width), nn.Linear(width, 1))

    def forward(self, letters: Tensor) -> Tensor:
        """(N, T) -> (N, T)."""
        odds: Tensor = self.head(self.blocks(self.letter(letters)))[..., 0]
        return odds


def letters_and_ends(text: str) -> tuple[Tensor, Tensor]:
    """Return the letters of a text as numbers 0 to 25, and a 1 for each that ends a word, a 0 for the others."""
    words = re.findall("[a-z]+", text.lower())
    letters = torch.tensor([ord(letter) - ord("a") for letter in "".join(words)])
    ends = torch.tensor([float(place == len(word)) for word in words for place in range(1, len(word) + 1)])
    return letters, ends


def train(steps: int = 200, seed: int = 0, norm: str = "layer", verbose: bool = False) -> tuple[Encoder, list[float]]:
    """Train on batches of 32 pieces of text; return the network and the loss of each step."""
    torch.manual_seed(seed)
    letters, ends = letters_and_ends(" ".join(topics[name] for name in sorted(topics)))
    network = Encoder(norm)
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-3)
    losses = []
    for step in range(steps):
        piece = torch.randint(len(letters) - LENGTH, (32, 1)) + torch.arange(LENGTH)
        loss = F.binary_cross_entropy_with_logits(network(letters[piece]), ends[piece])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        if verbose and step % 10 == 9:
            print(f"step {step + 1:4}   loss {fmean(losses[-10:]):.4f}", flush=True)
    return network, losses


@torch.no_grad()
def evaluate(network: Encoder) -> dict[str, float | str]:
    """Return how many word ends in the Zen of Python are found, how many found are right, and how it then reads."""
    with contextlib.redirect_stdout(None):  # it prints itself when imported
        import this
    letters, ends = letters_and_ends(codecs.decode(this.s, "rot13"))
    found = torch.cat([network(piece[None])[0] for piece in torch.split(letters, LENGTH)]) > 0
    right = (found * ends).sum()
    read = "".join(chr(ord("a") + letter) + " " * end for letter, end in zip(letters, found.tolist(), strict=True))
    return {"recall": (right / ends.sum()).item(), "precision": (right / found.sum().clamp(min=1)).item(), "text": read}


def main() -> None:
    """Train and evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--norm", choices=NORMS, default="layer")
    parser.add_argument("--json", action="store_true", help="print losses and results as JSON")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    network, losses = train(options.steps, options.seed, options.norm, verbose=not options.json)
    results = evaluate(network)
    if options.json:
        print(json.dumps({"losses": losses, "results": results}))
    else:
        print(f"found {results['recall']:.1%} of the word ends, {results['precision']:.1%} of those found are right:")
        print(textwrap.fill(str(results["text"]), 100))


if __name__ == "__main__":
    main()
