"""Quantities that need memory of their own: cosine of successive gradients, distance from the start."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import MAX_PENDING, is_measured
from thermoopt.account.reading import Reading
from thermoopt.kernels import real_elements
from thermoopt.physics import Term
from thermoopt.tensors import (
    Arrival,
    Fetch,
    Sharding,
    follow_layers,
    holds_numbers,
    local,
    place,
    same_members,
    sample_pages,
)

__all__ = ["TRACKABLE", "Tracker"]

Array = NDArray[np.float64]
Parts = list[tuple[NDArray[np.int64], Fetch]]

TRACKABLE = ("rho", "distance")
"""What may be tracked."""

_RHO_TERMS = (Term.RHO_DOT, Term.RHO_NOW, Term.RHO_BEFORE)


@dataclass
class _Coming:
    """Sums of one step in flight: ``[k, 3]`` for rho and ``[k]`` for the distance, with their layers.

    For sharded layers ``shared`` brings the sums of all ranks instead, ``[n_layers, 6]``: three for rho, the
    number of ranks, the distance, whether an infinity was found.
    """

    step: int
    rho: Parts
    distance: Parts
    found_inf: Fetch | None
    shared: Arrival | None = None

    def rows(self, layers: int, device: torch.device) -> Tensor:
        """Return this rank's share of ``shared``."""
        out = torch.zeros(layers, 6, dtype=torch.float64, device=device)
        for index, fetch in self.rho:
            out[torch.from_numpy(index).to(device), :3] = fetch.source.to(out)
            out[torch.from_numpy(index).to(device), 3] = 1.0
        for index, fetch in self.distance:
            out[torch.from_numpy(index).to(device), 4] = fetch.source.to(out)
        if self.found_inf is not None:
            out[:, 5] = self.found_inf.source.to(out)
        return out


@dataclass
class _Gradient:
    """A sample of one layer's gradient, and the factor by which a GradScaler had scaled it."""

    sample: Tensor
    scale: Tensor | None


class Tracker:
    r"""Forms rho and the distance from the start, from samples, and adds them to readings.

    .. math::
        \rho = \frac{\langle g_t, g_{t-1}\rangle}{\|g_t\|\,\|g_{t-1}\|},\qquad
        E = \|\theta-\theta_0\|^2

    *rho* (no unit) keeps a sample of the gradient of the step before a measured one. Its three sums are
    averaged like a meter's (:class:`~thermoopt.account.Meter`), and the ratio is formed afterwards, so that
    layers add up. A step that is not finite, or that a GradScaler skips, moves none of them.

    *distance* [th**2] keeps a sample of the parameters before the first step seen. It is the distance before
    the reading's step, not an average.

    Samples are those of :func:`thermoopt.tensors.sample_pages`, with sums scaled up by n / n_sampled: whole
    tensors up to 65,536 elements, and contiguous blocks of at least one element in 16 of larger ones (one in
    8 just above that size). Each of the two takes that much memory, in the tensors' own dtype: rho at all
    times if every step is measured, else from one step to the next; the distance permanently. Frozen
    parameters count, and take memory, only once they are unfrozen.

    Args:
        optimizer: any torch optimizer.
        track: what to track, of :data:`TRACKABLE`.
        ema_steps: length of the average in optimizer steps.
    """

    def __init__(self, optimizer: Optimizer, track: Collection[str], ema_steps: float) -> None:
        self._optimizer = optimizer
        self._track = frozenset(track)
        self._keep = 1 - 1 / ema_steps
        self._start: dict[int, Tensor] = {}
        self._lost = False
        self._forget(len(self._params()))

    def _forget(self, n: int) -> None:
        self._members = self._groups()
        self._sharding = Sharding(self._params())
        self._gradients: dict[int, _Gradient] = {}
        self._coming: deque[_Coming] = deque()
        self._sums = np.zeros((len(_RHO_TERMS), n))
        self._weight, self._last, self._distance = np.zeros((3, n))

    # ---------------------------------------------------------------- before a step

    @torch.no_grad()
    def read(self, step: int, measure_every: int, times: int) -> None:
        """Read a step's gradients and the parameters before it.

        Args:
            step: about to be taken, counted from 1.
            measure_every: one step in this many is measured.
            times: how often the gradients were formed; a step with several has no gradient of its own.
        """
        params = self._follow()
        if times > 1:
            self._gradients.clear()
            if self._coming and self._coming[-1].step == step:
                self._coming.pop()
            return
        if "distance" in self._track and len(self._start) < len(params):
            self._begin(params)
        due, next_due = is_measured(step, measure_every), is_measured(step + 1, measure_every)
        gradients = self._gradients
        self._gradients = {}
        if "rho" in self._track and (due or next_due):
            scale = getattr(self._optimizer, "grad_scale", None)
            self._gradients = {
                i: _Gradient(sample_pages(local(p.grad, p)).clone(), None if scale is None else scale.clone())
                for i, p in enumerate(params)
                if p.grad is not None and not p.grad.is_sparse and not p.is_meta
            }
        if due:
            self._measure(step, params, gradients)
        if not next_due:
            self._gradients = {}

    def _measure(self, step: int, params: Sequence[Tensor], before: Mapping[int, _Gradient]) -> None:
        found_inf = getattr(self._optimizer, "found_inf", None)
        rho = {
            i: _products(now, before[i]) * _share(params[i], now.sample)
            for i, now in self._gradients.items()
            if i in before and before[i].sample.shape == now.sample.shape
        }
        distance = {
            i: _square_distance(params[i], start) * _share(params[i], start)
            for i, start in self._start.items()
        }
        flag = None if found_inf is None else Fetch(found_inf)
        coming = _Coming(step, _sent(rho), _sent(distance), flag)
        if self._sharding:
            coming.shared = self._sharding.start(coming.rows(len(params), self._sharding.device))
        self._coming.append(coming)
        while len(self._coming) > MAX_PENDING:
            self._take(self._coming.popleft())

    def _params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _follow(self) -> list[Tensor]:
        """Move what is kept along with the layers' tensors; added layers start afresh."""
        params = self._params()
        if same_members([group["params"] for group in self._optimizer.param_groups], self._members):
            return params
        while self._coming:
            self._take(self._coming.popleft())
        members = self._groups()
        kept = [(i, j) for i, j in enumerate(follow_layers(self._members, members)) if j is not None]
        now, before = [i for i, _ in kept], [j for _, j in kept]
        rows = np.vstack([self._sums, self._weight, self._last, self._distance])
        start, gradients = self._start, self._gradients
        self._forget(len(params))
        self._sums[:, now] = rows[: len(_RHO_TERMS), before]
        self._weight[now], self._last[now], self._distance[now] = rows[len(_RHO_TERMS) :, before]
        self._start = {i: start[j] for i, j in kept if j in start}
        self._gradients = {i: gradients[j] for i, j in kept if j in gradients}
        return params

    def _groups(self) -> list[list[Tensor]]:
        return [list(group["params"]) for group in self._optimizer.param_groups]

    def _begin(self, params: Sequence[Tensor]) -> None:
        """Sample the start of the layers that have none yet."""
        if self._lost:
            warnings.warn(
                "the observer's state holds no fitting start of the run (was it saved without "
                "track=('distance',), or by another rank?): the distance counts from the current parameters",
                RuntimeWarning,
                stacklevel=2,
            )
            self._lost = False
        for i, p in enumerate(params):
            if i not in self._start and p.requires_grad and holds_numbers(local(p)):
                self._start[i] = sample_pages(p).clone()

    # ---------------------------------------------------------------- over a reading

    def overlay(self, reading: Reading) -> Reading:
        """Return the reading with the terms tracked up to its step; waits for their sums."""
        self._follow()
        while self._coming and self._coming[0].step <= reading.step:
            self._take(self._coming.popleft())
        n = len(reading.names)
        terms = reading.terms.copy()
        if "rho" in self._track:
            # a layer without a sum yet adds nothing, and its own ratio is 0/0
            seen = reading.seen & (self._weight[:n] > 0)
            weight = np.where(seen, self._weight[:n], 1.0)
            terms[list(_RHO_TERMS)] = np.where(seen, self._sums[:, :n] / weight, 0.0)
        if "distance" in self._track:
            terms[Term.DISTANCE] = np.where(reading.seen, self._distance[:n], 0.0)
        return replace(reading, terms=terms)

    def _take(self, coming: _Coming) -> None:
        """Average in the sums of a step, unless a meter would skip it."""
        if coming.shared is not None:
            all_ranks = coming.shared.numpy()
            whole = np.flatnonzero(all_ranks[:, 3] == self._sharding.shards)
            found_inf, distance = bool(all_ranks[:, 5].any()), [(np.arange(len(all_ranks)), all_ranks[:, 4])]
            rows = [(whole, all_ranks[whole, :3])]
        else:
            found_inf = coming.found_inf is not None and bool(coming.found_inf.numpy().any())
            distance = [(index, fetch.numpy()) for index, fetch in coming.distance]
            rows = [(index, fetch.numpy()) for index, fetch in coming.rho]
        if found_inf:
            return
        for index, values in distance:
            self._distance[index] = values
        if not all(np.isfinite(sums).all() for _, sums in rows):
            return
        for index, sums in rows:
            q = self._keep ** np.maximum(coming.step - self._last[index], 1)
            self._sums[:, index] = q * self._sums[:, index] + (1 - q) * sums.T
            self._weight[index] = q * self._weight[index] + (1 - q)
            self._last[index] = coming.step

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept, by layer: averages, the start, and the gradient of the step before."""
        while self._coming:
            self._take(self._coming.popleft())
        return {
            "sums": torch.from_numpy(np.vstack([self._sums, self._weight, self._last, self._distance])),
            "start": {i: x.clone() for i, x in self._start.items()},
            "gradients": {i: (g.sample.clone(), g.scale) for i, g in self._gradients.items()},
            "places": [place(p) for p in self._params()],
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if a state holds more layers than the optimizer."""
        k, n = state["sums"].shape[1], len(self._params())
        if k > n:
            raise ValueError(f"the observer's state has {k} layers, but the optimizer has {n}")

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore what :meth:`state_dict` returned; None for a state that was saved without tracking.

        If a layer's start is missing, or has another layout or is another rank's shard, the layer starts
        before the next step, with a warning.
        """
        params = self._params()
        self._forget(len(params))
        saved = {} if state is None else state["start"]
        places = [] if state is None else state.get("places", [])
        own = [i >= len(places) or list(places[i]) == place(p) for i, p in enumerate(params)]
        self._start = {
            i: x.to(params[i].device, copy=True)
            for i, x in saved.items()
            if own[i] and x.shape == sample_pages(params[i]).shape
        }
        self._lost = not self._start or len(self._start) < len(saved)
        if state is None:
            return
        rows = state["sums"].cpu().numpy()
        k = rows.shape[1]
        self._sums[:, :k] = rows[: len(_RHO_TERMS)]
        self._weight[:k], self._last[:k], self._distance[:k] = rows[len(_RHO_TERMS) :]
        self._gradients = {
            i: _Gradient(x.to(params[i].device, copy=True), scale)
            for i, (x, scale) in state["gradients"].items()
            if own[i]
        }


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32).reshape(-1)


def _products(now: _Gradient, before: _Gradient) -> Tensor:
    """<a, b>, <a, a>, <b, b> of two gradients, ``[3]``."""
    a, b = _wide(now.sample), _wide(before.sample.to(now.sample.device))
    out = torch.stack([torch.dot(a, b), torch.dot(a, a), torch.dot(b, b)])
    one = out.new_ones(())
    s, t = (one if g.scale is None else g.scale.to(out).reshape(()) for g in (now, before))
    return out / torch.stack([s * t, s * s, t * t])


def _share(p: Tensor, sample: Tensor) -> float:
    """Return the number of real elements of a tensor over the number sampled."""
    return real_elements(local(p)) / max(1, sample.numel())


def _square_distance(p: Tensor, start: Tensor) -> Tensor:
    moved = _wide(sample_pages(p)) - _wide(start.to(p.device))
    return torch.dot(moved, moved)


def _sent(rows: Mapping[int, Tensor]) -> Parts:
    """Start sending the layers' rows to the host, one parcel per device and dtype."""
    parcels: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
    for layer, row in rows.items():
        parcels.setdefault((row.device, row.dtype), []).append((layer, row))
    out: Parts = []
    for parcel in parcels.values():
        layers, stacked = zip(*parcel, strict=True)
        out.append((np.array(layers, dtype=np.int64), Fetch(torch.stack(stacked))))
    return out
