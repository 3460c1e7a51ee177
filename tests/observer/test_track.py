"""Tracked quantities against float64 loops written out here, and what tracking keeps and leaves alone."""

import io
import json
import math

import numpy as np
import pytest
import torch

from tests.support.lion import Lion
from tests.support.small_net import assert_same_bits, model, train
from tests.support.strides import measured
from thermoopt import Observer, ThermoAdamW
from thermoopt.tensors.sampling import PAGE_SHARE, PAGES_WHOLE, pages

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=3e-3, weight_decay=0.3),
    "lion": lambda params: Lion(params, lr=1e-2, weight_decay=0.1),
    "thermoadamw": lambda params: ThermoAdamW(params, lr=3e-3, measure_every=1, ema_steps=4, backend="torch"),
}
SHAPES = [(5, 7), (11,), (2, 3, 4)]
BOTH = ("rho", "distance")


def make_params(shapes=SHAPES, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=rng, dtype=torch.float64).to(dtype)) for s in shapes]


def draw(params, step, drift=0.5):
    rng = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=rng, dtype=torch.float64) + drift).to(p.dtype)


def run(optimizer, params, steps, first=1):
    """Take steps on seeded gradients; return them and the parameters before each, flat, float64."""
    grads, before = {}, {}
    for step in range(first, first + steps):
        draw(params, step)
        grads[step] = [p.grad.double().reshape(-1).clone() for p in params]
        before[step] = [p.detach().double().reshape(-1).clone() for p in params]
        optimizer.step()
    return grads, before


def expected_rho(grads, measured, ema_steps):
    """Ratio of the averages of the three sums, of each layer and of all, by a plain loop."""
    keep, last, weight = 1 - 1 / ema_steps, 0, 0.0
    sums = np.zeros((3, len(SHAPES)))
    for step in measured:
        if step - 1 not in grads:
            continue
        rows = [
            [float(a @ b), float(a @ a), float(b @ b)]
            for a, b in zip(grads[step], grads[step - 1], strict=True)
        ]
        q = keep ** (step - last)
        sums, weight, last = q * sums + (1 - q) * np.array(rows).T, q * weight + 1 - q, step
    dot, now, then = sums / weight
    return dot / np.sqrt(now * then), dot.sum() / math.sqrt(now.sum() * then.sum())


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_rho_is_the_cosine_of_successive_gradients(name, every):
    params = make_params()
    opt = OPTIMIZERS[name](params)
    observer = Observer(None, opt, every, track=("rho",), ema_steps=4)
    grads, _ = run(opt, params, 13)
    layers, total = expected_rho(grads, measured(every, 13), ema_steps=4)
    assert observer.reading.step == measured(every, 13)[-1]
    assert observer.reading.layer_array("rho") == pytest.approx(layers, rel=1e-12)
    assert observer.reading.total.rho == pytest.approx(total, rel=1e-12)
    assert math.isnan(observer.reading.total.distance)


@pytest.mark.parametrize("every", [1, 3])
def test_rho_of_a_thermoadamw(every):
    params = make_params()
    opt = ThermoAdamW(params, measure_every=every, ema_steps=6, backend="torch")
    observer = Observer(None, opt, track=("rho",))
    grads, _ = run(opt, params, 10)
    layers, total = expected_rho(grads, measured(every, 10), ema_steps=6)
    assert observer.reading.layer_array("rho") == pytest.approx(layers, rel=1e-12)
    assert observer.reading.total.rho == pytest.approx(total, rel=1e-12)
    assert math.isnan(opt.reading.total.rho)  # the optimizer's own account keeps nothing


@pytest.mark.parametrize(("signs", "expected"), [((1, 1), 1.0), ((1, -1), -1.0)])
def test_rho_at_its_ends(signs, expected):
    p = torch.nn.Parameter(torch.zeros(8))
    opt = torch.optim.SGD([p], lr=0.1)
    observer = Observer(None, opt, 1, track=("rho",))
    for step in range(6):
        p.grad = torch.full((8,), 0.3 * signs[step % 2])
        opt.step()
        assert math.isnan(observer.reading.total.rho) is (step == 0)  # nothing before the first gradient
    assert observer.reading.total.rho == pytest.approx(expected)


def test_rho_of_noise_is_0_within_its_error():
    p = torch.nn.Parameter(torch.zeros(40_000))
    opt = torch.optim.SGD([p], lr=0.0001)
    observer = Observer(None, opt, 1, track=("rho",), ema_steps=1)
    for step in range(3):
        draw([p], step, drift=0.0)
        opt.step()
    assert abs(observer.reading.total.rho) < 5 / math.sqrt(p.numel())
    assert observer.reading.total.rho != 0.0


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_distance_is_the_squared_way_from_the_start(name, every):
    params = make_params()
    opt = OPTIMIZERS[name](params)
    observer = Observer(None, opt, every, track=("distance",), ema_steps=50)
    with torch.no_grad():
        params[0].add_(1.0)  # weights loaded late: the start is where the first step begins
    _, before = run(opt, params, 13)
    expected = [float((a - b).square().sum()) for a, b in zip(before[13], before[1], strict=True)]
    assert observer.reading.step == 13
    assert observer.reading.layer_array("distance") == pytest.approx(expected, rel=1e-12)
    assert observer.reading.total.distance == pytest.approx(sum(expected), rel=1e-12)
    assert math.isnan(observer.reading.total.rho)


def test_large_tensors_are_sampled_and_scaled_up():
    n = 20 * PAGES_WHOLE + 77
    p = torch.nn.Parameter(torch.zeros(n))
    opt = torch.optim.SGD([p], lr=1.0)
    observer = Observer(None, opt, 1, track=BOTH, ema_steps=1)
    rng = torch.Generator().manual_seed(1)
    grads = []
    for _ in range(2):
        p.grad = torch.randn(n, generator=rng) + 0.5
        grads.append(p.grad.double())
        opt.step()
    draw([p], 1)
    opt.step()
    moved = grads[0] + grads[1]
    error = 5 / math.sqrt(pages(p.detach()).numel())
    assert observer.reading.total.distance == pytest.approx(float(moved @ moved), rel=2 * error)
    assert observer.reading.total.distance != pytest.approx(float(moved @ moved), rel=1e-7)  # an estimate
    # exact of constant fields
    p.grad = torch.full((n,), 2.0)
    for _ in range(2):
        opt.step()
    assert observer.reading.total.rho == pytest.approx(1.0, rel=1e-6)


def test_memory_is_what_the_docstring_says():
    p, small = torch.nn.Parameter(torch.zeros(4 * PAGES_WHOLE)), torch.nn.Parameter(torch.zeros(100))
    opt = torch.optim.SGD([p, small], lr=0.1)
    bare, observer = Observer(None, opt, 2), Observer(None, opt, 2, track=BOTH)
    assert bare._tracker is None
    held = []
    for _ in range(4):
        draw([p, small], 1)
        opt.step()
        gradients = [g.sample for g in observer._tracker._gradients.values()]
        held.append(sum(x.untyped_storage().nbytes() for x in gradients))
    one = 4 * (p.numel() // PAGE_SHARE + small.numel())
    assert held == [one, 0, one, 0]  # from the step before a measured one to that one
    assert sum(x.untyped_storage().nbytes() for x in observer._tracker._start.values()) == one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tracking_changes_not_one_bit(name, dtype):
    ours, theirs = model(dtype), model(dtype)
    opt, ref = (OPTIMIZERS[name](net.parameters()) for net in (ours, theirs))
    observer = Observer(None, opt, 1, track=BOTH)
    train(ours, opt, 8)
    train(theirs, ref, 8)
    assert_same_bits(ours, opt, theirs, ref)
    assert observer.reading.total.distance > 0
    assert -1 <= observer.reading.total.rho <= 1


def test_half_precision_and_complex():
    wide, narrow = make_params(dtype=torch.float64), make_params(dtype=torch.bfloat16)
    pairs = [torch.nn.Parameter(torch.complex(p.detach(), p.detach())) for p in wide]
    observers = []
    for params in (wide, narrow, pairs):
        opt = torch.optim.SGD(params, lr=0.5)
        observers.append(Observer(None, opt, 1, track=BOTH, ema_steps=3))
        for step in range(4):
            draw(wide, step)
            for p, q in zip(params, wide, strict=True):
                p.grad = torch.complex(q.grad, q.grad) if p.is_complex() else q.grad.to(p.dtype)
            opt.step()
    full, half, double = (observer.reading.total for observer in observers)
    assert half.rho == pytest.approx(full.rho, abs=0.01)
    assert half.distance == pytest.approx(full.distance, rel=0.05)
    assert double.rho == pytest.approx(full.rho)
    assert double.distance == pytest.approx(2 * full.distance)


# ---------------------------------------------------------------- what steps may be like


@pytest.mark.parametrize("name", ["sgd", "thermoadamw"])
def test_a_closure_is_let_run_first(name):
    nets = model(), model()
    opts = [OPTIMIZERS[name](net.parameters()) for net in nets]
    observers = [Observer(net, opt, 1, track=BOTH, ema_steps=4) for net, opt in zip(nets, opts, strict=True)]
    for step in range(6):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        for net, opt in zip(nets, opts, strict=True):

            def closure(net=net, opt=opt, x=x):
                opt.zero_grad()
                loss = net(x).square().mean()
                loss.backward()
                return loss

            if opt is opts[0]:
                opt.step(closure) if step % 2 else opt.step(closure=closure)
            else:
                closure()
                opt.step()
    assert np.array_equal(observers[0].reading.terms, observers[1].reading.terms, equal_nan=True)
    assert math.isfinite(observers[0].reading.total.rho)


def test_a_step_of_several_evaluations_says_nothing():
    p = torch.nn.Parameter(torch.ones(4))
    opt = torch.optim.LBFGS([p], lr=0.1, max_iter=4)
    observer = Observer(None, opt, 1, track=BOTH)

    def closure():
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        opt.step(closure)
    assert observer.reading is None
    assert not observer._tracker._coming
    assert not observer._tracker._gradients


def test_what_a_grad_scaler_does():
    """Scales divide out, also where they change between two steps; a step with found_inf counts nowhere."""
    plain, scaled = make_params(dtype=torch.float32), make_params(dtype=torch.float32)
    opts = [torch.optim.SGD(params, lr=0.1, fused=True) for params in (plain, scaled)]
    observers = [Observer(None, opt, 1, track=BOTH, ema_steps=3) for opt in opts]
    for step, scale in enumerate((8.0, 8.0, 4.0, 64.0)):
        draw(plain, step)
        draw(scaled, step)
        for p in scaled:
            p.grad *= scale
        opts[1].grad_scale, opts[1].found_inf = torch.tensor(scale), torch.tensor(0.0)
        for opt in opts:
            opt.step()
    first, second = (observer.reading.total for observer in observers)
    assert second.rho == pytest.approx(first.rho, rel=1e-5)
    assert second.distance == pytest.approx(first.distance, rel=1e-5)
    before = observers[1].reading.terms.copy()
    opts[1].found_inf = torch.tensor(1.0)
    opts[1].step()
    assert observers[1].skipped["found_inf"] == 1
    opts[1].found_inf = torch.tensor(0.0)
    assert np.array_equal(observers[1].reading.terms, before, equal_nan=True)


def test_a_gradient_that_is_not_finite_moves_nothing():
    params = make_params()
    opt = torch.optim.SGD(params, lr=0.1)
    observer = Observer(None, opt, 1, track=("rho",), ema_steps=3)
    grads, _ = run(opt, params, 3)
    for p in params:
        p.grad = torch.full_like(p, math.nan)
    start = [p.detach().clone() for p in params]
    opt.step()
    with torch.no_grad():
        for p, kept in zip(params, start, strict=True):
            p.copy_(kept)
    more, _ = run(opt, params, 2, first=5)  # step 5 has no finite gradient before it
    layers, total = expected_rho({**grads, **more}, [1, 2, 3, 6], ema_steps=3)
    assert observer.reading.layer_array("rho") == pytest.approx(layers)
    assert observer.reading.total.rho == pytest.approx(total)


def test_groups_added_frozen_and_without_gradient():
    params = make_params()
    params[1].requires_grad_(False)
    opt = torch.optim.SGD(params, lr=0.1)
    observer = Observer(None, opt, 1, track=BOTH, ema_steps=1)
    draw([params[0], params[2]], 1)
    opt.step()
    assert set(observer._tracker._start) == {0, 2}
    late = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt.add_param_group({"params": [late]})
    params[1].requires_grad_(True)
    everything = [*params, late]
    start = [p.detach().clone() for p in everything]
    for step in (2, 3):
        draw(everything, step)
        opt.step()
    reading = observer.reading
    for name in ("group1.0", "group0.1"):
        assert -1 <= reading.layers[name].rho <= 1
    draw(everything, 4)
    moved = [float((p.detach() - s).square().sum()) for p, s in zip(everything, start, strict=True)]
    opt.step()
    distances = observer.reading.layer_array("distance")
    assert distances[[1, 3]] == pytest.approx([moved[1], moved[3]])  # from when they could move
    assert distances[0] > 0


def test_a_checkpoint_librarys_dry_step_is_none():
    params = make_params()
    opt = torch.optim.SGD(params, lr=0.0)
    observer = Observer(None, opt, 1, track=BOTH)
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    assert not observer._tracker._start
    assert not observer._tracker._gradients


# ---------------------------------------------------------------- where they go


@pytest.mark.parametrize("name", ["sgd", "adamw", "thermoadamw"])
def test_history_and_files_carry_them(name, tmp_path):
    params = make_params()
    opt = OPTIMIZERS[name](params)
    observer = Observer(None, opt, 1, track=BOTH, ema_steps=4)
    readings = []
    for step in range(1, 8):
        run(opt, params, 1, first=step)
        readings.append(observer.reading)
    history = observer.history
    assert history.steps.tolist() == list(range(1, 8))
    for quantity in BOTH:
        expected = [getattr(r.total, quantity) for r in readings]
        assert history.total(quantity) == pytest.approx(expected, nan_ok=True)
        assert history.group(0, quantity) == pytest.approx(expected, nan_ok=True)
        layers = [r.layer_array(quantity) for r in readings]
        assert history.layers(quantity) == pytest.approx(np.array(layers), nan_ok=True, rel=1e-5)
    observer.export_jsonl(tmp_path / "run.jsonl")
    last = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[-1])
    assert last["total"]["rho"] == pytest.approx(readings[-1].total.rho)
    assert last["layers"]["group0.1"]["distance"] > 0
    assert observer.summary()["distance_final"] == readings[-1].total.distance


def test_the_history_of_a_tracked_thermoadamw_is_as_long_as_its_own():
    params = make_params()
    opt = ThermoAdamW(params, measure_every=3, ema_steps=20, backend="torch")
    observer = Observer(None, opt, track=("distance",))
    run(opt, params, 30)
    assert observer.history is not opt.history
    assert observer.history.steps.tolist() == opt.history.steps.tolist() == [3, 10, 14, 21, 25]
    assert np.isnan(opt.history.total("distance")).all()
    assert (observer.history.total("distance") > 0).all()
    for mine, own in zip(observer.history.records(), opt.history.records(), strict=True):
        assert mine["total"] == {**own["total"], "distance": mine["total"]["distance"]}


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resume_goes_on_bit_for_bit(name, every):
    """Saved one step before a measured one, so that a gradient is under way, too."""
    params = make_params(dtype=torch.float32)
    opt = OPTIMIZERS[name](params)
    observer = Observer(None, opt, every, track=BOTH, ema_steps=4)
    run(opt, params, 5)
    buffer = io.BytesIO()
    torch.save([opt.state_dict(), observer.state_dict(), [p.detach() for p in params]], buffer)
    run(opt, params, 5, first=6)

    buffer.seek(0)
    of_optimizer, of_observer, values = torch.load(buffer, weights_only=True)
    others = [torch.nn.Parameter(v) for v in values]
    resumed = OPTIMIZERS[name](others)
    watching = Observer(None, resumed, every, track=BOTH, ema_steps=4)
    resumed.load_state_dict(of_optimizer)
    watching.load_state_dict(of_observer)
    run(resumed, others, 5, first=6)
    assert np.array_equal(observer.reading.terms, watching.reading.terms, equal_nan=True)
    assert observer.reading.step == watching.reading.step == 10
    assert watching.reading.total.distance > 0
    assert watching.start_norms == observer.start_norms


@pytest.mark.parametrize("saved_without", [True, False])
def test_a_state_without_the_start_is_said(saved_without):
    params = make_params()
    opt = torch.optim.SGD(params, lr=0.1)
    observer = Observer(None, opt, 1, track=("rho",) if saved_without else BOTH)
    run(opt, params, 2)
    state = observer.state_dict()
    if not saved_without:
        state["tracked"]["start"][0] = torch.zeros(3)  # of another layout
    watching = Observer(None, opt, 1, track=("distance",))
    watching.load_state_dict(state)
    draw(params, 3)
    with pytest.warns(RuntimeWarning, match="no fitting start of the run"):
        opt.step()
    assert watching.reading.layer_array("distance")[0] == 0.0
    draw(params, 4)
    opt.step()
    assert watching.reading.layer_array("distance")[0] > 0


def test_a_state_of_more_layers_is_refused_whole():
    params = make_params()
    opt, fewer = torch.optim.SGD(params, lr=0.1), torch.optim.SGD(params[:2], lr=0.1)
    observer, small = (Observer(None, o, 1, track=BOTH) for o in (opt, fewer))
    run(opt, params, 3)
    run(fewer, params[:2], 1)
    before = small.reading
    with pytest.raises(ValueError, match="3 layers, but the optimizer has 2"):
        small.load_state_dict(observer.state_dict())
    assert np.array_equal(small.reading.terms, before.terms, equal_nan=True)


def test_going_back_of_a_thermoadamw():
    params = make_params()
    opt = ThermoAdamW(params, measure_every=1, ema_steps=4, backend="torch")
    observer = Observer(None, opt, track=("rho",))
    run(opt, params, 4)
    state = opt.state_dict()
    run(opt, params, 4, first=5)
    opt.load_state_dict(state)  # the observer's own state is not loaded
    assert observer.history.steps.tolist() == [1, 2, 3, 4]
    run(opt, params, 3, first=5)
    assert observer.history.steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert -1 <= observer.reading.total.rho <= 1


def test_close_ends_tracking():
    params = make_params()
    opt = ThermoAdamW(params, measure_every=1)
    observer = Observer(None, opt, track=BOTH)
    observer.close()
    assert not opt._optimizer_step_pre_hooks
    assert not opt._optimizer_step_post_hooks
    run(opt, params, 2)
    assert not observer._tracker._start


@pytest.mark.parametrize(
    ("track", "error", "words"),
    [
        (("rho", "temperature"), ValueError, ["track", "'temperature'", "'rho', 'distance'"]),
        ("rho", TypeError, ["track", "'rho'", "tuple"]),
        (3, TypeError, ["track", "3"]),
    ],
)
def test_bad_names(track, error, words):
    opt = torch.optim.SGD(make_params(), lr=0.1)
    with pytest.raises(error) as caught:
        Observer(None, opt, track=track)
    for word in words:
        assert word in str(caught.value)
    assert not opt._optimizer_step_pre_hooks
