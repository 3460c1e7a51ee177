"""The registry of workloads."""

from __future__ import annotations

import difflib

from thermoopt.benchmarks.workloads.arithmetic import ADDITION, MODULAR
from thermoopt.benchmarks.workloads.bpe import BPE_TEXT
from thermoopt.benchmarks.workloads.contrast import CONTRAST
from thermoopt.benchmarks.workloads.diffusion import DDPM, UNET
from thermoopt.benchmarks.workloads.digits import CONV_DIGITS
from thermoopt.benchmarks.workloads.encoder import ENCODER_TEXT
from thermoopt.benchmarks.workloads.factors import FACTORS, SKIPGRAM
from thermoopt.benchmarks.workloads.fields import PINN, SIREN_IMAGE
from thermoopt.benchmarks.workloads.flow import FLOW
from thermoopt.benchmarks.workloads.gan import GAN_DIGITS
from thermoopt.benchmarks.workloads.gpt import GPT_TEXT
from thermoopt.benchmarks.workloads.graph import GRAPH
from thermoopt.benchmarks.workloads.kinds import KINDS
from thermoopt.benchmarks.workloads.linear import LINEAR
from thermoopt.benchmarks.workloads.logistic import LOGISTIC
from thermoopt.benchmarks.workloads.maze import MAZE
from thermoopt.benchmarks.workloads.minilm import MINILM
from thermoopt.benchmarks.workloads.mixer import MIXER_DIGITS
from thermoopt.benchmarks.workloads.quantiles import QUANTILES
from thermoopt.benchmarks.workloads.recurrent import GRU_TEXT, LSTM_TEXT
from thermoopt.benchmarks.workloads.ridge import RIDGE
from thermoopt.benchmarks.workloads.sets import SETS
from thermoopt.benchmarks.workloads.signals import CNN_MNIST1D, MLP_MNIST1D
from thermoopt.benchmarks.workloads.tables import CANCER, DIABETES, FRIEDMAN, WINE
from thermoopt.benchmarks.workloads.task import Task, Workload
from thermoopt.benchmarks.workloads.tcn import TCN_SERIES
from thermoopt.benchmarks.workloads.tuning import FINETUNE, LORA, STAGED
from thermoopt.benchmarks.workloads.vae import VAE_DIGITS
from thermoopt.benchmarks.workloads.vit import VIT_DIGITS
from thermoopt.benchmarks.workloads.wikitext import WIKITEXT, WIKITEXT_PYTHIA

__all__ = ["FURTHER", "HELD_OUT", "WORKLOADS", "Task", "Workload", "get"]

WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        GPT_TEXT,
        GRU_TEXT,
        CNN_MNIST1D,
        MLP_MNIST1D,
        CONV_DIGITS,
        LINEAR,
        VIT_DIGITS,
        LSTM_TEXT,
        BPE_TEXT,
        LOGISTIC,
        RIDGE,
        MINILM,
        WIKITEXT,
        WIKITEXT_PYTHIA,
        WINE,
        CANCER,
        DIABETES,
        FRIEDMAN,
        MIXER_DIGITS,
        DDPM,
        UNET,
        ENCODER_TEXT,
        MODULAR,
        SKIPGRAM,
        FACTORS,
        PINN,
        GAN_DIGITS,
        MAZE,
        FINETUNE,
        LORA,
        STAGED,
        ADDITION,
        SIREN_IMAGE,
        GRAPH,
        VAE_DIGITS,
        FLOW,
        CONTRAST,
        SETS,
        TCN_SERIES,
        QUANTILES,
        *KINDS,
    )
}
"""Every workload by name."""

HELD_OUT = ("flow", "contrast", "sets", "tcn", "quantiles")
"""Workloads on which no constant of a control law was chosen: run once, reported as they are."""

FURTHER = tuple(w.name for w in KINDS)
"""Workloads on which the default was chosen among variants, that were looked at beside it, or on which it was
found to fail: neither to choose on nor held out."""


def get(name: str) -> Workload:
    """Look a workload up.

    Raises:
        ValueError: if there is none of that name; the message lists the nearest and all names.
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    near = difflib.get_close_matches(name, WORKLOADS, n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise ValueError(f"unknown workload {name!r}{meant} Workloads: {', '.join(WORKLOADS)}")
