"""Steps in one pass: update and sums together where a kernel can take a tensor; torch takes the rest."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.backends import torch_sums
from thermoopt.pending import Fetch, PendingSums
from thermoopt.rates import Rates, layer_names, scaled_groups

if TYPE_CHECKING:
    from thermoopt.adamw import ThermoAdamW

__all__ = ["OnePassBackend"]

_Place = tuple[int, int, int]
"""Where a tensor belongs: its layer, its group, its position in the group."""


@dataclass
class _Columns:
    """The tensors that a kernel is to step together, column by column, and where they belong."""

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    maxima: list[Tensor | None] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    place: list[_Place] = field(default_factory=list)

    def add(self, p: Tensor, g: Tensor, state: dict[str, Any], amsgrad: bool, place: _Place) -> None:
        self.params.append(p)
        self.grads.append(g)
        self.exp_avgs.append(state["exp_avg"])
        self.exp_avg_sqs.append(state["exp_avg_sq"])
        self.maxima.append(state["max_exp_avg_sq"] if amsgrad else None)
        self.steps.append(state["step"])
        self.place.append(place)

    def owned(self) -> tuple[Sequence[Tensor | None], ...]:
        """Everything a plan is made of."""
        return self.params, self.exp_avgs, self.exp_avg_sqs, self.maxima, self.steps

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Tensor by tensor, in the order of a kernel's ``ineligible``."""
        return zip(self.params, self.grads, *self.owned()[1:], strict=True)

    def only(self, keep: Sequence[int]) -> _Columns:
        """Return some of the rows."""
        names = (f.name for f in fields(self))
        return _Columns(**{name: [getattr(self, name)[i] for i in keep] for name in names})


@dataclass
class _Batch:
    """A kernel's plan and what goes with its rows: layer, group, position in the group, steps taken."""

    plan: Any
    layer: NDArray[np.int64]
    group: NDArray[np.int64]
    position: list[int]
    t: NDArray[np.float64] | None


class OnePassBackend:
    """One kernel call a device for update and sums of every tensor it can take.

    A tensor's very first step is torch's fused one, which creates the state as torch would. Tensors the
    kernel cannot take go to torch's own step and a measuring pass, silently.

    Args:
        name: ``"native"`` or ``"triton"``.
        requested: what the user asked for. Under ``"auto"`` a group with ``fused`` or ``foreach`` given
            keeps torch's step, and tensors that share memory go back to it with a warning.
        kernel: module with ``ineligible`` and ``Plan``.
    """

    measure_every = 1

    def __init__(self, name: str, requested: str, kernel: ModuleType) -> None:
        self.name = name
        self.requested = requested
        self._kernel = kernel
        self.reset()

    def reset(self) -> None:
        """Forget the plans: groups or state were replaced, tensors are looked at anew."""
        self._batches: dict[torch.device, _Batch] = {}
        self._refused: set[Tensor] = set()

    def step(self, optimizer: ThermoAdamW, rates: Sequence[Rates], due: bool) -> PendingSums | None:
        """Take one step at the given rates; return its sums if it was due to be measured.

        Raises:
            ValueError: for tensors that share memory, by name, unless the backend is ``"auto"``.
        """
        columns, fresh, rest = self._sort(optimizer)
        if any(optimizer.param_groups[i]["params"][j].grad.is_sparse for _, i, j in rest):
            optimizer.torch_step()  # raises torch's own error before anything has moved
        done: list[tuple[_Batch, Any]] = []
        for device, c in columns.items():
            while True:
                batch, refused = self._batch(optimizer, device, c)
                rest += refused
                if batch is None:
                    break
                if refused:
                    c = c.only([i for i, p in enumerate(c.params) if p not in self._refused])
                try:
                    done.append((batch, self._run(optimizer, rates, batch, c, due)))
                    break
                except ValueError:
                    # nothing has moved: look again, a gradient may lie in memory otherwise than before
                    del self._batches[device]
                    if all(self._kernel.ineligible(*row) is None for row in c.rows()):
                        raise
        pending = None
        if due:
            layers = [batch.layer for batch, _ in done]
            others = {layer for layer, _, _ in (*fresh, *rest)}
            pending = torch_sums(optimizer, rates, others, np.concatenate(layers) if layers else None)
            start = len(pending.index) - sum(map(len, layers))
            for batch, sums in done:
                _enter(pending, slice(start, start + len(batch.layer)), optimizer, rates, batch, sums)
                start += len(batch.layer)
        for part, flags in ((rest, {}), (fresh, {"fused": True, "foreach": None})):
            if part:
                optimizer.torch_step(_restricted(optimizer.param_groups, rates, part, flags))
        return pending

    def _sort(
        self, optimizer: ThermoAdamW
    ) -> tuple[dict[torch.device, _Columns], list[_Place], list[_Place]]:
        """Sort tensors with a gradient: for a kernel, by device; for their first step; for torch."""
        columns: dict[torch.device, _Columns] = {}
        fresh: list[_Place] = []
        rest: list[_Place] = []
        layer = -1
        states, refused = optimizer.state, self._refused
        for i, group in enumerate(optimizer.param_groups):
            takes, amsgrad = self._takes(group), group["amsgrad"]
            for j, p in enumerate(group["params"]):
                layer += 1
                g = p.grad
                if g is None:
                    continue
                state = states[p] if p in states else None
                if not takes or p in refused:
                    rest.append((layer, i, j))
                elif not state:
                    step = torch.zeros((), device=p.device)
                    able = self._kernel.ineligible(p, g, p, p, None, step) is None
                    (fresh if able else rest).append((layer, i, j))
                else:
                    device = p.device
                    if device not in columns:
                        columns[device] = _Columns()
                    columns[device].add(p, g, state, amsgrad, (layer, i, j))
        return columns, fresh, rest

    def _takes(self, group: dict[str, Any]) -> bool:
        """Whether the group's flags leave its step to a kernel."""
        if group["differentiable"] or (group["capturable"] and self.name != "triton"):
            return False
        return self.requested != "auto" or (group["fused"] is None and group["foreach"] is None)

    def _batch(
        self, optimizer: ThermoAdamW, device: torch.device, c: _Columns
    ) -> tuple[_Batch | None, list[_Place]]:
        """Return the plan for these tensors and the places of those that no plan can take."""
        known = self._batches.get(device)
        if known is not None and known.plan.matches(*c.owned()):
            return known, []
        self._batches.pop(device, None)
        if device.type != "cpu":
            # torch keeps step counts on the host unless fused or capturable; a device kernel reads them
            for i, (p, step) in enumerate(zip(c.params, c.steps, strict=True)):
                if step.device != device:
                    c.steps[i] = optimizer.state[p]["step"] = step.to(device)
        keep: list[int] = []
        refused: list[_Place] = []
        for i, row in enumerate(c.rows()):
            if self._kernel.ineligible(*row) is None:
                keep.append(i)
            else:
                self._refused.add(c.params[i])
                refused.append(c.place[i])
        if not keep:
            return None, refused
        kept = c.only(keep)
        names = [name for i, group in enumerate(optimizer.param_groups) for name in layer_names(i, group)]
        try:
            plan = self._kernel.Plan(*kept.owned(), names=[names[layer] for layer, _, _ in kept.place])
        except ValueError as error:
            if self.requested != "auto":
                raise
            warnings.warn(
                f"{error}; torch's own step takes the tensors on {device}", RuntimeWarning, stacklevel=5
            )
            self._refused.update(kept.params)
            return None, refused + kept.place
        t = np.array([float(s) for s in kept.steps]) if device.type == "cpu" else None
        layer, group, position = (list(x) for x in zip(*kept.place, strict=True))
        batch = _Batch(plan, np.array(layer), np.array(group), position, t)
        self._batches[device] = batch
        return batch, refused

    def _run(
        self, optimizer: ThermoAdamW, rates: Sequence[Rates], batch: _Batch, c: _Columns, due: bool
    ) -> Any:
        """Let the kernel take its step; return its sums, None where nothing moved or nothing was due."""
        groups = optimizer.param_groups
        found_inf = getattr(optimizer, "found_inf", None)
        sums = batch.plan.step(
            c.grads,
            lr=_rate(rates, batch),
            weight_decay=_spread([rate.wd for rate in rates], batch),
            beta1=_spread([group["betas"][0] for group in groups], batch),
            beta2=_spread([group["betas"][1] for group in groups], batch),
            eps=_spread([group["eps"] for group in groups], batch),
            maximize=_spread([group["maximize"] for group in groups], batch),
            measure=due,
            grad_scale=getattr(optimizer, "grad_scale", None),
            found_inf=found_inf,
        )
        if batch.t is not None and (found_inf is None or not bool(found_inf)):
            batch.t += 1
        return sums


def _spread(values: Sequence[Any], batch: _Batch) -> Any:
    """One number where all groups agree, else one a tensor, ``[n]``."""
    first = values[0]
    return first if all(v == first for v in values) else np.array(values)[batch.group]


def _rate(rates: Sequence[Rates], batch: _Batch) -> Any:
    """Effective learning rate: one number or ``[n]``; a Tensor where one group's lr is one on a device."""
    tensors = [rate.lr for rate in rates if isinstance(rate.lr, Tensor) and rate.lr.device.type != "cpu"]
    plain = all(rate.factors is None for rate in rates)
    rows = zip(batch.group, batch.position, strict=True)
    if not tensors:
        lrs = [float(rate.lr) for rate in rates]
        return _spread(lrs, batch) if plain else np.array([lrs[i] * _factor(rates[i], j) for i, j in rows])
    device = tensors[0].device
    lr = torch.stack([torch.as_tensor(rate.lr, device=device).reshape(()) for rate in rates])
    lr = lr[torch.from_numpy(batch.group).to(device, non_blocking=True)]
    return lr if plain else lr * torch.tensor([_factor(rates[i], j) for i, j in rows], device=device)


def _factor(rate: Rates, position: int) -> float:
    return 1.0 if rate.factors is None else rate.factors[position]


def _enter(
    pending: PendingSums,
    where: slice,
    optimizer: ThermoAdamW,
    rates: Sequence[Rates],
    batch: _Batch,
    sums: Any,
) -> None:
    """Put a kernel's sums and constants into the account of the step."""
    groups = optimizer.param_groups
    pending.wd[where] = _spread([rate.wd for rate in rates], batch)
    pending.beta1[where] = _spread([group["betas"][0] for group in groups], batch)
    pending.beta2[where] = _spread([group["betas"][1] for group in groups], batch)
    columns = np.arange(where.start, where.stop)
    lr = _rate(rates, batch)
    if isinstance(lr, Tensor):
        pending.late.append((pending.lr, columns, Fetch(lr)))
    else:
        pending.lr[where] = lr
    if batch.t is None:
        steps = [
            optimizer.param_groups[i]["params"][j] for i, j in zip(batch.group, batch.position, strict=True)
        ]
        counts = torch.stack([optimizer.state[p]["step"] for p in steps])
        pending.late.append((pending.t, columns, Fetch(counts)))
    else:
        pending.t[where] = batch.t
    if isinstance(sums, Tensor):
        pending.parts.append((columns, Fetch(sums)))
    elif sums is not None:
        pending.sums[:, where] = sums.T


def _restricted(
    groups: Sequence[dict[str, Any]], rates: Sequence[Rates], part: Sequence[_Place], flags: dict[str, Any]
) -> list[dict[str, Any]]:
    """Copies of the groups with effective rates, other flags, and only some of their parameters."""
    positions: dict[int, list[int]] = {}
    for _, i, j in part:
        positions.setdefault(i, []).append(j)
    cut, cut_rates = [], []
    for i, js in positions.items():
        factors = rates[i].factors
        cut.append({**groups[i], **flags, "params": [groups[i]["params"][j] for j in js]})
        cut_rates.append(replace(rates[i], factors=None if factors is None else [factors[j] for j in js]))
    return scaled_groups(cut, cut_rates)
