"""The layers that an observer watches: names, types, norms at the start, and which are frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import Meter, add_to_meter, with_plain_names, with_present_names
from thermoopt.adamw import start_of
from thermoopt.controllers import Start
from thermoopt.kernels import real_elements
from thermoopt.param_groups import detect_layer_type, layer_types
from thermoopt.tensors import root_mean_squares
from thermoopt.traits import group_decay, has_adam_moments

__all__ = ["ModelNames", "Watched"]


class ModelNames(Mapping[Tensor, str]):
    """Names of a model's parameters by tensor, also of those that it gets later, such as a new head.

    Args:
        model: is asked again for a tensor that has not been asked for before; None knows no names.
    """

    def __init__(self, model: torch.nn.Module | None) -> None:
        self._model = model
        self._known: dict[Tensor, str | None] = {}
        self._look()

    def _look(self) -> None:
        if self._model is not None:
            self._known.update((p, name) for name, p in self._model.named_parameters())

    def __getitem__(self, p: Tensor) -> str:
        if p not in self._known:
            self._look()
        name = self._known.setdefault(p, None)
        if name is None:
            raise KeyError(p)
        return name

    def __iter__(self) -> Iterator[Tensor]:
        return (p for p, name in self._known.items() if name is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Watched:
    """The present layers of an optimizer, described by its groups and a model.

    Args:
        model: gives the layers' types; None infers them from names.
        optimizer: its groups hold the layers.
        names: layer names by parameter, for groups that carry none.
        kept_names: returns the names of layers in groups that were edited by hand.
    """

    def __init__(
        self,
        model: torch.nn.Module | None,
        optimizer: Optimizer,
        names: Mapping[Tensor, str],
        kept_names: Callable[[], Mapping[Tensor, str]],
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._names, self._kept_names = names, kept_names
        self._start_norms: dict[str, float] = {}
        self.put_start_norms({})

    def _layout(self) -> Meter:
        layout = Meter(1)
        kept = {p: name for p, name in self._kept_names().items() if p not in self._names}
        for group in self._optimizer.param_groups:
            add_to_meter(layout, group, self._names, kept)
        return layout

    def _params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def layers(self) -> list[tuple[str, Tensor]]:
        """Name and tensor of each layer, in the order of a reading."""
        return list(zip(self._layout().names, self._params(), strict=True))

    def given_names(self) -> dict[str, str]:
        """Return the layers' names here, by a ThermoAdamW's own names, where they differ."""
        own = Meter(1)
        for group in self._optimizer.param_groups:
            add_to_meter(own, group, kept=self._kept_names())
        return {a: b for a, b in zip(own.names, self._layout().names, strict=True) if a != b}

    def types(self) -> dict[str, str]:
        """Return each layer's type: from the model's modules, or from its name if the model lacks it."""
        known: dict[Tensor, str] = {}
        if self._model is not None:
            types = layer_types(self._model)
            known = {p: types[name] for name, p in self._model.named_parameters()}
        return {name: known.get(p) or detect_layer_type(name) for name, p in self.layers()}

    def frozen(self) -> frozenset[str]:
        """Return the names of the layers that take no gradient now."""
        return frozenset(name for name, p in self.layers() if not p.requires_grad)

    def matrices(self) -> frozenset[str]:
        """Names of the layers of two or more dimensions."""
        return frozenset(name for name, p in self.layers() if p.ndim >= 2)

    def start_norms(self) -> dict[str, float]:
        """Return each layer's squared norm when it was first seen, NaN if it had no values then."""
        fresh = [(name, p) for name, p in self.layers() if name not in self._start_norms]
        rms = root_mean_squares([p for _, p in fresh]).tolist()
        for (name, p), value in zip(fresh, rms, strict=True):
            self._start_norms[name] = math.nan if p.is_meta else value**2 * real_elements(p)
        return dict(self._start_norms)

    def put_start_norms(self, norms: dict[str, float]) -> None:
        """Set norms at the start; layers not named keep theirs."""
        given = self.given_names()  # a state may date from before the layers had names
        norms = {given.get(name, name): value for name, value in with_plain_names(norms).items()}
        norms = with_present_names(norms, list(norms), [name for name, _ in self.layers()])
        self._start_norms = {**self.start_norms(), **norms}

    def start(self) -> Start:
        """Describe the parameters as they are now, for :meth:`Controller.attach`.

        ``lr`` and ``wd`` are 0.0 if a group has no such key. ``beta1`` and ``beta2`` are 0.0 except for
        torch's Adam and AdamW and their subclasses: Lion's betas, for one, belong to no second moment.
        """
        groups = self._optimizer.param_groups
        if not has_adam_moments(self._optimizer):
            groups = [{**group, "betas": (0.0, 0.0)} for group in groups]
        return start_of(
            groups,
            self._layout(),
            rms=root_mean_squares(self._params()).tolist(),
            lr=[float(group.get("lr") or 0.0) for group in groups],
            wd=[group_decay(group) for group in groups],
        )
