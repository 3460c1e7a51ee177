"""Which tensors of a step go to a one-pass kernel, the plans it keeps for them, and its sums' way back."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import InitVar, dataclass, field, fields
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import PendingSums, layer_names
from thermoopt.adamw.rates import Rates
from thermoopt.adamw.torch_sums import torch_sums
from thermoopt.tensors import Fetch, is_distributed, local

__all__ = ["Batch", "Batches", "Place", "Sorted", "account"]

Place = tuple[int, int, int]
"""Where a tensor belongs: its layer, its group, its position in the group."""


@dataclass
class Columns:
    """The tensors that a kernel is to step together, column by column, and where they belong.

    Of a sharded parameter they are this rank's shards; ``owners`` are the parameters themselves.
    """

    owners: list[Tensor]
    params: list[Tensor]
    grads: list[Any]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    maxima: list[Tensor | None]
    steps: list[Tensor]
    place: list[Place]

    def owned(self) -> tuple[Sequence[Tensor | None], ...]:
        """Everything a plan is made of."""
        return self.params, self.exp_avgs, self.exp_avg_sqs, self.maxima, self.steps

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Tensor by tensor, in the order of a kernel's ``ineligible``."""
        return zip(self.params, self.grads, *self.owned()[1:], strict=True)

    def only(self, keep: Sequence[int]) -> Columns:
        """Return some of the rows."""
        names = (f.name for f in fields(self))
        return Columns(**{name: [getattr(self, name)[i] for i in keep] for name in names})


@dataclass
class Batch:
    """A kernel's plan and what goes with its rows: layer, group, position in the group, steps taken.

    ``rates`` holds what the last step was taken at, a number or ``[n]`` each.
    """

    plan: Any
    layer: NDArray[np.int64]
    group: NDArray[np.int64]
    position: list[int]
    t: NDArray[np.float64] | None
    rates: dict[str, Any] = field(default_factory=dict)


@dataclass
class Sorted:
    """Tensors with a gradient: for a kernel, by device; with no state yet; for torch."""

    columns: dict[torch.device, Columns] = field(default_factory=dict)
    fresh: list[Place] = field(default_factory=list)
    rest: list[Place] = field(default_factory=list)


@dataclass
class _Memo:
    """How the tensors were sorted, and all that it depends on, to be checked by identity in each step.

    Sorting anew costs microseconds a tensor, most of it hashing; looking whether lists still hold the very
    same objects costs nanoseconds, and sees parameters and state that were exchanged in place.
    """

    params: list[list[Tensor]]
    flags: list[tuple[bool, bool]]
    grads: InitVar[list[Tensor | None]]
    missing: list[bool] = field(init=False)
    states: list[dict[str, Any]] = field(default_factory=list)
    sharded: bool = False
    rows: dict[torch.device, list[tuple[Place, Tensor, dict[str, Any], bool]]] = field(default_factory=dict)
    fresh: list[Place] = field(default_factory=list)
    rest: list[Place] = field(default_factory=list)

    def __post_init__(self, grads: list[Tensor | None]) -> None:
        self.missing = [g is None for g in grads]

    def fits(self, optimizer: Optimizer, flags: list[tuple[bool, bool]], grads: list[Tensor | None]) -> bool:
        """Whether groups, flags, state and the presence of gradients are what they were."""
        groups = optimizer.param_groups
        return (
            not self.fresh
            and self.flags == flags
            and self.missing == [g is None for g in grads]
            and all(_same(group["params"], params) for group, params in zip(groups, self.params, strict=True))
            and _same(optimizer.state.values(), self.states)
        )

    def sorted_now(self, grads: list[Tensor | None]) -> Sorted:
        """Return the tensors as they are now: gradients and state may be other tensors each step."""
        out = Sorted(fresh=self.fresh, rest=list(self.rest))
        for device, rows in self.rows.items():
            place, owners, states, amsgrads = (list(column) for column in zip(*rows, strict=True))
            columns: dict[str, list[Any]] = {
                "params": owners,
                "grads": [grads[layer] for layer, _, _ in place],
                "exp_avgs": [state["exp_avg"] for state in states],
                "exp_avg_sqs": [state["exp_avg_sq"] for state in states],
                "maxima": [s["max_exp_avg_sq"] if a else None for s, a in zip(states, amsgrads, strict=True)],
            }
            if self.sharded:
                columns["grads"] = [local(g, p) for g, p in zip(columns["grads"], owners, strict=True)]
                columns = {
                    name: [None if x is None else local(x) for x in column]
                    for name, column in columns.items()
                }
            steps = [state["step"] for state in states]
            out.columns[device] = Columns(owners=owners, **columns, steps=steps, place=place)
        return out


def _same(now: Collection[Any], then: list[Any]) -> bool:
    return len(now) == len(then) and all(map(operator.is_, now, then))


class Batches:
    """A kernel's plans, one a device, kept while the tensors stay where they are.

    Args:
        kernel: module with ``ineligible`` and ``Plan``.
        takes: whether a group's flags leave its tensors to the kernel.
        dry: form the sums of the coming step and write nothing.
        on_overlap: what to do about tensors that share memory: ``"raise"``, ``"warn"`` and leave them to
            torch, or ``"leave"`` them to torch silently.
    """

    def __init__(
        self, kernel: ModuleType, takes: Callable[[dict[str, Any]], bool], *, dry: bool, on_overlap: str
    ) -> None:
        self._kernel = kernel
        self._takes = takes
        self._dry = dry
        self._on_overlap = on_overlap
        self.reset()

    def reset(self) -> None:
        """Forget the plans: groups or state were replaced, tensors are looked at anew."""
        self._known: dict[torch.device, Batch] = {}
        self._refused: set[Tensor] = set()
        self._memo: _Memo | None = None

    def sort(self, optimizer: Optimizer) -> Sorted:
        """Sort the tensors that have a gradient."""
        groups = optimizer.param_groups
        flags = [(self._takes(group), group["amsgrad"]) for group in groups]
        grads = [p.grad for group in groups for p in group["params"]]
        if self._memo is None or not self._memo.fits(optimizer, flags, grads):
            self._memo = self._sort_anew(optimizer, flags, grads)
        return self._memo.sorted_now(grads)

    def _sort_anew(
        self, optimizer: Optimizer, flags: list[tuple[bool, bool]], grads: list[Tensor | None]
    ) -> _Memo:
        memo = _Memo([list(group["params"]) for group in optimizer.param_groups], flags, grads)
        memo.sharded = any(is_distributed(p) for params in memo.params for p in params)
        layer = -1
        states, refused = optimizer.state, self._refused
        for i, (group, (takes, amsgrad)) in enumerate(zip(optimizer.param_groups, flags, strict=True)):
            for j, p in enumerate(group["params"]):
                layer += 1
                g = grads[layer]
                if g is None:
                    continue
                state = states[p] if p in states else None
                if not takes or p in refused:
                    memo.rest.append((layer, i, j))
                elif not state:
                    step = torch.zeros((), device=p.device)
                    shard = local(p)
                    able = self._kernel.ineligible(shard, local(g, p), shard, shard, None, step) is None
                    (memo.fresh if able else memo.rest).append((layer, i, j))
                else:
                    memo.rows.setdefault(p.device, []).append(((layer, i, j), p, state, amsgrad))
        memo.states = list(states.values())
        return memo

    def run(
        self,
        optimizer: Optimizer,
        rates: Sequence[Rates],
        tensors: Sorted,
        measure: bool,
        half: int | None = None,
    ) -> list[tuple[Batch, Any]]:
        """Let the kernel take its tensors; those it turns out unable to take join ``tensors.rest``.

        ``half`` is handed on to a kernel whose steps are dry.

        Returns:
            Plans with their sums, None where nothing moved or nothing was to be measured.
        """
        done: list[tuple[Batch, Any]] = []
        for device, c in tensors.columns.items():
            while True:
                batch, refused = self._batch(optimizer, device, c)
                tensors.rest += refused
                if batch is None:
                    break
                if refused:
                    c = c.only([i for i, p in enumerate(c.owners) if p not in self._refused])
                try:
                    done.append((batch, self._step(optimizer, rates, batch, c, measure, half)))
                    break
                except ValueError:
                    # nothing has moved: look again, a gradient may lie in memory otherwise than before
                    del self._known[device]
                    if all(self._kernel.ineligible(*row) is None for row in c.rows()):
                        raise
        return done

    def _batch(
        self, optimizer: Optimizer, device: torch.device, c: Columns
    ) -> tuple[Batch | None, list[Place]]:
        """Return the plan for these tensors and the places of those that no plan can take."""
        known = self._known.get(device)
        if known is not None and known.plan.matches(*c.owned()):
            return known, []
        self._known.pop(device, None)
        keep: list[int] = []
        refused: list[Place] = []
        for i, (p, g, *state, step) in enumerate(c.rows()):
            # torch keeps step counts on the host unless fused or capturable; a device kernel reads them there
            near = step if step.device == device else torch.empty_like(step, device=device)
            if self._kernel.ineligible(p, g, *state, near) is None:
                keep.append(i)
                if near is not step:
                    c.steps[i] = optimizer.state[c.owners[i]]["step"] = near.copy_(step)
            else:
                self._refused.add(c.owners[i])
                refused.append(c.place[i])
                self._memo = None
        if not keep:
            return None, refused
        kept = c.only(keep)
        names = [name for i, group in enumerate(optimizer.param_groups) for name in layer_names(i, group)]
        try:
            plan = self._kernel.Plan(*kept.owned(), names=[names[layer] for layer, _, _ in kept.place])
        except ValueError as error:
            if self._on_overlap == "raise":
                raise
            if self._on_overlap == "warn":
                warnings.warn(
                    f"{error}; torch's own step takes the tensors on {device}", RuntimeWarning, stacklevel=6
                )
            self._refused.update(kept.owners)
            self._memo = None
            return None, refused + kept.place
        layer, group, position = (list(x) for x in zip(*kept.place, strict=True))
        t = np.array([float(s) for s in kept.steps]) if device.type == "cpu" else None
        batch = Batch(plan, np.array(layer), np.array(group), position, t)
        self._known[device] = batch
        return batch, refused

    def _step(
        self,
        optimizer: Optimizer,
        rates: Sequence[Rates],
        batch: Batch,
        c: Columns,
        measure: bool,
        half: int | None,
    ) -> Any:
        groups = optimizer.param_groups
        found_inf = getattr(optimizer, "found_inf", None)
        batch.rates = {
            "lr": _rate(rates, batch),
            "wd": _spread([rate.wd for rate in rates], batch),
            "beta1": _spread([group["betas"][0] for group in groups], batch),
            "beta2": _spread([group["betas"][1] for group in groups], batch),
        }
        sums = batch.plan.step(
            c.grads,
            lr=batch.rates["lr"],
            weight_decay=batch.rates["wd"],
            beta1=batch.rates["beta1"],
            beta2=batch.rates["beta2"],
            eps=_spread([group["eps"] for group in groups], batch),
            maximize=_spread([group["maximize"] for group in groups], batch),
            measure=measure,
            grad_scale=getattr(optimizer, "grad_scale", None),
            found_inf=found_inf,
            **({"dry": True, "half": half} if self._dry else {}),
        )
        if self._dry:
            # torch counts the steps, and there may have been others since
            batch.t = np.array([float(s) for s in c.steps]) + 1
        elif batch.t is not None and (found_inf is None or not bool(found_inf)):
            batch.t += 1
        return sums


def account(
    optimizer: Optimizer, rates: Sequence[Rates], tensors: Sorted, done: Sequence[tuple[Batch, Any]]
) -> PendingSums:
    """Put together the sums of a step: the kernel's, and a measuring pass over all other tensors."""
    others = {layer for layer, _, _ in (*tensors.fresh, *tensors.rest)}
    layers = [batch.layer for batch, _ in done]
    if len(done) == 1 and not others:
        pending = PendingSums.of(layers[0])
        found_inf = getattr(optimizer, "found_inf", None)
        pending.found_inf = None if found_inf is None else Fetch(found_inf)
    else:
        pending = torch_sums(optimizer, rates, others, np.concatenate(layers) if layers else None)
    start = len(pending.index) - sum(map(len, layers))
    for batch, sums in done:
        _enter(pending, slice(start, start + len(batch.layer)), optimizer, batch, sums)
        start += len(batch.layer)
    return pending


def _spread(values: Sequence[Any], batch: Batch) -> Any:
    """One number where all groups agree, else one a tensor, ``[n]``."""
    first = values[0]
    return first if all(v == first for v in values) else np.array(values)[batch.group]


def _rate(rates: Sequence[Rates], batch: Batch) -> Any:
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


def _enter(pending: PendingSums, where: slice, optimizer: Optimizer, batch: Batch, sums: Any) -> None:
    """Put a kernel's sums and constants into the account of the step."""
    columns = np.arange(where.start, where.stop)
    for name, value in batch.rates.items():
        array = getattr(pending, name)
        if isinstance(value, Tensor):
            pending.late.append((array, columns, Fetch(value)))
        else:
            array[where] = value
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
