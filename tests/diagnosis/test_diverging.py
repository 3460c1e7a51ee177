"""A run that diverges raises nothing that AdamW would not: no numpy warning leaves a step or a diagnosis."""

import math
import warnings

import pytest
import torch

from thermoopt import CollapseDetector, EntropySplit, Observer, ThermoAdamW, diagnose
from thermoopt.controllers import Chain, Cooling, Thermostat


def make(kind, params):
    if kind == "adamw":
        return torch.optim.AdamW(params, lr=1e3, weight_decay=10.0)
    if kind == "sgd":
        return torch.optim.SGD(params, lr=1e3)
    held = Thermostat(
        total_steps=60, lr_scale=(0.25, 4.0), reverse=False
    )  # with the gear it would not diverge
    controller = Chain(held, Cooling(60)) if kind == "controlled" else None
    return ThermoAdamW(params, lr=1e3, weight_decay=10.0, controller=controller)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("adamw", torch.float32),
        ("sgd", torch.float32),
        ("sgd", torch.float64),
        ("monitor", torch.float64),
        ("controlled", torch.float32),
        ("controlled", torch.float64),
    ],
)
def test_a_diverging_run_raises_no_warning(kind, dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(3)]).to(dtype)
    optimizer = make(kind, model.named_parameters())
    observer = Observer(model, optimizer, log_every=1, track=("rho", "distance"))
    split, detector = (
        EntropySplit(model, optimizer, observer),
        CollapseDetector(model, optimizer, observer=observer),
    )
    x = torch.randn(16, 8, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
            detector.step()
        report = diagnose(observer, split, detector)
        largest = max(observer.reading.total.param_norm, *(g.grad_norm for g in observer.reading.groups))
    loss = loss.item()
    assert not math.isfinite(loss) or largest > 1e15
    if not math.isfinite(loss):
        assert observer.skipped["nonfinite"] > 0
        assert observer.bad_losses > 0
    assert not report.healthy
