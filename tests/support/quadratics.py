"""Noisy quadratics to close control loops on, and what a law must find there in closed form.

Every coordinate of a layer feels ``g = h (x - goal) + sigma/sqrt(B) n`` with white noise n. In equilibrium
Adam makes of it the linear recursion

    mu' = beta mu + (1 - beta)(y + n),    y' = y - a mu',    a = lr h/sqrt(v),    v = sigma**2 (1 + Y)

in y = h (x - goal)/sigma, with Y the variance of y, whose covariance has a closed form (:func:`equilibrium`).
v is taken as constant, which at beta2 = 0.99 is right to about 2 %.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from thermoopt import ThermoAdamW
from thermoopt.controllers.thermostat import Thermostat

BETA1 = 0.9
N0 = (1 - BETA1) / (1 + BETA1)

SHAPES = ((20, 20), (15, 20), (25, 20))
SIZES = torch.tensor([n * m for n, m in SHAPES])
SCALES = (1 / 8, 1 / 4, 1 / 2)
"""Rms of the layers at the start. All have fan-in 20, so their gains compare like their rms, and the
median is below He's. Ratios are powers of two: the rounding of layer factors changes nothing."""

UNITS = tuple(7 / 6 * s for s in SCALES)
"""Units of the layers in metric ``"rms"``: the mean rms, 7/24, times gain over median gain: 1/2, 1, 2."""

UNIT = UNITS[1]
"""Their geometric mean: lr over it is the rate D of a law in metric ``"rms"``."""


# ------------------------------------------------------------------ closed forms


def heat(lr, h, sigma):
    """Return a and Y of one coordinate: ``a sqrt(1 + Y) = lr h/sigma``, by bisection."""
    lo, hi = 0.0, 2 / N0  # at a = 2/n0 the motion is no longer stable
    for _ in range(100):
        a = (lo + hi) / 2
        big_y = (a / 2) / (1 - N0 * a / 2)
        lo, hi = (a, hi) if a * math.sqrt(1 + big_y) < lr * h / sigma else (lo, a)
    return a, big_y


def equilibrium(lr, h, sigma):
    """Coherence, loss and <g, U> of one coordinate; coherence comes out as 1/(1 + a beta/(1 + beta))."""
    a, big_y = heat(lr, h, sigma)
    update = N0 / (1 - N0 * a / 2)  # variance of mu
    work = sigma * (1 - BETA1 + a * update / 2) / math.sqrt(1 + big_y)
    return update / (N0 * (1 + big_y)), sigma**2 * big_y / (2 * h), work


def expected(lr, h, sigma):
    """Coherence of all layers together, and their loss and <g, U> in total."""
    rows = np.array([equilibrium(lr, hl, sl) for hl, sl in zip(h, sigma, strict=True)])
    coherence, loss, work = (rows * SIZES.numpy()[:, None]).sum(axis=0)
    return coherence / int(SIZES.sum()), loss, work


def solve(function, lo=1e-6, hi=1e6):
    """Root of a function that falls, by bisection in the logarithm."""
    for _ in range(100):
        middle = math.sqrt(lo * hi)
        lo, hi = (middle, hi) if function(middle) > 0 else (lo, middle)
    return middle


# ------------------------------------------------------------------ the bench


class Trace(NamedTuple):
    """What a run did, one row a step.

    Attributes:
        lr: of the layer whose unit is :data:`UNIT`.
        loss: before the step.
        done: loss released to first order, <g, theta before - after>: sigma without an average.
        distance: rms way from the start in the layers' units, before the step.
    """

    lr: np.ndarray
    loss: np.ndarray
    done: np.ndarray
    distance: np.ndarray


def _spread(values):
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(SIZES)


class Bench:
    """Layers of very different scale under one thermostat.

    Args:
        law: name of the law; None for a fixed lr.
        h, sigma: curvature and noise of each layer.
        total: length of the run the thermostat is told.
        away: distance of the goal in every coordinate, in units of the layer.
        lr, beta2, ema_steps: of the optimizer.
        exact: layers in float64, else in float32, which the native kernel steps in a third of the time.
        options: for the thermostat.
    """

    def __init__(
        self,
        law,
        *,
        h,
        sigma,
        total=1000,
        away=0.0,
        lr=1e-2,
        beta2=0.99,
        ema_steps=None,
        exact=True,
        seed=0,
        **options,
    ):
        self._rng = torch.Generator().manual_seed(seed)
        self._h, self._sigma, self._unit = _spread(h), _spread(sigma), _spread(UNITS)
        parts = [x / x.square().mean().sqrt() for x in self._noise().split(SIZES.tolist())]
        self._exact, self._start = exact, _spread(SCALES) * torch.cat(parts)
        self.x = self._start.clone() if exact else self._start.float()
        self._goal = self._start + away * self._unit * self._noise().sign()
        self.params = [torch.nn.Parameter(part) for part in self._layers(self.x)]
        self._law, self._total = law, total
        self._optim = {"lr": lr, "betas": (BETA1, beta2), "ema_steps": ema_steps}
        self.opt = self._build(options)

    def _build(self, options):
        law = None if self._law is None else Thermostat(self._law, total_steps=self._total, **options)
        fixed = {"eps": 1e-30, "weight_decay": 0.0, "measure_every": 1}
        fixed["backend"] = "torch" if self._exact else "auto"
        return ThermoAdamW(self.params, controller=law, **fixed, **self._optim)

    def _noise(self):
        return torch.randn(int(SIZES.sum()), generator=self._rng, dtype=torch.float64)

    def _layers(self, flat):
        return [part.view(shape) for part, shape in zip(flat.split(SIZES.tolist()), SHAPES, strict=True)]

    def run(self, steps, *, noise=1.0, curvature=1.0, batch=1.0, slope=None):
        """Take steps, noise, curvature and batch size multiplied; with ``slope`` a constant force instead."""
        rows = []
        for _ in range(steps):
            before = self.x.double() if not self._exact else self.x.clone()
            off = before - self._goal
            g = curvature * self._h * off
            loss = 0.5 * float(g @ off)
            g += noise / math.sqrt(batch) * self._sigma * self._noise()
            if slope is not None:
                g.fill_(slope)
            for p, part in zip(self.params, self._layers(g), strict=True):
                p.grad = part.to(p.dtype)
            self.opt.report_loss(loss)
            self.opt.step()
            way = ((before - self._start) / self._unit).square().mean().sqrt()
            group = self.opt.param_groups[0]
            lr = group["lr"] * group["thermo"]["lr_scale"]
            rows.append((lr, loss, float(g @ (before - self.x)), float(way)))
        return Trace(*np.array(rows).T)

    def put(self, factor):
        """Put the lever elsewhere, as a checkpoint would."""
        state = self.opt.controller.state_dict()
        lever = state["cohorts"]["all"]["lever"]
        lever["value"] = lever["target"] = factor * lever["value"]
        self.opt.controller.load_state_dict(state)

    def resume(self, **options):
        """Go on from a checkpoint with other options of the thermostat."""
        saved = self.opt.state_dict()
        self.opt = self._build(options)
        self.opt.load_state_dict(saved)


# ------------------------------------------------------------------ what a loop is judged by


def settled(values, goal, band):
    """Steps until the values stay within a relative band about the goal."""
    outside = np.flatnonzero(np.abs(np.log(values / goal)) > math.log(1 + band))
    return int(outside[-1]) + 1 if len(outside) else 0


def overshoot(values, goal):
    """Largest factor by which the values leave the interval between where they start and the goal."""
    lo, hi = sorted((values[0], goal))
    return max(values.max() / hi, lo / values.min())


def swings(values, goal, band):
    """How often the values go from above the band about the goal to below it, or back."""
    off = np.log(values / goal)
    side = np.sign(off[np.abs(off) > math.log(1 + band)])
    return int((np.diff(side) != 0).sum())
