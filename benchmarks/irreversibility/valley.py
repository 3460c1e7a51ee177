r"""Whether learning prefers the trajectories of least entropy production: phi along a valley of equal loss.

Two-layer nets :math:`f = W_2\,a(W_1x)` with a linear or ReLU, the loss :math:`E` half the squared error, are
brought to the bottom of the valley that rescaling :math:`(W_1,W_2)\to(cW_1,W_2/c)` makes, and set off far
from balance, at c = 2. All expectations over noise are closed forms, so that

.. math:: \phi(\theta) = (\eta/4)\,\mathrm{E}\|g\|^2 = (\eta/4)(\|\bar g\|^2 + \mathrm{tr}\,\Sigma(\theta))

has no sampling error, and the force :math:`-\nabla\phi` that predicts the path is its exact gradient.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["DYNAMICS", "SEEDS", "Valley", "plan", "walk"]

INPUTS, HIDDEN, OUTPUTS, SAMPLES, BATCH = 8, 16, 4, 256, 16
SEEDS = (0, 1, 2)
NOISE = {"minibatch": 0.5, "labels": 3.0}
"""Standard deviation of the label noise: fixed in the data, of which minibatches are drawn, or fresh at every
step of the whole batch, whose clean labels a net of this size can fit."""

UNBALANCE = 2.0
RATE = 0.03
STEPS = 8_000
SETTLE, SETTLE_RATE = 4_000, 0.05
"""Full-batch descent to the bottom of the valley, before it is set off."""

POINTS = 40
DESCENT = 400
"""Steps of full-batch descent from every point recorded to the bottom below it: it keeps the balance to order
eta, and phi is then compared at equal loss."""

DYNAMICS = ("noise", "force", "isotropic", "flow")
"""SGD itself; descent on E + phi, which is the prediction; isotropic noise of the same energy; no noise."""


@dataclass(frozen=True)
class Valley:
    """One experiment; its seeds run side by side.

    Attributes:
        net: ``linear`` or ``relu``.
        noise: ``minibatch`` or ``labels``.
        dynamics: of :data:`DYNAMICS`.
        rate: step size.
        steps: how many.
    """

    net: str
    noise: str
    dynamics: str
    rate: float = RATE
    steps: int = STEPS


def plan() -> list[Valley]:
    """Return all experiments, then SGD and its prediction at half the step size on the linear net."""
    whole = [
        Valley(net, noise, dynamics) for net in ("linear", "relu") for noise in NOISE for dynamics in DYNAMICS
    ]
    return whole + [Valley("linear", noise, d, RATE / 2) for noise in NOISE for d in ("noise", "force")]


class Nets:
    """Nets and data of all seeds, ``[seeds, ...]`` each, with their exact sums over noise."""

    def __init__(self, net: str, noise: str, rate: float = RATE) -> None:
        self.rate = rate
        parts = []
        for seed in SEEDS:
            rng = torch.Generator().manual_seed(seed)
            draw = [(SAMPLES, INPUTS), (HIDDEN, INPUTS), (OUTPUTS, HIDDEN), (SAMPLES, OUTPUTS)]
            parts.append([torch.randn(shape, generator=rng, dtype=torch.float64) for shape in draw])
        self.x, first, second, error = (torch.stack(part) for part in zip(*parts, strict=True))
        self.relu = net == "relu"
        self.noise = noise
        self.w1, self.w2 = first / INPUTS**0.5, second / HIDDEN**0.5
        self.y = self.outputs(self.w1, self.w2)[1]
        if noise == "minibatch":
            self.y = self.y + NOISE[noise] * error

    def hidden(self, w1: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden units ``[seeds, n, HIDDEN]``, and where they are on."""
        before = x @ w1.transpose(1, 2)
        on = (before > 0).to(before.dtype) if self.relu else torch.ones_like(before)
        return before * on, on

    def outputs(self, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden units, outputs, and where units are on."""
        a, on = self.hidden(w1, self.x)
        return a, a @ w2.transpose(1, 2), on

    def gradient(self, w1: Tensor, w2: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Of the mean loss over the rows given."""
        a, on = self.hidden(w1, x)
        r = (a @ w2.transpose(1, 2) - y) / x.shape[1]
        return ((r @ w2) * on).transpose(1, 2) @ x, r.transpose(1, 2) @ a

    def energies(self, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss E, squared length of the mean gradient, and trace of the noise's covariance, ``[seeds]``."""
        a, f, on = self.outputs(w1, w2)
        r = f - self.y
        loss = r.square().sum((1, 2)) / (2 * SAMPLES)
        mean2 = sum((g.square().sum((1, 2)) for g in self.gradient(w1, w2, self.x, self.y)), torch.zeros(()))
        lengths, heights = self.x.square().sum(2), a.square().sum(2)
        if self.noise == "minibatch":
            back = ((r @ w2) * on).square().sum(2)
            each = (r.square().sum(2) * heights + back * lengths).mean(1)
            return loss, mean2, (each - mean2) / BATCH
        fan = (on * w2.square().sum(1, keepdim=True)).sum(2)  # ‖W₂ diag(on)‖² of each row
        jacobian = (OUTPUTS * heights + fan * lengths).sum(1)
        return loss, mean2, NOISE["labels"] ** 2 / SAMPLES**2 * jacobian

    def bottoms(self, path: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Points at the bottom of the valley below those of a path, found side by side."""
        n = len(path)
        x, y = self.x.repeat(n, 1, 1), self.y.repeat(n, 1, 1)
        w1, w2 = (torch.cat(parts) for parts in zip(*path, strict=True))
        for _ in range(DESCENT):
            g1, g2 = self.gradient(w1, w2, x, y)
            w1, w2 = w1 - SETTLE_RATE * g1, w2 - SETTLE_RATE * g2
        return list(zip(w1.chunk(n), w2.chunk(n), strict=True))

    def phi(self, w1: Tensor, w2: Tensor) -> Tensor:
        """(eta/4) E‖g‖², ``[seeds]``; differentiable."""
        _, mean2, noise = self.energies(w1, w2)
        return self.rate / 4 * (mean2 + noise)


def walk(it: Valley) -> dict[str, Any]:
    """Follow one dynamics down one valley.

    Returns:
        The row: the experiment, ``step`` ``[points]``, and ``phi``, ``loss``, ``balance`` (‖W₁‖² - ‖W₂‖²),
        ``phi_bottom``, ``loss_bottom`` (those of the bottom below), each ``[points, seeds]``; ``seconds``.
    """
    start = time.perf_counter()
    nets = Nets(it.net, it.noise, it.rate)
    w1, w2 = nets.w1, nets.w2
    for _ in range(SETTLE):
        g1, g2 = nets.gradient(w1, w2, nets.x, nets.y)
        w1, w2 = w1 - SETTLE_RATE * g1, w2 - SETTLE_RATE * g2
    w1, w2 = w1 * UNBALANCE, w2 / UNBALANCE
    rng = torch.Generator().manual_seed(12)
    marks = sorted({round(i * it.steps / POINTS) for i in range(POINTS + 1)})
    path: list[tuple[Tensor, Tensor]] = []
    for step in range(it.steps + 1):
        if step == marks[len(path)]:
            path.append((w1, w2))
        if step < it.steps:
            g1, g2 = _step(nets, w1, w2, it.dynamics, rng)
            w1, w2 = w1 - it.rate * g1, w2 - it.rate * g2
    record: dict[str, Any] = {"step": marks, "phi": [], "loss": [], "balance": []}
    for v1, v2 in path:
        record["phi"].append(nets.phi(v1, v2).tolist())
        record["loss"].append(nets.energies(v1, v2)[0].tolist())
        record["balance"].append((v1.square().sum((1, 2)) - v2.square().sum((1, 2))).tolist())
    below = nets.bottoms(path)
    record["phi_bottom"] = [nets.phi(*point).tolist() for point in below]
    record["loss_bottom"] = [nets.energies(*point)[0].tolist() for point in below]
    return {**asdict(it), **record, "seconds": round(time.perf_counter() - start, 2)}


def _step(nets: Nets, w1: Tensor, w2: Tensor, dynamics: str, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a step of a dynamics moves against, over eta."""
    if dynamics == "noise":
        if nets.noise == "minibatch":
            rows = torch.randint(SAMPLES, (len(SEEDS), BATCH, 1), generator=rng)
            x = nets.x.gather(1, rows.expand(-1, -1, INPUTS))
            return nets.gradient(w1, w2, x, nets.y.gather(1, rows.expand(-1, -1, OUTPUTS)))
        shift = torch.randn(nets.y.shape, generator=rng, dtype=torch.float64)
        return nets.gradient(w1, w2, nets.x, nets.y + NOISE["labels"] * shift)
    g1, g2 = nets.gradient(w1, w2, nets.x, nets.y)
    if dynamics == "force":
        v1, v2 = w1.detach().requires_grad_(True), w2.detach().requires_grad_(True)
        f1, f2 = torch.autograd.grad(nets.phi(v1, v2).sum(), (v1, v2))
        return g1 + f1, g2 + f2
    if dynamics == "isotropic":
        noise = nets.energies(w1, w2)[2]
        size = (noise / (w1[0].numel() + w2[0].numel())).sqrt().view(-1, 1, 1)
        g1 = g1 + size * torch.randn(w1.shape, generator=rng, dtype=torch.float64)
        g2 = g2 + size * torch.randn(w2.shape, generator=rng, dtype=torch.float64)
    return g1, g2
