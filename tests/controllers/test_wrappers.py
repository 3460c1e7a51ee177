"""Chain, dry run, record and replay: against scripted controllers, and inside the optimizer."""

import io
import json
import math

import pytest
import torch

from tests.support.small_net import assert_same_bits, model, train
from thermoopt import ThermoAdamW, autotune
from thermoopt.controllers.base import Action, Controller, Scales, Start
from thermoopt.controllers.cooling import Cooling
from thermoopt.controllers.replay import Recorder, Replay
from thermoopt.controllers.wrappers import Chain, DryRun
from thermoopt.physics.travel import Weights

START = Start(("w",), (0,), ("g",), (4,), (2,), (1.0,), (2,), (1e-3,), (0.1,), (0.9,), (0.999,))


class Script(Controller):
    """Says what it is told to, by step; its state is the number of updates."""

    def __init__(self, answers, needs=(), every=None, ema_steps=None, acts=()):
        self.answers = answers
        self._needs, self._every, self._ema_steps = frozenset(needs), every, ema_steps
        self.acts = [Action(step, "Script", "all", "lr", 1.0, 2.0, {}, name) for step, name in acts]
        self.calls = []
        self.started = None
        self.count = 0

    needs = property(lambda self: self._needs)
    every = property(lambda self: self._every)
    ema_steps = property(lambda self: self._ema_steps)
    log = property(lambda self: self.acts)

    def attach(self, start):
        self.started = start

    def update(self, reading, step):
        self.calls.append((reading, step))
        self.count += 1
        answer = self.answers(step) if callable(self.answers) else self.answers
        return answer if isinstance(answer, Scales) else Scales(**answer)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]

    def reset(self):
        self.count = 0


class Other(Script):
    """The same by another name."""


def through_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -------------------------------------------------------------------- Chain


@pytest.mark.parametrize(
    ("a", "b", "product"),
    [
        ({"lr": 2.0, "wd": 3.0}, {"lr": 0.25}, (0.5, 3.0)),
        ({"lr": [1.0, 2.0]}, {"lr": 3.0, "wd": (0.5, 0.0)}, ([3.0, 6.0], [0.5, 0.0])),
        ({"lr": 3.0}, {"lr": [1.0, 2.0]}, ([3.0, 6.0], 1.0)),
        ({"lr": [1.0, 2.0]}, {"lr": [5.0, 7.0]}, ([5.0, 14.0], 1.0)),
    ],
)
def test_a_chain_multiplies(a, b, product):
    scales = Chain(Script(a), Script(b)).update(None, 1)
    assert (scales.lr, scales.wd) == product


def test_all_see_the_same_reading_and_step():
    a, b = Script({}), Script({})
    marker = object()
    Chain(a, b).update(marker, 7)
    assert a.calls == b.calls == [(marker, 7)]


def test_layer_factors_multiply_by_name_and_stay_until_named_again():
    a = Script(lambda step: {"layers": {1: {"x": 2.0, "y": 3.0}, 3: {"x": 4.0}}.get(step, {})})
    b = Script(lambda step: {"layers": {2: {"x": 0.5}}.get(step, {})})
    chain = Chain(a, b)
    seen = [dict(chain.update(None, step).layers) for step in range(1, 5)]
    assert seen == [{"x": 2.0, "y": 3.0}, {"x": 1.0, "y": 3.0}, {"x": 2.0, "y": 3.0}, {"x": 2.0, "y": 3.0}]


def test_the_same_factors_are_the_same_object():
    # what sets layer factors looks for a new object
    factors = {"x": 2.0}
    chain = Chain(
        Script({"layers": factors}), Script(lambda step: {"layers": {"x": 3.0} if step == 3 else {}})
    )
    first, second, third = (chain.update(None, step).layers for step in (1, 2, 3))
    assert second is first
    assert third is not first
    assert (first, third) == ({"x": 2.0}, {"x": 6.0})


def test_what_the_members_want_and_what_they_are_told():
    a = Script({}, needs=["distance"], every=20, ema_steps=30.0)
    b = Script({}, needs=["impulse"], every=5, ema_steps=40.0)
    chain = Chain(a, Script({}), b)
    assert chain.needs == {"distance", "impulse"}
    assert (chain.every, chain.ema_steps) == (5, 30.0)
    assert (Chain(Script({})).every, Chain(Script({})).ema_steps) == (None, None)
    chain.attach(START)
    assert a.started is b.started is START


def test_weights_of_the_one_law_that_has_them_are_passed_on():
    weights = Weights(0.9, 1.0, 2.0)
    assert Chain(Script({}), Script({"weights": weights}), Script({})).update(None, 1).weights is weights
    two = Chain(Script({"weights": weights}), Script({"weights": weights}))
    with pytest.raises(ValueError, match=r"only one law may give weights .*, got two"):
        two.update(None, 1)


def test_the_log_is_merged_by_step():
    chain = Chain(Script({}, acts=[(1, "a1"), (5, "a5"), (9, "a9")]), Script({}, acts=[(2, "b2"), (5, "b5")]))
    assert [a.reason for a in chain.log] == ["a1", "b2", "a5", "b5", "a9"]


def test_the_state_of_a_chain():
    def build():
        first = Script(lambda step: {"layers": {"x": 2.0} if step == 1 else {}})
        return Chain(first, Chain(Other({}), Script({"layers": {"x": 5.0}})))

    chain = build()
    for step in range(1, 4):
        chain.update(None, step)
    other = build()
    other.load_state_dict(through_torch(chain.state_dict()))
    assert other.state_dict() == chain.state_dict()
    # what was named before the checkpoint still counts
    assert other.update(None, 4).layers == {"x": 10.0}
    assert other.controllers[0].count == 4
    other.reset()
    assert other.controllers[0].count == other.controllers[1].controllers[0].count == 0
    assert other.update(None, 2).layers == {"x": 5.0}


@pytest.mark.parametrize("saved", [Chain(Script({})), Chain(Other({}), Script({}))])
def test_a_state_of_other_controllers_is_refused(saved):
    chain = Chain(Script({}), Other({}))
    saved.update(None, 1)
    names = ", ".join(type(c).__name__ for c in saved.controllers)
    with pytest.raises(ValueError, match=f"Chain of {names}, but this is a Chain of Script, Other"):
        chain.load_state_dict(saved.state_dict())
    assert chain.controllers[0].count == 0


class Told(Script):
    """Remembers what it is told that the shapes have left."""

    left_told = ()

    def see_left(self, left):
        self.left_told += (round(left, 9),)


def test_members_hear_what_all_shapes_together_have_left():
    inner, outer, dry = Told({}), Told({}), DryRun(Cooling(20, "linear", 0))
    first = Cooling(10, "linear", 0)
    chain = Chain(outer, Chain(inner, Cooling(20, "linear", 0)), first, dry)
    for step in range(1, 5):
        chain.update(object() if step % 2 else None, step)
    # with the readings of steps 1 and 3: before any step, and after two
    assert outer.left_told == inner.left_told == (1.0, round(0.9 * 0.95, 9))


def test_cool_now_reaches_the_cooling_wherever_it_is():
    inner = Cooling(None, warmup=0)
    chain = Chain(Script({"lr": 2.0}), Recorder(Chain(inner)))
    assert chain.update(None, 1).lr == 2.0
    chain.cool_now(4)
    assert [chain.update(None, step).lr for step in (2, 3)] == pytest.approx([2.0, 1.0])


def test_cool_now_without_a_cooling_that_acts():
    with pytest.raises(ValueError, match="cool_now: a Chain must contain a Cooling, got Script, DryRun"):
        Chain(Script({}), DryRun(Cooling(None, warmup=0))).cool_now(3)


def test_bad_chains():
    with pytest.raises(ValueError, match="at least one controller"):
        Chain()
    with pytest.raises(TypeError, match="controller 1 must be"):
        Chain(Script({}), 3)
    with pytest.raises(ValueError, match="2 factors, another gives 3"):
        Chain(Script({"lr": [1.0, 1.0]}), Script({"lr": [1.0, 1.0, 1.0]})).update(None, 1)


def test_a_chain_in_the_optimizer_is_the_product_of_schedules():
    ours, theirs = model(), model()
    chain = Chain(Cooling(12, "cosine", 0), Cooling(12, "linear", 0), Script({"wd": 0.5}))
    opt = ThermoAdamW(ours.named_parameters(), lr=1e-2, controller=chain, backend="torch")
    ref = torch.optim.AdamW(theirs.named_parameters(), lr=1e-2, weight_decay=0.5e-2)
    train(ours, opt, 12)
    for step in range(12):
        ref.param_groups[0]["lr"] = 1e-2 * ((1 + math.cos(math.pi * step / 12)) / 2 * (1 - step / 12))
        train(theirs, ref, 1, start=step)
    assert_same_bits(ours, opt, theirs, ref)


# -------------------------------------------------------------------- DryRun


def test_a_dry_run_changes_nothing_and_says_what_it_would():
    ours, theirs = model(), model()
    dry = DryRun(Cooling(10, "linear", 0))
    opt = ThermoAdamW(ours.named_parameters(), lr=1e-2, controller=dry, backend="torch")
    ref = torch.optim.AdamW(theirs.named_parameters(), lr=1e-2)
    assert dry.would == Scales()
    train(ours, opt, 6)
    train(theirs, ref, 6)
    assert_same_bits(ours, opt, theirs, ref)
    assert dry.would.lr == pytest.approx(0.5)


def test_a_dry_run_passes_on_all_but_the_scales():
    weights = Weights(0.9, 1.0, 2.0)
    inner = Script(
        {"lr": 3.0, "layers": {"x": 2.0}, "weights": weights},
        ["impulse"],
        every=3,
        ema_steps=9.0,
        acts=[(1, "a")],
    )
    dry = DryRun(inner)
    dry.attach(START)
    assert dry.update(None, 1) == Scales(weights=weights)
    assert inner.started is START
    assert (dry.needs, dry.every, dry.ema_steps) == ({"impulse"}, 3, 9.0)
    assert dry.log == inner.log
    other = DryRun(Script({}))
    other.load_state_dict(through_torch(dry.state_dict()))
    assert other.controller.count == 1
    dry.reset()
    assert (inner.count, dry.would) == (0, Scales())


@pytest.mark.parametrize("wrap", [DryRun, Recorder])
def test_wrappers_refuse_what_is_not_theirs(wrap):
    with pytest.raises(TypeError, match=f"{wrap.__name__}: controller must be"):
        wrap("x")
    with pytest.raises(
        ValueError, match=f"{wrap.__name__} of Other, but this is a {wrap.__name__} of Script"
    ):
        wrap(Script({})).load_state_dict(wrap(Other({})).state_dict())


# -------------------------------------------------------------------- Recorder and Replay

ANSWERS = {
    2: {"lr": 0.5},
    3: {"lr": 0.5},
    4: {"lr": 0.5, "layers": {"x": 2.0, "y": 1.0}},
    5: {"lr": 0.5, "layers": {"x": 2.0}},
    6: {"lr": [0.1, 1 / 3], "wd": 2, "layers": {"y": 3.0}},
}
ROWS = [
    {"step": 1, "lr": 1.0, "wd": 1.0, "layers": {}},
    {"step": 2, "lr": 0.5, "wd": 1.0, "layers": {}},
    {"step": 4, "lr": 0.5, "wd": 1.0, "layers": {"x": 2.0, "y": 1.0}},
    {"step": 6, "lr": [0.1, 1 / 3], "wd": 2.0, "layers": {"y": 3.0}},
    {"step": 7, "lr": 1.0, "wd": 1.0, "layers": {}},
]


def recorder():
    return Recorder(Script(lambda step: ANSWERS.get(step, {})))


def test_a_recorder_keeps_what_changes_and_passes_on_everything():
    own = recorder()
    inner = Script({}, ["impulse"], every=3, acts=[(1, "a")])
    assert (Recorder(inner).needs, Recorder(inner).every, Recorder(inner).log) == ({"impulse"}, 3, inner.log)
    for step in range(1, 10):
        assert own.update(None, step) == Scales(**ANSWERS.get(step, {}))
    assert own.trajectory == ROWS
    own.trajectory[0]["layers"]["x"] = 9.0
    assert own.trajectory == ROWS


def test_a_recorder_resumes():
    whole = recorder()
    for step in range(1, 5):
        whole.update(None, step)
    other = recorder()
    other.load_state_dict(through_torch(whole.state_dict()))
    for step in range(5, 10):
        other.update(None, step)
    assert other.trajectory == ROWS
    other.reset()
    assert other.trajectory == []


def test_a_step_that_was_taken_back_is_recorded_as_it_then_was():
    own = Recorder(Script({"lr": 2.0, "layers": {"x": 2.0}}))
    own.update(None, 1)
    own.controller.answers = {"lr": 3.0, "layers": {"x": 2.0}}
    own.update(None, 1)
    own.update(None, 2)
    assert own.trajectory == [{"step": 1, "lr": 3.0, "wd": 1.0, "layers": {"x": 2.0}}]


def test_a_replay_says_what_was_recorded(tmp_path):
    own = recorder()
    kept = {}
    told = []
    for step in range(1, 10):
        scales = own.update(None, step)
        kept = {**kept, **scales.layers}
        told.append(Scales(scales.lr, scales.wd, kept))
    own.save(tmp_path / "run.jsonl")
    for replay in (Replay(own), Replay(own.trajectory), Replay.load(tmp_path / "run.jsonl")):
        assert [replay.update("not looked at", step) for step in range(1, 10)] == told
        # out of order, and for good
        assert replay.update(None, 5) == told[4]
        assert replay.update(None, 10**6) == told[-1]


def test_a_replay_is_neutral_before_its_first_row():
    replay = Replay([{"step": 3, "lr": 0.0, "wd": 0.5, "layers": {}}])
    assert [replay.update(None, step) for step in (1, 2)] == [Scales(), Scales()]
    assert replay.update(None, 3) == Scales(lr=0.0, wd=0.5)
    assert through_torch(replay.state_dict()) == {}


def test_a_replayed_run_is_the_recorded_run(tmp_path):
    class Feedback(Script):
        """Looks at readings, so that a replay is not the same by chance."""

        def update(self, reading, step):
            if reading is not None:
                self.count += 1
                self.answers = {
                    "lr": 1 / (1 + reading.total.param_norm),
                    "wd": 1 + reading.total.grad_norm,
                    "layers": {"0.weight": 1 + reading.layers["0.weight"].angular_step},
                }
            return Scales(**self.answers)

    def trained(controller):
        net = model()
        opt = ThermoAdamW(
            net.named_parameters(),
            lr=1e-2,
            controller=controller,
            backend="torch",
            measure_every=1,
            ema_steps=5,
        )
        train(net, opt, 30)
        return net, opt

    own = Recorder(Chain(Feedback({}), Cooling(30)))
    first = trained(own)
    assert own.controller.controllers[0].count > 20
    own.save(tmp_path / "run.jsonl")
    second = trained(Replay.load(tmp_path / "run.jsonl"))
    assert_same_bits(*first, *second)
    assert len(own.trajectory) > 20


GOOD = {"step": 1, "lr": 1.0, "wd": 1.0, "layers": {}}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (3, "row 1 is 3"),
        ({"step": 2, "lr": 1.0}, "step, lr, wd, layers"),
        ({**GOOD, "step": 2, "note": 1}, "step, lr, wd, layers"),
        ({**GOOD, "step": 1}, "step must be an integer > 1, got 1"),
        ({**GOOD, "step": 0}, "step must be an integer >= 1, got 0"),
        ({**GOOD, "step": 2.0}, "step must be an integer >= 1, got 2.0"),
        ({**GOOD, "step": True}, "step must be an integer >= 1, got True"),
        ({**GOOD, "step": 2, "lr": math.nan}, "lr must hold finite numbers >= 0, got nan"),
        ({**GOOD, "step": 2, "lr": [1.0, "x"]}, "lr must hold finite numbers >= 0, got 'x'"),
        ({**GOOD, "step": 2, "wd": -1.0}, "wd must hold finite numbers >= 0, got -1.0"),
        ({**GOOD, "step": 2, "wd": None}, "wd must hold finite numbers >= 0, got None"),
        ({**GOOD, "step": 2, "layers": [1.0]}, r"layers must be .* got \[1.0\]"),
        ({**GOOD, "step": 2, "layers": {"a": math.inf}}, "layer 'a' must hold finite numbers >= 0, got inf"),
    ],
)
def test_bad_rows_are_named(row, words):
    with pytest.raises(ValueError, match=words) as caught:
        Replay([GOOD, row])
    assert "trajectory: row 1" in str(caught.value)


def test_bad_trajectories(tmp_path):
    with pytest.raises(ValueError, match="trajectory must have at least one row"):
        Replay([])
    with pytest.raises(ValueError, match="trajectory must have at least one row"):
        Replay(recorder())
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"step": 1, "lr": 1.0, "wd": 1.0, "layers": {}}\n{"step": 2, "lr"\n')
    with pytest.raises(ValueError, match=r"line 2 of .*torn\.jsonl"):
        Replay.load(torn)
    with pytest.raises(FileNotFoundError):
        Replay.load(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "wrap", [lambda c: c, DryRun, lambda c: DryRun(c.controllers[0])], ids=["", "all", "one"]
)
def test_a_checkpoint_that_names_a_class_as_it_was_called_loads(wrap):
    """Fine-tuning's thermostat was called _FineTuning; no private name is written now."""
    state = wrap(autotune(100, preset="finetune")).state_dict()
    text = json.dumps(state)
    assert '"FineTuning"' in text
    assert '"_' not in text
    former = json.loads(text.replace('"FineTuning"', '"_FineTuning"'))
    other = wrap(autotune(100, preset="finetune"))
    other.update(None, 1)
    other.load_state_dict(former)
    assert other.state_dict() == state
    plain = wrap(autotune(100))
    with pytest.raises(ValueError, match="FineTuning"):
        plain.load_state_dict(former)
