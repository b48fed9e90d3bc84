"""A CycleGAN with instance norm makes thin digits bold and bold ones thin, without ever seeing a pair.

CycleGAN: J.-Y. Zhu, T. Park, P. Isola, A. A. Efros, arXiv:1703.10593, 2017. Instance norm: D. Ulyanov, A. Vedaldi, V.
Lempitsky, arXiv:1607.08022, 2016. Least squares for the adversarial loss: X. Mao et al., arXiv:1611.04076, 2016.
Data: scikit-learn's real digits, enlarged to 16x16: 800 as they are (domain a), 800 others made bold by the maximum
over 3x3 pixels (b). None has its partner in the other domain; the partners of those held out show how well it went.

    python examples/cyclegan.py [--steps N] [--seed S] [--json]
"""

from __future__ import annotations

import argparse
import json
from statistics import fmean

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from sklearn.datasets import load_digits
from torch import Tensor, nn

from anynorm_torch.nn import InstanceNorm2d


class ResidualBlock(nn.Module):
    """x + f(x), f being two convolutions of reflected padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):  # no bias: the norm would take it away again
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=False), InstanceNorm2d(width), nn.ReLU()]
        self.residual = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        y: Tensor = x + self.residual(x)
        return y


def generator(width: int = 8, blocks: int = 2) -> nn.Sequential:
    """(N, 1, 16, 16) -> the same: down to 4x4, residual blocks, up again; all between -1 and 1."""
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(1, width, 7, bias=False), InstanceNorm2d(width), nn.ReLU()]
    for w in (width, 2 * width):
        layers += [nn.Conv2d(w, 2 * w, 3, 2, 1, bias=False), InstanceNorm2d(2 * w), nn.ReLU()]
    layers += [ResidualBlock(4 * width) for _ in range(blocks)]
    for w in (2 * width, width):
        layers += [nn.ConvTranspose2d(2 * w, w, 3, 2, 1, 1, bias=False), InstanceNorm2d(w), nn.ReLU()]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7), nn.Tanh())


def discriminator(width: int = 16) -> nn.Sequential:
    """(N, 1, 16, 16) -> (N, 1, 3, 3): for each of nine overlapping patches, 1 for real and 0 for made up."""
    layers = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), InstanceNorm2d(2 * width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(2 * width, 1, 4, 1, 1))


class CycleGAN(nn.Module):
    """Two generators, one each way, and a discriminator for each domain."""

    def __init__(self) -> None:
        super().__init__()
        self.to_a, self.to_b = generator(), generator()
        self.real_a, self.real_b = discriminator(), discriminator()

    def generator_loss(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the generators' loss, and the translations b made thin and a made bold."""
        fake_a, same_a = self.to_a(torch.cat([b, a])).chunk(2)  # one call: to an instance norm, samples are separate
        fake_b, same_b = self.to_b(torch.cat([a, b])).chunk(2)
        adversarial = (self.real_a(fake_a) - 1).square().mean() + (self.real_b(fake_b) - 1).square().mean()
        cycle = F.l1_loss(self.to_a(fake_b), a) + F.l1_loss(self.to_b(fake_a), b)
        identity = F.l1_loss(same_a, a) + F.l1_loss(same_b, b)
        return adversarial + 10 * cycle + 5 * identity, fake_a.detach(), fake_b.detach()

    def discriminator_loss(self, a: Tensor, b: Tensor, fake_a: Tensor, fake_b: Tensor) -> Tensor:
        """Return how wrong the discriminators are about real images and made up ones."""
        on_real: Tensor = (self.real_a(a) - 1).square().mean() + (self.real_b(b) - 1).square().mean()
        on_fake: Tensor = self.real_a(fake_a).square().mean() + self.real_b(fake_b).square().mean()
        return (on_real + on_fake) / 2


def bold(images: Tensor) -> Tensor:
    """Return images with each pixel as bright as the brightest of its 3x3 neighbourhood."""
    return F.max_pool2d(images, 3, stride=1, padding=1)


def domains() -> tuple[Tensor, Tensor, Tensor]:
    """Return domain a, domain b, and 197 images of a held out, all (N, 1, 16, 16) between -1 and 1."""
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, size=(16, 16), mode="bilinear")
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return images[:800], bold(images[800:1600]), images[1600:]


def train(steps: int = 100, seed: int = 0, verbose: bool = False) -> tuple[CycleGAN, list[float]]:
    """Train on batches of 8 from each domain; return the networks and the generators' loss of each step."""
    torch.manual_seed(seed)
    domain_a, domain_b, _ = domains()
    gan = CycleGAN()
    translating = torch.optim.Adam([*gan.to_a.parameters(), *gan.to_b.parameters()], lr=2e-3, betas=(0.5, 0.999))
    judging = torch.optim.Adam([*gan.real_a.parameters(), *gan.real_b.parameters()], lr=2e-3, betas=(0.5, 0.999))
    losses = []
    for step in range(steps):
        a, b = domain_a[torch.randint(800, (8,))], domain_b[torch.randint(800, (8,))]
        loss, fake_a, fake_b = gan.generator_loss(a, b)
        translating.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        translating.step()
        judging.zero_grad()  # also of what the generators' loss left there
        gan.discriminator_loss(a, b, fake_a, fake_b).backward()  # type: ignore[no-untyped-call]
        judging.step()
        losses.append(loss.item())
        if verbose and step % 10 == 9:
            print(f"step {step + 1:4}   loss {fmean(losses[-10:]):.4f}", flush=True)
    return gan, losses


@torch.no_grad()
def evaluate(gan: CycleGAN) -> dict[str, float]:
    """Return mean distances per pixel of held-out digits to what they should be, 2 being from black to white."""
    _, _, thin = domains()
    return {
        "thin digits to their bold partners": F.l1_loss(thin, bold(thin)).item(),
        "thin digits made bold to those": F.l1_loss(gan.to_b(thin), bold(thin)).item(),
        "bold digits made thin to their thin partners": F.l1_loss(gan.to_a(bold(thin)), thin).item(),
        "thin digits made bold and thin again to themselves": F.l1_loss(gan.to_a(gan.to_b(thin)), thin).item(),
    }


def main() -> None:
    """Train and evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
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
        for what, distance in results.items():
            print(f"{distance:6.3f} from {what}")


if __name__ == "__main__":
    main()
