"""A U-Net with group norm takes the noise out of photographs, trained on four small crops at a time.

U-Net: O. Ronneberger, P. Fischer, T. Brox, arXiv:1505.04597, 2015. Group norm, to which it does not matter how few
images a batch has: Y. Wu, K. He, arXiv:1803.08494, 2018. Learning the noise instead of the image: K. Zhang et al.,
arXiv:1608.03981, 2016.
Data: the two real photographs that come with scikit-learn, a temple and a flower, with Gaussian noise added. It learns
from the left half of each and is tried on the right.

    python examples/unet.py [--steps N] [--seed S] [--json]
"""

from __future__ import annotations

import argparse
import json
from statistics import fmean

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from anynorm_torch.nn import GroupNorm

NOISE = 0.1  # standard deviation; pixels lie between 0 and 1


def double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """(N, inputs, H, W) -> (N, outputs, H, W): twice a convolution, a norm over groups of channels, and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        GroupNorm(4, outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        GroupNorm(4, outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Down to a quarter of height and width and up again, each level handing its detail across."""

    def __init__(self, fine: int = 16, middle: int = 32, coarse: int = 64) -> None:
        super().__init__()
        self.down = nn.ModuleList([double_convolution(3, fine), double_convolution(fine, middle)])
        self.bottom = double_convolution(middle, coarse)
        self.widen = nn.ModuleList([nn.ConvTranspose2d(coarse, middle, 2, 2), nn.ConvTranspose2d(middle, fine, 2, 2)])
        self.up = nn.ModuleList([double_convolution(2 * middle, middle), double_convolution(2 * fine, fine)])
        self.noise = nn.Conv2d(fine, 3, 1)

    def forward(self, noisy: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, H, W)."""
        x, across = noisy, []
        for level in self.down:
            x = level(x)
            across.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)  # (N, coarse, H/4, W/4)
        for widen, level in zip(self.widen, self.up, strict=True):
            x = level(torch.cat([across.pop(), widen(x)], dim=1))
        clean: Tensor = noisy - NOISE * self.noise(x)
        return clean


def photographs() -> tuple[Tensor, Tensor]:
    """Return the left and the right halves of both photographs, (2, 3, 424, 320), their pixels between 0 and 1."""
    pixels = [torch.tensor(load_sample_image(name)[:424]) for name in ("china.jpg", "flower.jpg")]
    left, right = (torch.stack(pixels).permute(0, 3, 1, 2) / 255).chunk(2, dim=-1)
    return left, right


def crops(photos: Tensor, size: int = 48) -> Tensor:
    """Return two random squares of each photograph, (4, 3, size, size)."""
    corners = [[int(torch.randint(length - size, ())) for length in photos.shape[2:]] for _ in range(2)]
    return torch.cat([photos[:, :, top : top + size, left : left + size] for top, left in corners])


def decibels(image: Tensor, clean: Tensor) -> float:
    """Return the peak signal-to-noise ratio of an image."""
    return -10 * F.mse_loss(image, clean).log10().item()


def train(steps: int = 150, seed: int = 0, verbose: bool = False) -> tuple[UNet, list[float]]:
    """Train on batches of 4 crops; return the network and the loss of each step, 1 being that of the noise itself."""
    torch.manual_seed(seed)
    photos, _ = photographs()
    network = UNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-3)
    losses = []
    for step in range(steps):
        clean = crops(photos)
        loss = F.mse_loss(network(clean + NOISE * torch.randn(clean.shape)), clean) / NOISE**2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        if verbose and step % 10 == 9:
            print(f"step {step + 1:4}   loss {fmean(losses[-10:]):.4f}", flush=True)
    return network, losses


@torch.no_grad()
def evaluate(network: UNet) -> dict[str, float]:
    """Return decibels of the halves it has not seen: noisy, under the best of some Gaussian blurs, and denoised."""
    _, clean = photographs()
    noisy = clean + NOISE * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    place = torch.arange(-4, 5.0)
    blurred = []
    for width in (0.6, 0.8, 1.0, 1.5):
        bell = torch.softmax(-((place / width) ** 2) / 2, dim=0)
        padded = F.pad(noisy, (4, 4, 4, 4), "reflect")
        blurred.append(F.conv2d(padded, bell.outer(bell).expand(3, 1, 9, 9), groups=3))
    best = max(decibels(image, clean) for image in blurred)
    return {"noisy": decibels(noisy, clean), "blurred": best, "denoised": decibels(network(noisy), clean)}


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
        for what, ratio in results.items():
            print(f"{ratio:6.2f} dB: {what}")


if __name__ == "__main__":
    main()
