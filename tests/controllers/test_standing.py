"""The set-point shown: rates wanted and held, in history, records, pictures and words."""

import math

import pytest
import torch

from tests.support.pictures import png_size, titles
from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune, diagnose
from thermoopt.controllers import Bounds, Chain, Cooling, DryRun, Lever, Standing, Thermostat, Wanted
from thermoopt.controllers.cohorts import aimed, told
from thermoopt.inspection.run_tables import rate_table
from thermoopt.physics import in_words
from thermoopt.plots import plot_dashboard
from thermoopt.record import SavedRun, condensed, rate_notes, standings_in
from thermoopt.sinks import JSONLSink, ParquetSink

T, TOTAL = 60, 100


def problem():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))
    x = torch.randn(256, 8)
    return net, x, x[:, :1] * x[:, 1:2]


def fit(net, opt, x, y, steps, after=lambda: None):
    for t in range(steps):
        opt.zero_grad()
        i = torch.arange(32) + 32 * (t % 8)
        (net(x[i]) - y[i]).square().mean().backward()
        opt.step()
        after()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A controlled run with both kinds of record."""
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("standing")
    net, x, y = problem()
    sinks = [JSONLSink(folder / "run.jsonl"), ParquetSink(folder / "run.parquet")]
    opt = ThermoAdamW(net.named_parameters(), controller=autotune(TOTAL), sinks=sinks)
    fit(net, opt, x, y, T)
    for sink in sinks:
        sink.close()
    opt.history.export_jsonl(folder / "history.jsonl")
    return opt, folder


def test_history_holds_every_rate_beside_its_reading(run):
    opt, _ = run
    standings = opt.history.standings
    assert [s.step for s in standings] == list(range(1, T))  # the last reading was handed to nobody yet
    assert standings[-1] == opt.controller.standing["all"]
    phi, star = opt.history.total("phi"), opt.history.total("phi_star")
    for s in standings:
        assert (s.phi, s.phi_star) == pytest.approx((phi[s.step - 1], star[s.step - 1]))
    moved = [s for s in standings if s.state == "on its way"]
    assert moved
    assert all("a factor of at most" in s.why for s in moved)


def test_given_is_what_the_parameters_got(run):
    """The rate given, in units of the layers, is the lr of every group: rate x unit."""
    opt, _ = run
    lr = opt.history.group(0, "lr_eff")
    ratios = [lr[s.step] / s.given for s in opt.history.standings if s.state == "follows"]
    assert len(ratios) > T / 2
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=0.02)  # of a rate that follows to 1 %


@pytest.mark.parametrize("name", ["run.jsonl", "run.parquet", "history.jsonl"])
def test_records_keep_it(run, name):
    opt, folder = run
    saved = SavedRun.read(folder / name)
    kept, own = saved.history.standings, opt.history.standings
    assert [(s.rate, s.step, s.why, s.state) for s in kept] == [(s.rate, s.step, s.why, s.state) for s in own]
    for a, b in zip(kept, own, strict=True):
        assert (a.wanted, a.held, a.given, a.phi) == pytest.approx(
            (b.wanted, b.held, b.given, b.phi), rel=1e-4
        )
    assert not any(note["note"] == "rates" for note in saved.notes)
    assert [s.step for s in SavedRun.read(folder / name, since=30).history.standings] == list(range(30, T))


def test_pictures_and_words_show_it(run, tmp_path):
    opt, folder = run
    figure = plot_dashboard(opt.history, path=tmp_path / "a.png")
    assert "rate wanted, rate held" in titles(figure)
    assert "r = φ/φ*" in titles(figure)
    assert png_size(tmp_path / "a.png") == (1600, 1600)
    saved = SavedRun.read(folder / "run.jsonl")
    assert "rate wanted" in titles(plot_dashboard(saved.history.with_events()))
    (row,) = rate_table(saved).rows
    follows = sum(s.state == "follows" for s in saved.history.standings)
    assert row[0] == "all"
    assert f"{follows} of {T - 1}" in row
    assert diagnose(saved).facts["rate of all groups"] == in_words(saved.history.standings)


def test_it_survives_a_checkpoint(run):
    opt, _ = run
    net, x, y = problem()
    other = ThermoAdamW(net.named_parameters(), controller=autotune(TOTAL))
    other.load_state_dict(opt.state_dict())
    assert other.controller.standing == {
        name: Standing(**{**vars(s), "given": s.held}) for name, s in opt.controller.standing.items()
    }
    fit(net, other, x, y, 2)
    assert [s.step for s in other.history.standings] == [T + 1]  # that of step T came before its history


def test_a_scheduler_shows_it_too(tmp_path):
    net, x, y = problem()
    opt = torch.optim.AdamW(net.parameters())
    observer = Observer(net, opt, log_every=1, sinks=[JSONLSink(tmp_path / "run.jsonl")])
    scheduler = ThermoScheduler(observer, opt, T, shape="constant", controller=autotune(TOTAL))
    fit(net, opt, x, y, T, scheduler.step)
    observer.sinks.flush()
    saved = SavedRun.read(tmp_path / "run.jsonl")
    assert len(saved.history.standings) == len(observer.history.standings) == T
    assert [s.step for s in saved.history.standings] == [s.step for s in observer.history.standings]
    log = scheduler.controller.log
    assert log
    assert [n["step"] for n in saved.notes if n["note"] == "action"] == [a.step for a in log]


def standing(step, rate="all", **more):
    values = {"wanted": 0.1, "held": 0.1, "given": 0.05, "phi": 1.0, "phi_star": 2.0, "why": "so"}
    return Standing(rate=rate, step=step, **{**values, **more})


def test_notes_of_rates_are_read_back():
    first = [standing(s, wanted=math.nan if s == 2 else 0.1, why="a" if s < 3 else "b") for s in range(1, 5)]
    resumed = [standing(s, why="again") for s in range(3, 6)]
    other = [standing(7, rate="decay@6")]
    notes = [*rate_notes([*first, *other]), {"note": "spike", "step": 3}, *rate_notes(resumed)]
    found, rest = standings_in(notes)
    assert repr(found) == repr([*first[:2], *resumed, *other])  # NaN is no equal of itself
    assert rest == [{"note": "spike", "step": 3}]
    with pytest.raises(ValueError, match="equal columns"):
        standings_in([{**notes[0], "held": [1.0]}])
    many = rate_notes([standing(s) for s in range(1, 5001)])
    kept, _ = standings_in(condensed(many, 1000))
    assert [s.step for s in kept] == list(range(1, 5001, 5))


def test_why_names_what_holds_a_rate():
    lever, free = Lever(Bounds(slew_up=1.5, slew_down=1.5), 1.0), (0.0, math.inf)
    lever.readings = 1
    raise_it = Wanted(4.0, {}, "drift")

    def why(wanted, turned=(0.0, ""), reach=free):
        aim = aimed(lever, wanted, turned, reach)
        return aim.rate, told(lever, aim, 1, 0.01)

    assert why(None)[1].startswith("no signal")
    assert why(Wanted(1.0, {}, "enough")) == (1.0, "enough")
    assert why(raise_it) == (4.0, "drift; on its way, by a factor of at most 1.5 per step")
    rate, reason = why(raise_it, reach=(0.0, 2.0))
    assert rate == 2.0
    assert reason.startswith("drift; bound: lr_scale allows at most 2")
    rate, reason = why(raise_it, turned=(0.125, "head"))  # at 4 times it would be half of its size
    assert rate == 2.0
    assert reason.startswith("bound: head would move by more than 0.25")
    lever.bounds = Bounds(hold_off=5)
    lever.acted = 1
    assert "waits: " in why(raise_it)[1]


def test_of_a_chain_the_first_member_counts_and_the_others_shape_it():
    thermostat = Thermostat()
    thermostat._standing = {"all": standing(1)}
    chain = Chain(DryRun(thermostat), Cooling(10, "linear", 0))
    chain.update(None, 6)
    assert chain.standing["all"].given == pytest.approx(0.05 * 0.5)
    assert standing(1, wanted=math.nan).state == "no signal"
    assert standing(1, wanted=0.2).state == "on its way"
    assert standing(1, why="drift; bound: lr_scale allows at most 1").state == "bound"
    cooled = "not raised: the cooling has left 0.3 of the rate"
    assert standing(1, wanted=0.2, why=cooled).state == "cooling"
    assert Standing.from_dict(standing(3).to_dict()) == standing(3)
