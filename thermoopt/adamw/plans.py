"""Which tensors of a step go to a one-pass kernel, and the plans that are kept for them."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import Ledger, PendingSums, layer_names
from thermoopt.adamw.rates import Rates, Rows, kernel_rates, spread
from thermoopt.adamw.sorting import Columns, Place, Sorted, Sorting
from thermoopt.adamw.torch_sums import torch_sums
from thermoopt.tensors import WARM_UP, Fetch, capturing, is_distributed, local, same_objects, send

__all__ = ["Batch", "PlanCache", "account"]


@dataclass
class Batch:
    """A kernel's plan and, for each of its rows, the parameter, the layer and the place in its group.

    Attributes:
        into: the table of a ledger that the plan averages its sums into.
        rates, fixed: arguments of the last step, each a number or ``[n]``.
        given: what they were formed from; they are the same as long as these objects are.
    """

    plan: Any
    owners: list[Tensor]
    layer: NDArray[np.int64]
    rows: Rows
    into: Any = None
    rates: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    given: list[Any] = field(default_factory=list)


class PlanCache:
    """A kernel's plans, one per device, kept as long as the tensors stay where they are.

    Args:
        kernel: module with ``ineligible``, ``Plan`` and ``ON_DEVICE``.
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
        self._captured: list[Batch] = []
        self.reset()

    def reset(self) -> None:
        """Forget the plans after groups or state were replaced; tensors are then examined again."""
        self._known: dict[torch.device, Batch] = {}
        self._refused: set[Tensor] = set()
        self._sorting: Sorting | None = None

    # ---------------------------------------------------------------- which tensors

    def sort(self, optimizer: Optimizer) -> Sorted:
        """Sort the tensors that have a gradient."""
        groups = optimizer.param_groups
        flags = [(self._takes(group), group["amsgrad"]) for group in groups]
        grads = [g for group in groups for g in map(_grad, group["params"])]
        if self._sorting is None or not self._sorting.fits(optimizer, flags, grads):
            self._sorting = self._sort(optimizer, flags, grads)
        return self._sorting.now(grads)

    def _sort(
        self, optimizer: Optimizer, flags: list[tuple[bool, bool]], grads: list[Tensor | None]
    ) -> Sorting:
        params = [list(group["params"]) for group in optimizer.param_groups]
        out = Sorting(
            params=params,
            flags=flags,
            missing=[g is None for g in grads],
            states=[],
            sharded=any(is_distributed(p) for group in params for p in group),
        )
        layer = -1
        for i, (group, (takes, amsgrad)) in enumerate(zip(params, flags, strict=True)):
            for j, p in enumerate(group):
                layer += 1
                g = grads[layer]
                if g is None:
                    continue
                state = optimizer.state[p] if p in optimizer.state else None
                if not takes or p in self._refused:
                    out.rest.append((layer, i, j))
                elif not state:
                    step = torch.zeros((), dtype=torch.float32, device=p.device)
                    shard = local(p)
                    able = self._kernel.ineligible(shard, local(g, p), shard, shard, None, step) is None
                    (out.fresh if able else out.rest).append((layer, i, j))
                else:
                    out.rows.setdefault(p.device, []).append(((layer, i, j), p, state, amsgrad))
        out.states = list(optimizer.state.values())
        return out

    # ---------------------------------------------------------------- one plan for all

    def whole(
        self, optimizer: Optimizer, tensors: Sorted, ledger: Ledger
    ) -> tuple[Batch, list[Tensor]] | None:
        """Return a plan that takes all tensors of a step and averages into a ledger, and the gradients.

        None if some tensors are left to torch, are new, lie on several devices or are shared by ranks: then
        :func:`account` brings their sums together.
        """
        if len(tensors.columns) != 1 or tensors.fresh or tensors.rest or ledger.sharding:
            return None
        ((device, columns),) = tensors.columns.items()
        batch = self._known.get(device)
        if batch is None or not batch.plan.matches(*columns.owned()):
            batch, refused = self._plan(optimizer, device, columns)
            if batch is None or refused:
                return None
        into = ledger.table if self._kernel.ON_DEVICE else ledger.meter.state
        if into is None or batch.into is not into:
            self._bind(batch, ledger, device)
        if self._kernel.ON_DEVICE and capturing() and batch not in self._captured:
            self._captured.append(batch)  # the graph goes on to use its tables
        return batch, columns.grads

    def look_again(self, batch: Batch, grads: Sequence[Tensor]) -> bool:
        """Leave to torch the tensors whose gradient a plan has refused; return whether there are any."""
        rejected = batch.plan.rejected(grads)
        for i in rejected:
            self._refused.add(batch.owners[i])
        if rejected:
            self._known.clear()
            self._sorting = None
        return bool(rejected)

    def _bind(self, batch: Batch, ledger: Ledger, device: torch.device) -> None:
        """Make a plan average into a ledger."""
        if self._kernel.ON_DEVICE:
            ledger.keep_on(device)
            assert ledger.table is not None
            batch.plan.average_into(ledger.table.table, ledger.table.run, batch.layer)
            batch.into = ledger.table
        else:
            ledger.keep_on(None)
            batch.plan.average_into(ledger.meter.state, batch.layer, ledger.meter.keep)
            batch.into = ledger.meter.state

    def put_rates(self, rates: Sequence[Rates]) -> None:
        """Make captured graphs take their next step at these rates."""
        for batch in self._captured:
            batch.plan.put(**kernel_rates(rates, batch.rows))

    # ---------------------------------------------------------------- several plans, some tensors

    def run(
        self,
        optimizer: Optimizer,
        rates: Sequence[Rates],
        tensors: Sorted,
        measure: bool,
        half: int | None = None,
    ) -> list[tuple[Batch, Any]]:
        """Run the kernel on its tensors; those that it turns out unable to take join ``tensors.rest``.

        ``half`` is passed on to a kernel whose steps are dry.

        Returns:
            Each batch with its sums.
        """
        done = []
        for device, columns in tensors.columns.items():
            batch, own = self._batch(optimizer, device, columns, tensors.rest)
            if batch is None:
                continue
            settings = self.settings(optimizer, rates, batch, half)
            try:
                done.append((batch, batch.plan.step(own.grads, **settings, measure=measure)))
            except ValueError:
                if not self.look_again(batch, own.grads):  # nothing has moved
                    raise
                batch, own = self._batch(optimizer, device, own, tensors.rest)
                if batch is not None:
                    settings = self.settings(optimizer, rates, batch, half)
                    done.append((batch, batch.plan.step(own.grads, **settings, measure=measure)))
        return done

    def settings(
        self, optimizer: Optimizer, rates: Sequence[Rates], batch: Batch, half: int | None = None
    ) -> dict[str, Any]:
        """Return the arguments of a plan's step, except gradients."""
        groups, group = optimizer.param_groups, batch.rows.group
        given = [*rates, *(x for g in groups for x in (*g["betas"], g["eps"], g["maximize"]))]
        if not same_objects(given, batch.given):
            batch.rates = {
                **kernel_rates(rates, batch.rows),
                "beta1": spread([g["betas"][0] for g in groups], group),
                "beta2": spread([g["betas"][1] for g in groups], group),
            }
            batch.fixed = {
                "eps": spread([g["eps"] for g in groups], group),
                "maximize": spread([g["maximize"] for g in groups], group),
            }
            # a tensor may change and stay the same object
            batch.given = [] if any(isinstance(x, Tensor) for x in given) else given
        scaler = {key: getattr(optimizer, key, None) for key in ("grad_scale", "found_inf")}
        out = {**batch.rates, **batch.fixed, **scaler}
        if half is not None:
            out["half"] = half
        return out

    def _batch(
        self, optimizer: Optimizer, device: torch.device, columns: Columns, rest: list[Place]
    ) -> tuple[Batch | None, Columns]:
        """Return the plan for tensors and its columns; those that no plan can take join ``rest``."""
        mine = [i for i, p in enumerate(columns.owners) if p not in self._refused]
        rest += [columns.place[i] for i, p in enumerate(columns.owners) if p in self._refused]
        own = columns if len(mine) == len(columns.owners) else columns.only(mine)
        batch = self._known.get(device)
        if batch is None or not batch.plan.matches(*own.owned()):
            batch, refused = self._plan(optimizer, device, own)
            rest += refused
            own = own.only([i for i, p in enumerate(own.owners) if p not in self._refused])
        return batch, own

    def _plan(
        self, optimizer: Optimizer, device: torch.device, c: Columns
    ) -> tuple[Batch | None, list[Place]]:
        """Make a plan of the tensors that the kernel can take; return it and the places of the others."""
        if capturing():
            raise RuntimeError(WARM_UP)
        self._known.pop(device, None)
        keep: list[int] = []
        refused: list[Place] = []
        for i, (p, g, *state, step) in enumerate(c.rows()):
            # torch keeps step counts on the host unless fused or capturable; a device kernel reads them there
            near = step if self._dry or step.device == device else torch.empty_like(step, device=device)
            dry = {"dry": True} if self._dry else {}
            if self._kernel.ineligible(p, g, *state, near, **dry) is None:
                keep.append(i)
                if near is not step:
                    c.steps[i] = optimizer.state[c.owners[i]]["step"] = near.copy_(step)
            else:
                refused.append(self._refuse(c, i))
        if not keep:
            return None, refused
        kept = c.only(keep)
        names = [name for i, group in enumerate(optimizer.param_groups) for name in layer_names(i, group)]
        try:
            plan = self._kernel.Plan(
                *kept.owned(), names=[names[layer] for layer, _, _ in kept.place], dry=self._dry
            )
        except ValueError as error:
            if self._on_overlap == "raise":
                raise
            if self._on_overlap == "warn":
                warnings.warn(f"{error}; torch's own step is used on {device}", RuntimeWarning, stacklevel=6)
            return None, refused + [self._refuse(kept, i) for i in range(len(kept.owners))]
        layer, group, position = (np.array(x) for x in zip(*kept.place, strict=True))
        batch = Batch(plan, kept.owners, layer, Rows(group, position))
        self._known[device] = batch
        return batch, refused

    def _refuse(self, c: Columns, i: int) -> Place:
        """Leave a tensor to torch from now on."""
        self._refused.add(c.owners[i])
        self._sorting = None
        return c.place[i]


_grad = operator.attrgetter("grad")


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


def _enter(pending: PendingSums, where: slice, optimizer: Optimizer, batch: Batch, sums: Any) -> None:
    """Put a kernel's sums and constants into the account of the step."""
    columns = np.arange(where.start, where.stop)
    for name, key in (("lr", "lr"), ("wd", "weight_decay"), ("beta1", "beta1"), ("beta2", "beta2")):
        array, value = getattr(pending, name), batch.rates[key]
        if isinstance(value, Tensor):
            if "factor" in batch.rates and key == "lr":
                factor = batch.rates["factor"]
                value = value * (send(factor, value.device) if isinstance(factor, np.ndarray) else factor)
            pending.late.append((array, columns, Fetch(value.expand(len(columns)))))
        else:
            array[where] = value
    t = batch.plan.t
    if isinstance(t, Tensor):
        pending.late.append((pending.t, columns, Fetch(t)))
    else:
        pending.t[where] = t
    if isinstance(sums, Tensor):
        pending.parts.append((columns, Fetch(sums)))
    elif sums is not None:
        pending.sums[:, where] = sums.T
