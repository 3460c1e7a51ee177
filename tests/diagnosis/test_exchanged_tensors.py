"""no_gradients: an optimizer that is left with tensors which the model no longer has."""

import pytest
import torch
from torch import nn

from thermoopt import Observer, ThermoAdamW, diagnose

OPTIMIZERS = {
    "ThermoAdamW": lambda model: ThermoAdamW(model.named_parameters(), lr=1e-2),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2),
}


def found(make, assign):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = make(model)
    observer = Observer(model, optimizer)
    for step in range(300):
        if step == 150:
            state = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(state, assign=assign)
        x = torch.randn(32, 8)
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    report = diagnose(observer)
    assert report.healthy != assign
    return [f for f in report.findings if f.kind == "no_gradients"]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_exchanged_tensors_are_found_with_the_step(make):
    (finding,) = found(make, assign=True)
    assert finding.confidence == "HIGH"
    assert finding.effect == pytest.approx(150, abs=10)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_values_that_were_loaded_are_no_finding(make):
    assert not found(make, assign=False)
