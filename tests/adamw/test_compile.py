"""torch.compile around an optimizer's step: the same step, traced once."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.support.controllers import Stateless
from tests.support.small_net import assert_same_bits, model
from thermoopt import ThermoAdamW
from thermoopt.controllers import Scales

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    # torch's wrapper around a compiled step hides it from the scheduler that looks for it
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning"),
]

STEPS = 12


class Moving(Stateless):
    """Other scales and factors in every step; factors meet and part."""

    def update(self, reading, step):
        layers = {"group0.0": 1 + 0.1 * step, "group0.1": 2.0 if step % 3 else 1 + 0.1 * step}
        return Scales(lr=[1 + 0.05 * step], wd=[2 + 0.3 * step], layers=layers)


def trained(compiler=None, controller=None, optimizer=ThermoAdamW, **flags):
    """Return a model, its optimizer, and how many graphs there were after each step."""
    torch._dynamo.reset()
    if optimizer is ThermoAdamW:
        flags = {"measure_every": 2, "controller": controller, **flags}
    net = model()
    opt = optimizer(net.parameters(), lr=1e-2, weight_decay=0.1, **flags)
    counter = CompileCounterWithBackend(compiler or "eager")
    step = torch.compile(opt.step, backend=counter) if compiler else opt.step
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 2 * STEPS)
    graphs = []
    for i in range(STEPS):
        rng = torch.Generator().manual_seed(i)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=rng)
        step()
        schedule.step()
        graphs.append(counter.frame_count)
    return net, opt, graphs


@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        ("eager", {"backend": "torch"}),
        ("eager", {"foreach": True}),
        ("aot_eager", {"backend": "torch", "amsgrad": True}),
        pytest.param("inductor", {"backend": "torch"}, marks=pytest.mark.slow),
    ],
)
def test_rates_and_scales_that_change_call_for_no_second_trace(compiler, flags):
    compiled, opt, graphs = trained(compiler, Moving(), **flags)
    assert graphs[1] > 0  # the first step, in which torch creates the state, is not traced
    assert len(set(graphs[1:])) == 1
    plain, reference, _ = trained(None, Moving(), **flags)
    for p, q in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6)
    assert opt.steps == reference.steps == STEPS
    assert opt.reading.total.sigma == pytest.approx(reference.reading.total.sigma, rel=1e-4)


def test_a_traced_step_is_torchs_own_traced_step():
    compiled, _, _ = trained("eager", backend="torch")
    theirs, _, _ = trained("eager", optimizer=torch.optim.AdamW)
    for p, q in zip(compiled.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("flags", [{"fused": True}, {"backend": "native"}, {"backend": "auto"}])
def test_a_step_that_is_one_kernel_already_is_left_as_it_is(flags):
    compiled, opt, graphs = trained("eager", Moving(), **flags)
    plain, reference, _ = trained(None, Moving(), **flags)
    assert_same_bits(compiled, opt, plain, reference)
    assert graphs == [0] * STEPS
    assert opt.reading.total.sigma == reference.reading.total.sigma


def test_a_gradient_that_is_missing_and_a_group_that_is_added_are_traced_anew_and_right():
    def run(compile_it):
        torch._dynamo.reset()
        net, more = model(), torch.nn.Parameter(torch.ones(3))
        opt = ThermoAdamW(net.parameters(), lr=1e-2, backend="torch")
        step = torch.compile(opt.step, backend="eager") if compile_it else opt.step
        params = list(net.parameters())
        for i in range(9):
            if i == 6:
                opt.add_param_group({"params": [more], "lr": 0.1})
                params.append(more)
            for j, p in enumerate(params):
                p.grad = None if i == 4 and j == 1 else torch.full_like(p, 0.1 * (i + j + 1))
            step()
        return params, opt

    (ours, opt), (plain, _) = run(True), run(False)
    for p, q in zip(ours, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6)
    assert [int(opt.state[p]["step"]) for p in ours] == [9, 8, 9, 9, 3]
