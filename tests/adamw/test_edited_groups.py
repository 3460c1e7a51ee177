"""Groups edited by hand in mid-run are followed: averages, names and starts go where the tensors go."""

from __future__ import annotations

import warnings

import pytest
import torch

from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune

EDITS = ("pop", "pop last", "list", "append", "remove", "exchange", "reorder")
GONE = {"pop": {0, 1}, "pop last": {4, 5}, "list": {4, 5}, "append": set(), "remove": {3}}


def _net():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(6, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)]
    return [list(layer.parameters()) for layer in layers], torch.nn.Parameter(torch.ones(1))


def _edit(opt, what, late):
    groups = opt.param_groups
    if what == "pop":
        groups.pop(0)
    elif what == "pop last":
        groups.pop()
    elif what == "list":
        opt.param_groups = groups[:2]
    elif what == "append":
        groups[-1]["params"].append(late)
    elif what == "remove":
        del groups[1]["params"][1]
    elif what == "reorder":
        groups.reverse()
    elif what == "exchange":
        old = groups[1]["params"][0]
        new = torch.nn.Parameter(old.detach().clone())
        opt.state[new] = opt.state.pop(old)
        groups[1]["params"][0] = new


def _run(make, what, steps=24, at=9, scheduled=False):
    params, late = _net()
    opt = make([{"params": group} for group in params])
    scheduler = (
        ThermoScheduler(opt, steps, shape="constant", controller=autotune(steps)) if scheduled else None
    )
    observer = None if isinstance(opt, ThermoAdamW) else Observer(None, opt, log_every=1, track=("distance",))
    every = [*(p for group in params for p in group), late]
    for t in range(steps):
        if t == at:
            _edit(opt, what, late)
        held = {p for group in opt.param_groups for p in group["params"]}
        new = [p for p in held if all(p is not q for q in every)]
        for i, p in enumerate([*every, *new]):
            p.grad = (p.detach() - 0.1 * i).clone() if p in held else None
        opt.step()
        if scheduler is not None:
            scheduler.step()
    return opt, observer, scheduler


def _adamw(params):
    return torch.optim.AdamW(params, lr=1e-2, fused=True)


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("kind", ["monitor", "torch", "autotune", "observer", "scheduler"])
def test_readings_hold_the_layers_that_are_there(what, kind):
    make = {
        "monitor": lambda p: ThermoAdamW(p, lr=1e-2),
        "torch": lambda p: ThermoAdamW(p, lr=1e-2, fused=True, backend="torch", measure_every=1),
        "autotune": lambda p: ThermoAdamW(p, controller=autotune(24)),
    }.get(kind, _adamw)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt, observer, _ = _run(make, what, scheduled=kind == "scheduler")
    said = [w for w in caught if "edited by hand" in str(w.message)]
    assert len(said) <= 1 + (kind == "scheduler")  # of two observers each says it
    assert bool(said) == (what != "reorder")
    reading = opt.reading if observer is None else observer.reading
    held = [p for group in opt.param_groups for p in group["params"]]
    assert len(reading.names) == len(set(reading.names)) == len(held)
    assert reading.total.numel == sum(p.numel() for p in held)
    assert len(reading.groups) == len(opt.param_groups)
    if observer is None:
        opt.load_state_dict(opt.state_dict())
        assert len(opt.reading.names) == len(held)
    if kind in ("monitor", "torch", "observer"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            plain, _, _ = _run(_adamw, what)
        for p, q in zip(held, (q for group in plain.param_groups for q in group["params"]), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("what", [*GONE, "reorder"])
def test_averages_and_names_go_where_the_tensors_go(what):
    """The layers that stay read as in a run in which nothing was edited: their gradients are their own."""
    whole, _, _ = _run(lambda p: ThermoAdamW(p, lr=1e-2), "none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opt, _, _ = _run(lambda p: ThermoAdamW(p, lr=1e-2), what)
    stay = [i for i in range(6) if i not in GONE.get(what, set())]
    for i in stay:
        name = whole.reading.names[i]
        j = opt.reading.names.index(name)
        assert opt.reading.terms[:, j] == pytest.approx(whole.reading.terms[:, i], rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("at", [3, 30])
def test_an_exchanged_tensor_costs_a_controlled_run_nothing(scheduled, at):
    def run(at):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(200, 3) * 0.05)
        scheduler = None
        if scheduled:
            opt = torch.optim.AdamW([p], lr=1e-3)
            scheduler = ThermoScheduler(opt, 60, shape="constant", controller=autotune(60))
        else:
            opt = ThermoAdamW([p], controller=autotune(60))
        for t in range(60):
            if t == at:
                new = torch.nn.Parameter(p.detach().clone())
                opt.state[new] = opt.state.pop(p)
                opt.param_groups[0]["params"][0] = p = new
            p.grad = (p.detach() - 30) / 300
            opt.step()
            if scheduler is not None:
                scheduler.step()
        return p.detach()

    with pytest.warns(RuntimeWarning, match=r"followed on the new ones: group0\.0"):
        exchanged = run(at)
    assert torch.equal(exchanged, run(None))


def test_distance_is_measured_on_the_tensor_in_its_place():
    p = torch.nn.Parameter(torch.zeros(5))
    opt = torch.optim.SGD([p], lr=1.0)
    observer = Observer(None, opt, log_every=1, track=("distance",), ema_steps=1)
    for t in range(6):
        if t == 2:
            p = torch.nn.Parameter(p.detach().clone())
            opt.param_groups[0]["params"][0] = p
        p.grad = torch.full((5,), -1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            opt.step()
    # squared, measured before the 6th step: five steps of 1 in each of five coordinates
    assert observer.reading.total.distance == pytest.approx(5 * 5.0**2)


def test_a_tensor_of_another_shape_starts_afresh_under_its_name():
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    opt = ThermoAdamW([("w", p), ("v", q)], lr=0.1, ema_steps=1)
    for t in range(4):
        if t == 2:
            del opt.state[p]
            p = torch.nn.Parameter(torch.ones(7))
            opt.param_groups[0]["params"][0] = p
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        if t == 2:
            with pytest.warns(RuntimeWarning, match="whose shape changed, measured afresh: w$"):
                opt.step()
        else:
            opt.step()
    assert opt.reading.names == ("w", "v")
    assert opt.reading.total.numel == 11
    assert opt.reading.layers["w"].sigma == pytest.approx(0.1 * 7, rel=1e-4)


def test_names_stay_with_their_tensors():
    a, b, c = (torch.nn.Parameter(torch.ones(n)) for n in (2, 3, 4))
    opt = ThermoAdamW([("a", a), ("b", b)], lr=0.1)
    opt.set_layer_factors({"b": 0.5})
    del opt.param_groups[0]["params"][0]
    opt.param_groups[0]["params"].append(c)
    b.grad, c.grad = torch.ones(3), torch.ones(4)
    with pytest.warns(RuntimeWarning, match="removed: a; added"):
        opt.step()
    assert opt.reading.names[0] == "b"
    assert opt.param_groups[0]["param_names"] == list(opt.reading.names)
    assert opt.param_groups[0]["thermo"]["layer_factors"].tolist() == [0.5, 1.0]


def test_a_checkpoint_in_another_order_of_names_is_refused():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    saved = ThermoAdamW([("a", a), ("b", b)]).state_dict()
    other = ThermoAdamW([("b", b), ("a", a)])
    with pytest.raises(ValueError, match="another order: 'a' where this one has 'b'"):
        other.load_state_dict(saved)
    assert other.param_groups[0]["param_names"] == ["b", "a"]
