"""Draw the pictures of docs/dashboard.md and docs/findings.md: healthy, sick and autotuned runs, measured.

Each trains a GPT of 2 blocks and width 64 (the Python standard library's bytes, 512 a batch) for 400 steps by
AdamW with warm-up and linear cooling; what makes a run sick is one entry of ``SICK``. Some minutes:

    python docs/pictures.py            # everything
    python docs/pictures.py too_high   # the healthy run and this one
    python docs/pictures.py autotuned  # the autotuned run alone
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune, diagnose, make_param_groups
from thermoopt.demo import GPT, GPTConfig, load_corpus
from thermoopt.demo.corpus import batches

STEPS = 400
LR = 3e-3
PICTURES = Path(__file__).with_name("pictures")
BLUE, RED, GREY = "#1f5fa8", "#c0392b", "#777777"


@dataclass
class Sick:
    """What is done to a run, and the quantities that show it."""

    what: str
    panels: tuple[str, ...]
    lr: float = LR
    decay: float = 0.01
    beta1: float = 0.9
    prepare: Callable[[nn.Module, torch.optim.Optimizer], None] = lambda model, optimizer: None
    layer: str | None = None


def dead(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Cut a layer off, as a detach() behind it would."""
    model.get_parameter("blocks.1.mlp.up.weight").register_hook(torch.zeros_like)


def noisy(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Add noise of 30 times the norm to every gradient."""
    for p in model.parameters():
        p.register_hook(lambda g: g + 30 * g.norm() * torch.randn_like(g) / g.numel() ** 0.5)


def fast_layer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let one layer run at 300 times the rate."""
    group = next(g for g in optimizer.param_groups if "blocks.1.mlp.down" in str(g["name"]))
    group["lr"] *= 300


def slow_half(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let the blocks' maps run at a thousandth of the rate."""
    for group in optimizer.param_groups:
        if "mlp" in str(group["name"]):
            group["lr"] *= 1e-3


SICK = {
    "too_high": Sick("learning rate 100 times the tuned one", ("gaussianity", "r"), lr=100 * LR),
    "too_low": Sick("learning rate a thousandth of the tuned one", ("r", "angular_step"), lr=LR / 1000),
    "collapse": Sick("decay takes 3 % of the weights a step", ("wd_balance", "param_norm"), decay=0.03 / LR),
    "overdamped": Sick("momentum over 1000 steps (β₁ = 0.999)", ("coherence", "rho_momentum"), beta1=0.999),
    "noise": Sick("noise of 30 times the gradient's norm", ("rho_momentum", "r"), prepare=noisy),
    "dead": Sick(
        "one layer cut off from the loss",
        ("grad_norm", "angular_step"),
        prepare=dead,
        layer="blocks.1.mlp.up.weight",
    ),
    "exploding": Sick(
        "one layer at 300 times the rate",
        ("param_norm", "angular_step"),
        prepare=fast_layer,
        layer="blocks.1.mlp.down.weight",
    ),
    "out_of_step": Sick(
        "the MLPs at a thousandth of the rate",
        ("angular_step", "r"),
        prepare=slow_half,
        layer="blocks.1.mlp.up.weight",
    ),
}

WORDS = {
    "gaussianity": "gaussianity (0.798: Gaussian)",
    "r": "r (1: equilibrium)",
    "angular_step": "angular step, radians",
    "wd_balance": "R_wd (1: decay balances growth)",
    "param_norm": "norm of the weights",
    "coherence": "coherence (1: pure noise)",
    "rho_momentum": "cosine of gradient and moment",
    "grad_norm": "norm of the gradient",
}
NULLS = {"gaussianity": 0.798, "r": 1.0, "wd_balance": 1.0, "coherence": 1.0, "rho_momentum": 0.0}
LOG = {"r", "angular_step", "wd_balance", "coherence", "grad_norm"}


def steps(model, optimizer, observer: Observer, corpus, scheduler=None) -> Observer:
    """Take the steps of a run, clipped at 1, and return its observer."""
    draws = batches(corpus.train, 8, model.config.context, 0)
    for _ in range(STEPS):
        x, y = next(draws)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        observer.step(loss=loss)
    return observer


def train(case: Sick, corpus) -> Observer:
    """Train one run and return its observer."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(depth=2, width=64))
    groups = make_param_groups(model, lr=case.lr, weight_decay=case.decay)
    optimizer = torch.optim.AdamW(groups, lr=case.lr, betas=(case.beta1, 0.999))
    case.prepare(model, optimizer)
    observer = Observer(model, optimizer, log_every=5)
    scheduler = ThermoScheduler(optimizer, STEPS, warmup_steps=20, shape="linear")
    return steps(model, optimizer, observer, corpus, scheduler)


def autotuned(corpus) -> Observer:
    """Train the same network without a learning rate and return an observer of the run."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(depth=2, width=64))
    groups = make_param_groups(model, weight_decay=0.01, by="decay")
    optimizer = ThermoAdamW(groups, controller=autotune(STEPS))
    observer = Observer(model, optimizer)
    return steps(model, optimizer, observer, corpus)


def column(observer: Observer, quantity: str, layer: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a quantity, of all parameters or of one layer."""
    history = observer.history
    if layer is None:
        return history.steps, history.total(quantity)
    return history.layer_steps, history.layers(quantity)[:, list(history.layer_names).index(layer)]


def side_by_side(name: str, case: Sick, healthy: Observer, sick: Observer) -> None:
    """Draw loss and deciding quantities of both runs."""
    figure = Figure(figsize=(12, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots(1, 1 + len(case.panels))
    for observer, colour, label in ((healthy, BLUE, "healthy"), (sick, RED, case.what)):
        losses = observer.losses
        width = np.ones(10) / 10
        smooth = np.convolve(losses.values, width, "valid")
        axes[0].plot(losses.steps[9:], smooth, color=colour, label=label)
        for ax, quantity in zip(axes[1:], case.panels, strict=True):
            steps, values = column(observer, quantity, case.layer)
            ax.plot(steps, np.where(values > 0, values, np.nan) if quantity in LOG else values, color=colour)
    axes[0].set_title("loss, nats a byte", loc="left", fontsize=10)
    axes[0].set_ylim(top=min(axes[0].get_ylim()[1], 12))
    for ax, quantity in zip(axes[1:], case.panels, strict=True):
        where = f" of {case.layer.removesuffix('.weight')}" if case.layer else ""
        ax.set_title(WORDS[quantity] + where, loc="left", fontsize=10)
        if quantity in NULLS:
            ax.axhline(NULLS[quantity], color=GREY, ls="--", lw=1)
        if quantity in LOG:
            ax.set_yscale("log")
    for ax in axes:
        ax.set_xlabel("step", fontsize=9)
        ax.tick_params(which="both", labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    figure.savefig(PICTURES / f"{name}.png")


def main(names: list[str]) -> None:
    """Train the healthy run and those named, draw, and print what diagnose says."""
    corpus = load_corpus()
    if not names or "autotuned" in names:
        observer = autotuned(corpus)
        observer.plot_dashboard(PICTURES / "autotuned_dashboard.png")
        print("autotuned:", diagnose(observer), *observer.optimizer.controller.log, sep="\n", flush=True)
        if names == ["autotuned"]:
            return
        names = [name for name in names if name != "autotuned"]
    healthy = train(Sick("healthy", ()), corpus)
    healthy.plot_dashboard(PICTURES / "healthy_dashboard.png")
    print("healthy:", diagnose(healthy), flush=True)
    for name in names or SICK:
        observer = train(SICK[name], corpus)
        side_by_side(name, SICK[name], healthy, observer)
        if name == "too_high":
            observer.plot_dashboard(PICTURES / f"{name}_dashboard.png")
        print(f"{name}:", diagnose(observer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
