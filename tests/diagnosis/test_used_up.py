"""A run that goes on after its schedule is told so, however its steps are measured."""

import pytest
import torch

from thermoopt import Observer, diagnose


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adagrad"])
def test_a_used_up_schedule_is_found(kind):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    x = torch.randn(64, 8)
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=1e-2)
    observer = Observer(model, optimizer)
    for step in range(1, 301):
        optimizer.param_groups[0]["lr"] = 1e-2 if step <= 100 else 0.0
        optimizer.zero_grad()
        loss = (model(x) - x.prod(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    finding = next(f for f in diagnose(observer).findings if f.kind == "learning_rate_zero")
    assert finding.confidence == "HIGH"
    since = "since step 105: 196 of 300" if kind == "AdamW" else "since about step 96: 205 of 300"
    assert since in finding.message
    assert observer.skipped.get("lr_zero") == (0 if kind == "AdamW" else 19)


def test_a_warm_up_from_zero_is_no_finding():
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    observer = Observer(model, optimizer)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, max(0, step - 30) / 30)
        optimizer.zero_grad()
        model(torch.ones(4, 8)).square().mean().backward()
        optimizer.step()
    assert observer.skipped["lr_zero"] == 3
    assert "learning_rate_zero" not in {f.kind for f in diagnose(observer).findings}
