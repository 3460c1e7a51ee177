"""What sampling costs a law in accuracy: distance, work and impulse of a sample and of all elements.

Networks of 4.3 to 6.2 million parameters are trained with AdamW, while a law's three sums are kept for every
element. A sample takes one block out of every few. Shifting it by one block gives another sample, and all of
them together give the standard error of one: the root mean square of the relative deviation of its sum over
the layers, in the layers' units, from the sum of all elements.

    python -m thermoopt.benchmarks.control.sampling --out runs/control/sampling
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.control.cost import Network
from thermoopt.demo import batches, load_corpus
from thermoopt.tensors import STRIDE, block_size

__all__ = ["NETWORKS", "estimates", "main", "relative_errors"]

Loss = Callable[[], Tensor]

SHARES = (STRIDE, 31, 67)
"""One block in so many is sampled: as it is, and what was tried. Primes, so that all columns are met."""

STEPS = 60

FORGET = math.sqrt(0.999)
"""By what the sums of a law forget in a step (:class:`thermoopt.physics.travel.Weights`)."""

SUMS = ("distance", "work", "impulse")


def estimates(values: Tensor, p: Tensor, share: int) -> Tensor:
    """Return what each of ``share`` samples makes of a layer's sum, ``[share]``.

    Args:
        values: of the layer's elements, in memory order.
        p: the layer.
        share: one block in so many is sampled.
    """
    n, block = values.numel(), block_size(p, share)
    blocks = n // (share * block)
    if not blocks:
        blocks, block = 1, n // share
    taken = values.reshape(-1)[: blocks * share * block].view(blocks, share, block)
    return taken.double().sum(dim=(0, 2)) * (n / max(1, blocks * block))


def relative_errors(
    net: nn.Module, loss: Loss, steps: int, shares: tuple[int, ...]
) -> dict[int, list[float]]:
    """Train; return the relative standard error of each of :data:`SUMS` by share."""
    params = list(net.parameters())
    start = [p.detach().clone() for p in params]
    impulse, work = ([torch.zeros_like(p) for p in params] for _ in range(2))
    optimizer = torch.optim.AdamW(params, 1e-3)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss().backward()
        lr = optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, step / (0.1 * steps))
        for p, x0, s, w in zip(params, start, impulse, work, strict=True):
            assert p.grad is not None
            s.mul_(FORGET).add_(p.grad, alpha=lr)
            w.mul_(FORGET).add_(p.grad * (x0 - p.detach()), alpha=lr)
        optimizer.step()
    sizes = [float(x0.square().mean().sqrt()) for x0 in start]
    typical = sum(s for s, p in zip(sizes, params, strict=True) if p.ndim > 1) / sum(
        p.ndim > 1 for p in params
    )
    units = [s if p.ndim > 1 else typical for s, p in zip(sizes, params, strict=True)]
    out = {}
    for share in shares:
        sums, whole = torch.zeros(3, share, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
        for p, x0, s, w, unit in zip(params, start, impulse, work, units, strict=True):
            for row, values in enumerate(((p.detach() - x0).square() / unit**2, w / unit, s.abs())):
                sums[row] += estimates(values, p, share)
                whole[row] += values.double().sum()
        sums[0], whole[0] = sums[0].sqrt(), whole[0].sqrt()
        out[share] = (sums / whole - 1).square().mean(dim=1).sqrt().tolist()
    return out


# ------------------------------------------------------------------ networks


def _text(batch: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    return batches(load_corpus().train, batch, length, seed=0)


def transformer() -> tuple[nn.Module, Loss]:
    """A causal transformer on bytes of text."""
    net, text = Network(), _text(8, 64)

    def loss() -> Tensor:
        x, y = next(text)
        return net(torch.cat([x, y[:, -1:]], dim=1).long())

    return net, loss


def lstm() -> tuple[nn.Module, Loss]:
    """Two layers of LSTM on bytes of text."""
    table, body, readout = nn.Embedding(256, 512), nn.LSTM(512, 512, 2, batch_first=True), nn.Linear(512, 256)
    text = _text(8, 32)

    def loss() -> Tensor:
        x, y = next(text)
        return F.cross_entropy(readout(body(table(x.long()))[0]).flatten(0, 1), y.long().flatten())

    return nn.ModuleList([table, body, readout]), loss


def _digits(batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    rng = torch.Generator().manual_seed(0)
    while True:
        rows = torch.randint(0, len(x), (batch,), generator=rng)
        yield x[rows].float() / 16, y[rows].long()


def mlp() -> tuple[nn.Module, Loss]:
    """A perceptron of width 1024 on digits, half of whose units rest at any time."""
    widths = [64, 1024, 1024, 1024, 1024, 1024]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    net, data = nn.Sequential(*layers, nn.Linear(1024, 10)), _digits(64)

    def loss() -> Tensor:
        x, y = next(data)
        return F.cross_entropy(net(x), y)

    return net, loss


def conv() -> tuple[nn.Module, Loss]:
    """Convolutions of 128 to 512 channels on digits."""
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    )
    for a, b in ((128, 256), (256, 512), (512, 512), (512, 512)):
        net.extend([nn.Conv2d(a, b, 3, padding=1), nn.ReLU()])
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)])
    data = _digits(16)

    def loss() -> Tensor:
        x, y = next(data)
        return F.cross_entropy(net(x), y)

    return net, loss


def skipgram() -> tuple[nn.Module, Loss]:
    """Two tables of 16,384 rows of 160, most of them idle: pairs of neighbours, by Zipf's law."""
    words, contexts = nn.Embedding(16_384, 160), nn.Embedding(16_384, 160)
    rng = torch.Generator().manual_seed(0)
    often = 1 / torch.arange(1, 16_385).double()

    def loss() -> Tensor:
        near = torch.multinomial(often, 512, replacement=True, generator=rng)
        word = (near + torch.randint(0, 8, (512,), generator=rng)) % 16_384
        return F.cross_entropy(words(word) @ contexts(near).T / 13, torch.arange(512))

    return nn.ModuleList([words, contexts]), loss


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Loss]]] = {
    "transformer": transformer,
    "LSTM": lstm,
    "perceptron": mlp,
    "convolutions": conv,
    "two look-up tables": skipgram,
}


def main() -> None:
    """Train, compare, and write a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder for sampling.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    of = " | ".join(f"{name}, 1 in {share}" for name in SUMS for share in SHARES)
    lines = [f"| network | parameters | {of} |", "| --- | ---: |" + " ---: |" * (len(SUMS) * len(SHARES))]
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        net, loss = make()
        found = relative_errors(net, loss, args.steps, SHARES)
        size = sum(p.numel() for p in net.parameters()) / 1e6
        cells = " | ".join(f"{found[share][row]:.2%}" for row in range(len(SUMS)) for share in SHARES)
        lines.append(f"| {name} | {size:.1f} M | {cells} |")
        print(lines[-1], flush=True)
    text = (
        "# What a sample costs in accuracy\n\n"
        "The table shows the relative standard error of one sample's sum over all layers, in the layers' "
        f"units, compared with the sum\nof all elements, after {args.steps} steps of AdamW "
        "(`python -m thermoopt.benchmarks.control.sampling`). Laws are given one block\nof up to 16 "
        f"elements in every {STRIDE}.\n\n"
    )
    text += "\n".join(lines) + "\n"
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "sampling.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
