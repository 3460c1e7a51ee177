"""Every optimizer of the packages that are installed, one :class:`Case` each."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from thermoopt.benchmarks.others.checks import Case

__all__ = ["PACKAGES", "cases"]

Kwargs = dict[str, Any]


def cases(packages: tuple[str, ...] | None = None) -> list[Case]:
    """Return the optimizers of some packages; None is all that are installed."""
    found = []
    for package in PACKAGES if packages is None else packages:
        if importlib.util.find_spec(package) is not None:
            found += list(PACKAGES[package]())
    return found


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim == 2]


def _made(cls: Callable[..., Optimizer], model: nn.Module, lr: float | None, **options: Any) -> Optimizer:
    only = options.pop("only", None)
    params = list(model.parameters()) if only is None else only(model)
    return cls(params, **({} if lr is None else {"lr": lr}), **options)


def _case(
    package: str, cls: type[Optimizer], name: str = "", lr: float | None = None, **options: Any
) -> Case:
    closure, graph = options.pop("closure", False), options.pop("create_graph", False)
    make = partial(_made, cls, **options)
    return Case(package, name or cls.__name__, make, lr, closure=closure, create_graph=graph)


def _torch() -> Iterator[Case]:
    special: dict[str, Kwargs] = {
        "LBFGS": {"closure": True, "lr": 1.0, "max_iter": 2, "line_search_fn": "strong_wolfe"},
        "Muon": {"only": _matrices, "lr": 1e-2},
    }
    rates = {
        "SGD": 0.3,
        "ASGD": 0.3,
        "Adadelta": 1.0,
        "Adagrad": 3e-2,
        "Adafactor": 1e-2,
        "Rprop": 1e-3,
        "RAdam": 1e-2,
    }
    for name in sorted(vars(torch.optim)):
        cls = getattr(torch.optim, name)
        if not (isinstance(cls, type) and issubclass(cls, Optimizer)) or cls is Optimizer:
            continue
        if name == "SparseAdam":  # takes gradients that this network does not have
            continue
        yield _case("torch", cls, **{"lr": rates.get(name, 3e-3), **special.get(name, {})})
    yield _case("torch", torch.optim.AdamW, "AdamW(fused)", 3e-3, fused=True)
    yield _case("torch", torch.optim.AdamW, "AdamW(amsgrad)", 3e-3, amsgrad=True)
    yield _case("torch", torch.optim.Adam, "Adam(weight_decay)", 3e-3, weight_decay=1e-3)
    yield _case(
        "torch", torch.optim.SGD, "SGD(momentum, weight_decay)", 0.03, momentum=0.9, weight_decay=1e-4
    )


def _schedulefree() -> Iterator[Case]:
    module = importlib.import_module("schedulefree")
    for name in sorted(vars(module)):
        cls = getattr(module, name)
        if isinstance(cls, type) and issubclass(cls, Optimizer):
            lr = {"S": 0.3, "R": 1e-2}.get(name[0], 3e-3)
            yield _case("schedulefree", cls, lr=lr, closure=name.endswith("Closure"))


def _prodigyopt() -> Iterator[Case]:
    yield _case("prodigyopt", importlib.import_module("prodigyopt").Prodigy, lr=1.0)


def _transformers() -> Iterator[Case]:
    Adafactor = importlib.import_module("transformers.optimization").Adafactor
    yield _case("transformers", Adafactor, lr=1e-2, relative_step=False, scale_parameter=False)
    yield _case("transformers", Adafactor, "Adafactor(relative_step)", None)


def _optimi() -> Iterator[Case]:
    module = importlib.import_module("optimi")
    for name in ("Adam", "AdamW", "Adan", "Lion", "RAdam", "Ranger", "SGD", "StableAdamW"):
        rates = {"SGD": 0.1, "Lion": 1e-3}
        plain: dict[str, Any] = {"triton": False} if name == "StableAdamW" else {}  # it would look for a GPU
        yield _case("optimi", getattr(module, name), lr=rates.get(name, 3e-3), **plain)


def _dadaptation() -> Iterator[Case]:
    module = importlib.import_module("dadaptation")
    for name in ("DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD"):
        yield _case("dadaptation", getattr(module, name), lr=1.0)


def _timm() -> Iterator[Case]:
    optim = importlib.import_module("timm.optim")

    def make(name: str, model: nn.Module, lr: float | None) -> Optimizer:
        return optim.create_optimizer_v2(model, opt=name, lr=lr, filter_bias_and_bn=False)

    for name in optim.list_optimizers():
        if not name.startswith(("bnb", "fused")):  # compiled for CUDA
            yield Case("timm", name, partial(make, name), create_graph=name == "adahessian")


def _pytorch_optimizer() -> Iterator[Case]:
    module = importlib.import_module("pytorch_optimizer")
    whole = {"adalomo", "adammini", "lomo"}  # take the model
    matrices = {"spectralsphere"}  # take nothing else
    by_groups = {"adago", "adamuon", "distributedmuon", "muon", "muonclip", "normuon"}
    options: dict[str, Kwargs] = {
        "bsam": {"num_data": 12800},
        "ranger21": {"num_iterations": 200},
        "magma": {"optimizer": torch.optim.AdamW},
        "demo": {},
    }

    def make(name: str, model: nn.Module, lr: float | None) -> Optimizer:
        cls = module.load_optimizer(name)
        given = dict(options.get(name, {}))
        if lr is not None and name != "alig":
            given["lr"] = lr
        if name == "magma":
            inner = given.pop("optimizer")(model.parameters(), lr=given.pop("lr", 1e-3))
            return cls(inner)
        if name in by_groups:
            others = [p for p in model.parameters() if p.ndim != 2]
            groups = [
                {"params": _matrices(model), "use_muon": True},
                {"params": others, "use_muon": False},
            ]
            return cls(groups, **given)
        if name in matrices:
            return cls(_matrices(model), **given)
        return cls(model if name in whole else list(model.parameters()), **given)

    for name in module.get_supported_optimizers():
        closure = name in ("alig", "bsam", "lbfgs")
        yield Case(
            "pytorch_optimizer",
            name,
            partial(make, name),
            closure=closure,
            create_graph=name in ("adahessian", "sophiah"),
            distributed=name in ("demo", "distributedmuon"),
        )


PACKAGES: dict[str, Callable[[], Iterator[Case]]] = {
    "torch": _torch,
    "schedulefree": _schedulefree,
    "prodigyopt": _prodigyopt,
    "transformers": _transformers,
    "optimi": _optimi,
    "dadaptation": _dadaptation,
    "timm": _timm,
    "pytorch_optimizer": _pytorch_optimizer,
}
"""The cases of each package, by the name it is imported under."""
