"""Lightning's Fabric: its wrappers hand everything on, and a run resumes bit for bit."""

import copy
import warnings

import pytest
import torch

from tests.support.small_net import model, train
from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune

with warnings.catch_warnings():  # at import: torch's and lightning's own deprecations
    warnings.simplefilter("ignore")
    fabric_package = pytest.importorskip("lightning.fabric")


def set_up(kind):
    fabric = fabric_package.Fabric(accelerator="cpu", devices=1)
    net = model()
    if kind == "adamw":
        opt = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
    else:
        control = autotune(20) if kind == "controlled" else None
        opt = ThermoAdamW(net.named_parameters(), lr=1e-2, controller=control)
    return fabric, net, opt, *fabric.setup(net, opt)


@pytest.mark.parametrize("kind", ["monitor", "controlled"])
def test_a_run_resumes_bit_for_bit(kind, tmp_path):
    fabric, net, opt, wrapped_net, wrapped = set_up(kind)
    train(wrapped_net, wrapped, 8)
    fabric.save(tmp_path / "at8", {"net": wrapped_net, "opt": wrapped})
    train(wrapped_net, wrapped, 12, start=8)
    assert wrapped.reading.step == opt.steps == 20
    fabric, again, _, wrapped_net, wrapped = set_up(kind)
    fabric.load(tmp_path / "at8", {"net": wrapped_net, "opt": wrapped})
    train(wrapped_net, wrapped, 12, start=8)
    assert all(map(torch.equal, net.parameters(), again.parameters()))


def test_the_monitor_changes_no_bit():
    _, plain, _, *wrapped = set_up("adamw")
    _, measured, _, *wrapped_too = set_up("monitor")
    train(*wrapped, 10)
    train(*wrapped_too, 10)
    assert all(map(torch.equal, plain.parameters(), measured.parameters()))


def test_what_it_wraps_is_observed_by_the_models_names_and_scheduled():
    _, net, opt, wrapped_net, wrapped = set_up("adamw")
    observer = Observer(wrapped_net, opt, log_every=1)
    scheduler = ThermoScheduler(opt, 10, shape="linear")
    train(wrapped_net, wrapped, 10, scheduler=scheduler)
    assert list(observer.reading.names) == [name for name, _ in net.named_parameters()]
    assert (observer.steps, opt.param_groups[0]["lr"]) == (10, pytest.approx(0.0, abs=1e-12))
    for refuse in (lambda: Observer(wrapped_net, wrapped), lambda: ThermoScheduler(wrapped, 10)):
        with pytest.raises(TypeError, match=r"it wraps is its \.optimizer$"):
            refuse()
    copy.deepcopy(opt)
