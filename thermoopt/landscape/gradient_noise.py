r"""Noise and curvature of a real network at fixed parameters, in Adam's metric.

A reading's ``thermal_loss`` is :math:`(\eta/4)B` for the gradients during training. Here the parameters are
held fixed and many minibatch gradients are drawn, which gives an independent estimate of B; the curvature in
which this noise acts tells how much of it can be in equilibrium (:class:`NoiseSpectrum`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from thermoopt.landscape.river_valley import relaxation

__all__ = ["GradientNoise", "NoiseSpectrum", "gradient_noise", "noise_spectrum"]

Array = NDArray[np.float64]

NEGLIGIBLE = 1e-10
"""Fraction of the first Lanczos vector's scale below which the next is rounding: the space is exhausted."""


@dataclass(frozen=True)
class GradientNoise:
    r"""Energy of minibatch gradients at fixed parameters, by layer, in Adam's metric.

    Attributes:
        energy: :math:`B = \langle\sum g^2/(\sqrt{\hat v}+\epsilon)\rangle` by layer, [L/th].
        signal: :math:`\sum\bar g^2/(\sqrt{\hat v}+\epsilon)` by layer, unbiased (may be negative), [L/th].
        error: standard error of the total energy, [L/th].
        batches: number of gradients drawn.
    """

    energy: Mapping[str, float]
    signal: Mapping[str, float]
    error: float
    batches: int

    @property
    def total_energy(self) -> float:
        """B summed over layers."""
        return sum(self.energy.values())

    @property
    def total_signal(self) -> float:
        """Signal summed over layers."""
        return sum(self.signal.values())

    @property
    def noise(self) -> dict[str, float]:
        """Energy minus signal, by layer."""
        return {name: self.energy[name] - self.signal[name] for name in self.energy}

    def thermal_loss(self, eta: float) -> float:
        r"""Thermal loss if all of this energy were noise in equilibrium, :math:`(\eta/4)B`, [L]."""
        return eta / 4 * self.total_energy


@dataclass(frozen=True)
class NoiseSpectrum:
    r"""Distribution of the noise over curvatures: the measure :math:`\sum_j w_j\,\delta(a - a_j)`.

    Attributes:
        curvatures: :math:`a_j`, eigenvalues of :math:`P^{1/2}HP^{1/2}`, in units of 1/(Adam's rate).
        weights: :math:`w_j`, noise energy at each curvature; their sum is the noise part of B, [L/th].
    """

    curvatures: Array
    weights: Array

    @property
    def downhill_share(self) -> float:
        """Fraction of the noise in directions of negative curvature, where nothing confines it."""
        return float(self.weights[self.curvatures <= 0].sum() / self.weights.sum())

    def largest_rate(self, beta1: float = 0.9) -> float:
        r"""Learning rate at which the steepest mode becomes unstable, :math:`2(1+\beta_1)/((1-\beta_1)a)`.

        Infinite without positive curvature.
        """
        a = float(self.curvatures.max())
        return 2 * (1 + beta1) / ((1 - beta1) * a) if a > 0 else np.inf

    def thermal_losses(self, etas: ArrayLike, beta1: float = 0.9) -> Array:
        r"""Thermal loss along a schedule that starts cold, ``[steps + 1]``, [L].

        The sum of :func:`thermoopt.landscape.relaxation` over all modes of positive curvature.

        Raises:
            ValueError: if a rate is outside the stable range (:meth:`largest_rate`), where a mode diverges in
                a parabola but not in a network, or as :func:`thermoopt.landscape.relaxation`.
        """
        up = self.curvatures > 0
        if np.size(etas) and np.max(etas) >= self.largest_rate(beta1):
            raise ValueError(
                f"etas must stay below {self.largest_rate(beta1):.6g}, where the steepest mode "
                f"becomes unstable and a thermal loss meaningless, got up to {np.max(etas):.6g}"
            )
        out = relaxation(self.curvatures[up], etas, 0.0, np.sqrt(self.weights[up]), beta1)
        return np.asarray(out.sum(axis=1))

    def equilibrated_fraction(self, etas: ArrayLike, beta1: float = 0.9) -> float:
        r"""Thermal loss at the end of a schedule over :math:`(\eta/4)\sum_j w_j` at its last rate, no unit.

        Raises:
            ValueError: if the last rate is 0.
        """
        rates = np.asarray(etas, dtype=np.float64)
        if not rates.size or not rates[-1] > 0:
            raise ValueError(f"etas must end with a rate > 0, got {rates[-1:]!r}")
        return float(self.thermal_losses(rates, beta1)[-1] / (rates[-1] / 4 * self.weights.sum()))


def gradient_noise(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], batches: int = 64
) -> GradientNoise:
    r"""Draw minibatch gradients at fixed parameters.

    Each is weighted as in Adam's next step, with :math:`\hat v' \propto \beta_2 v + (1-\beta_2)g^2`: an
    element that was hardly ever used has a v near 0, and without its own contribution to v,
    :math:`g^2/\sqrt v` would be arbitrarily large.

    Costs ``batches`` gradients and the memory of one float64 copy of the parameters. Parameters, their
    ``grad``, the model's buffers and the optimizer are not changed; layers without Adam's moments are left
    out.

    Args:
        model: names the layers.
        optimizer: an AdamW, Adam or ThermoAdamW that has taken a step; its second moments are the metric.
        loss: returns the loss of the next minibatch; every call draws one.
        batches: number of gradients, at least 2.

    Raises:
        ValueError: for parameters of low precision, a loss that is not differentiable or not finite, or
            missing Adam moments, each of which would make the results meaningless.
    """
    if isinstance(batches, bool) or batches != int(batches) or batches < 2:
        raise ValueError(f"batches must be an integer >= 2, got {batches!r}")
    layers = _layers(model, optimizer)
    params = [layer.p for layer in layers.values()]
    mean = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    energies = np.zeros((batches, len(params)))
    with _unmoved(model):
        for i in range(batches):
            for j, (layer, g) in enumerate(zip(layers.values(), _gradient(loss, params), strict=True)):
                q = g.double() * layer.root(g.double().square())
                energies[i, j] = q.square().sum().item()
                mean[j] += q / batches
    energy = energies.mean(axis=0)
    of_mean = np.array([q.square().sum().item() for q in mean])
    noise = batches / (batches - 1) * (energy - of_mean)
    error = float(energies.sum(axis=1).std(ddof=1) / np.sqrt(batches))
    return GradientNoise(
        dict(zip(layers, energy.tolist(), strict=True)),
        dict(zip(layers, (energy - noise).tolist(), strict=True)),
        error,
        int(batches),
    )


def noise_spectrum(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    curved: Callable[[], Tensor],
    *,
    vectors: int = 2,
    iterations: int = 16,
) -> NoiseSpectrum:
    r"""Resolve the gradient noise by the curvature of the loss, with Lanczos quadrature.

    The start vectors are :math:`P^{1/2}(g-g')/\sqrt2` for two minibatches, whose covariance is that of the
    noise, and the operator is :math:`P^{1/2}HP^{1/2}`, where :math:`P = 1/(\sqrt{\hat v'}+\epsilon)` includes
    the mean of their squares: its Ritz values and squared first components are Gauss nodes and weights of the
    spectral measure of the noise. Costs ``vectors * iterations`` Hessian-vector products and
    ``iterations + 4`` copies of the parameters.

    Args:
        model, optimizer, loss: as for :func:`gradient_noise`.
        curved: returns the loss whose Hessian is used, on a batch larger than the training batches.
        vectors: number of start vectors to average over, at least 1.
        iterations: nodes per start vector, at least 1.

    Raises:
        ValueError: as :func:`gradient_noise`.
        RuntimeError: from torch, if an operation has no second derivative (for attention on CPU use
            ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``).

    References:
        Golub and Meurant, Matrices, moments and quadrature, 2010; the noise as start vector: derived for this
        project.
    """
    for name, value in (("vectors", vectors), ("iterations", iterations)):
        if isinstance(value, bool) or value != int(value) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    layers = _layers(model, optimizer)
    params = [layer.p for layer in layers.values()]
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            warnings.warn(
                f"{name} has active dropout: the curvature is that of one draw; model.eval() gives the mean",
                RuntimeWarning,
                stacklevel=2,
            )

    found = []
    with _unmoved(model):
        slope = _gradient(curved, params, twice=True)
        for _ in range(vectors):
            g, h = _gradient(loss, params), _gradient(loss, params)
            roots = [
                layer.root((a.double().square() + b.double().square()) / 2)
                for layer, a, b in zip(layers.values(), g, h, strict=True)
            ]
            start = _flat([(a - b) / 2**0.5 for a, b in zip(g, h, strict=True)], roots)
            found.append(_lanczos(_operator(slope, params, roots), start, iterations))
    return NoiseSpectrum(
        np.concatenate([nodes for nodes, _ in found]),
        np.concatenate([weights for _, weights in found]) / vectors,
    )


def _flat(tensors: Sequence[Tensor], roots: Sequence[Tensor]) -> Tensor:
    return torch.cat([(t.double() * root).flatten() for t, root in zip(tensors, roots, strict=True)])


def _operator(
    slope: Sequence[Tensor], params: Sequence[Tensor], roots: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return the product of the Hessian, in the metric given by its roots, with a flat vector."""

    def curve(q: Tensor) -> Tensor:
        parts = q.split([p.numel() for p in params])
        v = [(x.view_as(p) * root).to(p.dtype) for x, p, root in zip(parts, params, roots, strict=True)]
        return _flat(
            torch.autograd.grad(
                slope, params, v, retain_graph=True, allow_unused=True, materialize_grads=True
            ),
            roots,
        )

    return curve


def _lanczos(curve: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[Array, Array]:
    """Return Gauss nodes and weights, fully orthogonalised; the weights sum to the start's squared norm."""
    energy = start.square().sum().item()
    basis = [start / start.norm()]
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(min(iterations, start.numel())):
        w = curve(basis[-1])
        alphas.append((w @ basis[-1]).item())
        for _ in range(2):  # once is not enough in floating point
            for q in basis:
                w = w - (w @ q) * q
        beta = w.norm().item()
        if beta <= NEGLIGIBLE * max(abs(a) for a in alphas) or len(alphas) == iterations:
            break
        betas.append(beta)
        basis.append(w / beta)
    off = betas[: len(alphas) - 1]
    nodes, ritz = np.linalg.eigh(np.diag(alphas) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, energy * ritz[0] ** 2


@dataclass(frozen=True)
class _Layer:
    """A parameter and Adam's state for it."""

    p: Tensor
    v: Tensor
    step: float
    beta2: float
    eps: float

    def root(self, g2: Tensor) -> Tensor:
        """Return the square root of the next step's preconditioner for these squared gradients."""
        v = (self.beta2 * self.v + (1 - self.beta2) * g2) / (1 - self.beta2 ** (self.step + 1))
        return (v.sqrt() + self.eps).rsqrt()


def _layers(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, _Layer]:
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    out = {}
    for name, p in model.named_parameters():
        state = optimizer.state.get(p, {})
        if p not in groups or "exp_avg_sq" not in state:
            continue
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} must be float32 or float64, got {p.dtype}: rounding in a lower precision "
                "would be read as gradient noise"
            )
        beta2, eps = float(groups[p]["betas"][1]), groups[p]["eps"]
        out[name] = _Layer(p, state["exp_avg_sq"].double(), float(state["step"]), beta2, eps)
    if not out:
        raise ValueError(
            "optimizer must be an Adam, AdamW or ThermoAdamW that has taken a step on this "
            f"model, got {type(optimizer).__name__} without second moments: they are the metric "
            "in which noise is measured"
        )
    return out


def _gradient(
    loss: Callable[[], Tensor], params: Sequence[Tensor], twice: bool = False
) -> tuple[Tensor, ...]:
    value = loss()
    if not isinstance(value, Tensor) or not value.requires_grad:
        raise ValueError(
            f"loss must return a tensor that depends differentiably on the parameters, got {value!r}"
        )
    if not torch.isfinite(value):
        raise ValueError(f"loss must be finite, got {value.item()}")
    return tuple(
        torch.autograd.grad(value, params, create_graph=twice, allow_unused=True, materialize_grads=True)
    )


@contextmanager
def _unmoved(model: nn.Module) -> Iterator[None]:
    """Restore the buffers (BatchNorm's running statistics) afterwards."""
    before = [(b, b.clone()) for b in model.buffers()]
    try:
        with torch.enable_grad():
            yield
    finally:
        with torch.no_grad():
            for b, value in before:
                b.copy_(value)
