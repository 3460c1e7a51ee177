"""The report of a sweep on tables of rows whose results are known."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from thermoopt.benchmarks.report import costs as costs
from thermoopt.benchmarks.report import tables as tables
from thermoopt.benchmarks.report.figures import draw
from thermoopt.benchmarks.report.outcomes import MARGIN, REFERENCE, RESOLUTION, Outcomes
from thermoopt.benchmarks.report.sweep import write_report

LRS = (1e-3, 1e-2, 1e-1)
STEPS = 100


def make(method, valids, *, workload="gpt", seed=0, tunables=("lr",), curve=None, **changes):
    """Rows of one search, one a loss; a curve falls in a line from 4 at the start to the loss at the end."""
    rows = []
    for k, valid in enumerate(valids):
        line = [[step, 4 + (valid - 4) * step / STEPS] for step in range(0, STEPS + 1, 5)]
        row = {
            "protocol": "a1b2c3d4e5f6" * 5,
            "tier": "quick",
            "workload": workload,
            "metric": "nats",
            "steps": STEPS,
            "method": method,
            "tunables": list(tunables),
            "seed": seed,
            "k": k,
            "lr": LRS[k % len(LRS)] if "lr" in tunables else None,
            "decay": 0.01 if "decay" in tunables else None,
            "valid": valid,
            "initial": 4.0,
            "diverged": False,
            "curve": curve or line,
            "seconds": 2.0,
            "eval_seconds": 0.1,
            "step_ms": 1.0,
            "peak_mb": 300.0,
            "sha256": "5a" * 32,
            "retried": False,
        }
        rows.append(row | changes)
    return rows


def sweep(ratio=1.5, seeds=3, workloads=("gpt", "gru")):
    """The reference's best is 1, 1.1, 1.2 by seed; "worse" and "better" are off by a ratio.

    "noisy" lies to either side, a third of a per cent below 1 on gpt and a per cent above it on gru.
    """
    rows = []
    for workload in workloads:
        for seed in range(seeds):
            best = 1 + 0.1 * seed
            at = {"workload": workload, "seed": seed}
            rows += make(REFERENCE, (2.0, best, 3.0), **at)
            rows += make("worse", (3.0, best * ratio, 3.5), **at)
            rows += make("better", (best / ratio,), tunables=(), **at)
            off = {"gpt": (1.1, 0.9, 1.0), "gru": (1 / 1.1, 1 / 0.88, 1.0)}[workload][seed % 3]
            rows += make("noisy", (best * off, 2.0, 2.0), **at)
    return rows


def column(table, name):
    i = table.head.index(name)
    return {row[0]: row[i] for row in table.rows}


def interval_of(text):
    return [float(x) for x in re.findall(r"-?[\d.]+(?:e[-+]\d+)?", text)]


# ------------------------------------------------------------------ losses


def test_what_lost_is_listed_with_its_ratio_and_what_is_open_is_not():
    outcomes = Outcomes(sweep())
    lost, won = tables.judged(outcomes, lost=True), tables.judged(outcomes, lost=False)
    assert {row[:2] for row in lost.rows} == {("worse", "gpt 100"), ("worse", "gru 100")}
    assert {row[:2] for row in won.rows} == {("better", "gpt 100"), ("better", "gru 100")}
    assert interval_of(lost.rows[0][2])[:3] == [1.5, 1.5, 1.5]  # the same for every seed
    assert lost.rows[0][3:5] == ("1.650", "1.100")  # means of 1.5, 1.65, 1.8 and of 1, 1.1, 1.2


def test_the_largest_loss_comes_first():
    rows = sweep()
    for seed in range(3):
        rows += make("worst", (3.9, 3.8, 3.7), seed=seed)
    table = tables.judged(Outcomes(rows), lost=True)
    assert table.rows[0][:2] == ("worst", "gpt 100")
    ratios = [interval_of(row[2])[0] for row in table.rows]
    assert ratios == sorted(ratios, reverse=True)


def test_difference_and_ratio_are_paired_by_seed():
    """Seeds differ by 20 %, the method by a twentieth from each: unpaired, nothing could be told."""
    rows = []
    for seed in range(3):
        rows += make(REFERENCE, (1 + seed,), seed=seed) + make("m", (0.95 * (1 + seed),), seed=seed)
    table = tables.final_losses(Outcomes(rows), ("gpt", STEPS))
    value, low, high = interval_of(column(table, "difference [95 %]")["m"])
    assert (value, low, high) == (-0.1, -0.15, -0.05)
    assert interval_of(column(table, "ratio [95 %]")["m"]) == [0.95, 0.95, 0.95]


def test_means_over_workloads():
    """Ratios 1.5 and 6 on two workloads: 3 in the geometric mean, 3.75 in the interquartile mean of six."""
    rows = sweep(1.5, workloads=("gpt",)) + sweep(6.0, workloads=("gru",))
    for row in rows:
        if row["workload"] == "gru" and row["method"] == "worse" and row["k"] != 1:
            row["valid"] = 9.0  # not the best
    table = tables.aggregate(Outcomes(rows))
    assert interval_of(column(table, "geometric mean [95 %]")["worse"]) == [3.0, 3.0, 3.0]
    assert interval_of(column(table, "IQM [95 %]")["worse"])[0] == pytest.approx((1.5 * 2 + 6 * 2) / 4)
    assert column(table, "worst workload")["worse"] == "6.000 (gru 100)"
    assert column(table, "won / lost / open")["worse"] == "0 / 2 / 0"
    assert column(table, "won / lost / open")["noisy"] == "0 / 0 / 2"
    assert [row[0] for row in table.rows] == ["better", REFERENCE, "noisy", "worse"]


def test_losses_near_zero_are_compared_above_a_floor():
    """1e-9 over 1e-8 is rounding, 1e-3 over 1e-8 counts from the floor of 1e-6 of the initial 4."""
    rows = []
    for seed in range(3):
        rows += make(REFERENCE, (1e-8,), seed=seed) + make("even lower", (1e-9,), seed=seed)
        rows += make("far", (1e-3,), seed=seed) + make("below zero", (-1e-9,), seed=seed)
    outcomes, cell = Outcomes(rows), ("gpt", STEPS)
    assert outcomes.ratio(cell, "even lower").value == outcomes.ratio(cell, "below zero").value == 1
    assert outcomes.ratio(cell, "far").value == pytest.approx(1e-3 / (4 * RESOLUTION))
    assert outcomes.target(cell) == pytest.approx(4 * RESOLUTION * (1 + MARGIN))
    assert "4e-06" in tables.final_losses(outcomes, cell).note
    assert tables.final_losses(Outcomes(sweep()), cell).note == ""
    assert {row[0] for row in tables.judged(outcomes, lost=True).rows} == {"far"}
    assert not tables.judged(outcomes, lost=False).rows


def test_best_of_k_is_that_of_all_subsets():
    outcomes = Outcomes(make(REFERENCE, (8.0, 1.0, 2.0)) + make("free", (2.0,), tunables=()))
    curve = tables.best_of(outcomes, REFERENCE)
    assert curve == pytest.approx({1: 16 ** (1 / 3), 2: 2 ** (1 / 3), 3: 1.0})
    assert tables.best_of(outcomes, "free") == pytest.approx({1: 2.0})
    table = tables.best_of_table(outcomes)
    assert table.head[2:] == ("best of 1", "best of 2", "best of 3")
    assert column(table, "best of 2") == {"free": "", REFERENCE: "1.260"}


def test_ablations_are_compared_with_what_they_alter():
    rows = []
    for seed in range(2):
        rows += make(REFERENCE, (1.0,), seed=seed) + make("autotune", (0.5,), seed=seed)
        rows += make("replay", (0.6,), seed=seed) + make("monitor", (1.0,), seed=seed)
    table = tables.parts_table(Outcomes(rows))
    assert {row[0]: (row[1], interval_of(row[3])[0]) for row in table.rows} == {
        "replay": ("autotune", 1.2),
        "monitor": (REFERENCE, 1.0),
    }
    assert tables.parts_table(Outcomes(make(REFERENCE, (1.0,)))) is None


# ------------------------------------------------------------------ budgets and gaps


def test_unequal_budgets_are_cut_to_the_smallest():
    """The third trial of "worse" would win; the reference of seed 1 has two only."""
    rows = make(REFERENCE, (2.0, 1.5, 1.0), seed=0) + make(REFERENCE, (2.0, 1.5), seed=1)
    rows += make("worse", (3.0, 3.0, 0.1), seed=0) + make("worse", (3.0, 3.0, 0.1), seed=1)
    rows += make("free", (1.0,), tunables=())
    outcomes, cell = Outcomes(rows), ("gpt", STEPS)
    assert outcomes.budgets == {cell: 2}
    assert outcomes.uneven == {cell: 3}
    assert outcomes.mean(cell, REFERENCE) == 1.5
    assert outcomes.mean(cell, "worse") == 3.0
    assert outcomes.mean(cell, "free") == 1.0


def test_trials_count_in_the_order_of_the_design():
    """A lost design point leaves a gap in k; the search is as long as what has finished."""
    rows = make(REFERENCE, (3.0, 2.0, 1.0))
    del rows[1]
    rows = [*reversed(rows), *make("m", (2.0, 2.0, 0.5))]
    outcomes, cell = Outcomes(rows), ("gpt", STEPS)
    assert [row["k"] for row in outcomes.trials(cell, REFERENCE, 0)] == [0, 2]
    assert outcomes.mean(cell, "m") == 2.0


def test_missing_searches_are_shown():
    rows = [r for r in sweep() if not (r["method"] == "worse" and (r["workload"] == "gru" or r["seed"] == 2))]
    outcomes = Outcomes(rows)
    assert outcomes.missing == (("gpt", STEPS, "worse", 2), *(("gru", STEPS, "worse", s) for s in range(3)))
    assert column(tables.final_losses(outcomes, ("gru", STEPS)), "loss")["worse"] == tables.MISSING
    assert column(tables.final_losses(outcomes, ("gpt", STEPS)), "seeds")["worse"] == "2 of 3"
    assert column(tables.aggregate(outcomes), "workloads")["worse"] == "1 of 2"
    assert "Do not rank" in tables.aggregate(outcomes).note
    assert column(costs.score_table(outcomes), "gru 100")["worse"] == tables.MISSING
    listed = {row[1:] for row in costs.missing_table(outcomes).rows}
    assert listed == {("gpt 100", "2", "1 of 3"), ("gru 100", "0, 1, 2", "3 of 3")}


def test_what_was_planned_and_never_begun_is_missing():
    planned = {(w, STEPS, m, 0) for w in ("gpt", "cnn") for m in (REFERENCE, "late")}
    outcomes = Outcomes(make(REFERENCE, (1.0, 2.0)), planned)
    assert outcomes.missing == (
        ("cnn", STEPS, REFERENCE, 0),
        ("cnn", STEPS, "late", 0),
        ("gpt", STEPS, "late", 0),
    )
    assert column(tables.aggregate(outcomes), "geometric mean [95 %]")["late"] == tables.MISSING


# ------------------------------------------------------------------ costs


def test_time_to_the_target_and_score():
    """Target 1.02 where the reference ends at 1: slow is there at 80, fast at 40; scores by hand."""
    fall = {name: [[0, 4.0], [at, 1.0], [100, 1.0]] for name, at in (("slow", 80), ("fast", 40))}
    rows = make(REFERENCE, (1.0,), curve=[[0, 4.0], [60, 1.5], [100, 1.0]])
    rows += make("slow", (1.0,), curve=fall["slow"]) + make("fast", (1.0,), curve=fall["fast"])
    rows += make("never", (2.0,)) + make("lost", (4.0,), curve=fall["fast"], diverged=True)
    outcomes, cell = Outcomes(rows), ("gpt", STEPS)
    assert outcomes.target(cell) == pytest.approx(1.02)
    assert {m: outcomes.time(cell, m) for m in outcomes.methods} == {
        REFERENCE: 100,
        "slow": 80,
        "fast": 40,
        "never": math.inf,
        "lost": math.inf,
    }
    assert outcomes.time(cell, "fast", "seconds") == pytest.approx(0.8)  # 40 of 100 steps in 2 s
    score = column(costs.score_table(outcomes), "score")
    assert score == {
        "fast": "1.000",
        "slow": f"{2 / 3:.3f}",
        REFERENCE: f"{1.5 / 3:.3f}",
        "never": "0.000",
        "lost": "0.000",
    }
    assert column(costs.times_table(outcomes), "gpt 100 ≤ 1.020")["fast"] == "40 (0.8 s)"


def test_external_time_is_of_the_fastest_trial_and_the_clock_counts_all():
    """One of three reaches it, at step 100: a miss before it with a mean of (3 - 1)/2, 100 steps each."""
    rows = make(REFERENCE, (1.0, 2.0, 3.0)) + make("free", (1.0,), tunables=())
    outcomes, cell = Outcomes(rows), ("gpt", STEPS)
    assert (
        outcomes.time(cell, REFERENCE) == outcomes.time(cell, "free") == outcomes.clock(cell, "free") == 100
    )
    assert outcomes.clock(cell, REFERENCE) == 200
    table = costs.clock_table(outcomes)
    assert [row[:2] for row in table.rows] == [("free", "none"), (REFERENCE, "searched")]
    assert column(table, "score") == {"free": "1.000", REFERENCE: f"{2 / 3:.3f}"}


def test_a_workload_that_a_method_has_not_run_scores_nothing():
    rows = make(REFERENCE, (1.0,)) + make(REFERENCE, (1.0,), workload="gru") + make("m", (1.0,))
    table = costs.score_table(Outcomes(rows))
    assert column(table, "score") == {REFERENCE: "1.000", "m": "0.500"}
    assert column(table, "reached")["m"] == "1 of 2"


def test_target_not_reached_by_most_seeds_is_never_and_says_how_many():
    rows = []
    for seed in range(3):
        rows += make(REFERENCE, (1.0,), seed=seed) + make("m", (1.0 if seed == 0 else 2.0,), seed=seed)
    outcomes = Outcomes(rows)
    assert column(costs.times_table(outcomes), "gpt 100 ≤ 1.020")["m"] == "never (1 of 3 seeds)"


def test_sensitivity_bounds_what_is_worse_than_untrained():
    """Losses 1, 2 and 40 of an initial 4: mean of 1, 2, 4, less 1; the other's half of it."""
    rows = make(REFERENCE, (1.0, 2.0, 40.0)) + make("m", (1.0, 1.0, 3.0)) + make("f", (1.0,), tunables=())
    table = costs.sensitivity_table(Outcomes(rows))
    assert column(table, "gpt 100") == {REFERENCE: f"{4 / 3:.3f}", "m": f"{2 / 3:.3f}"}
    assert column(table, f"over {REFERENCE}")["m"] == "0.500"


@pytest.mark.parametrize(
    ("valids", "found"), [((1.0, 2.0, 3.0), "low"), ((2.0, 1.0, 3.0), None), ((3, 2, 1.0), "high")]
)
def test_an_optimum_at_an_edge_is_listed(valids, found):
    rows = [row for seed in range(3) for row in make(REFERENCE, valids, seed=seed)]
    listed = costs.edges_table(Outcomes(rows)).rows
    assert [row[:5] for row in listed] == ([(REFERENCE, "gpt 100", "lr", found, "3 of 3")] if found else [])


def test_the_first_page_says_where_the_reference_stood_at_an_edge(tmp_path):
    rows = make(REFERENCE, (1.0, 2.0, 3.0)) + make(REFERENCE, (2.0, 1.0, 3.0), workload="gru")
    first = write_report(rows, tmp_path).read_text(encoding="utf-8").split("## ")[1]
    assert f"On gpt 100, the best lr of {REFERENCE} lies at an edge" in first
    assert "best of 3 points" in first


def test_failures_overhead_and_memory():
    rows = make(REFERENCE, (1.0, 4.0), step_ms=2.0) + make("m", (4.0, 4.0), step_ms=3.0, peak_mb=512.0)
    rows[1]["diverged"] = rows[2]["diverged"] = rows[3]["diverged"] = rows[3]["retried"] = True
    outcomes = Outcomes(rows)
    failures, overhead = costs.failures_table(outcomes), costs.overhead_table(outcomes)
    assert column(failures, "diverged") == {REFERENCE: "50.0 %", "m": "100.0 %"}
    assert column(failures, "run again") == {REFERENCE: "0", "m": "1"}
    assert column(overhead, "step time") == {REFERENCE: "1.00", "m": "1.50"}
    assert column(overhead, "peak MB") == {REFERENCE: "300", "m": "512"}


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"valid": math.nan}, "valid nan .* finite"),
        ({"initial": math.inf}, "initial inf"),
        ({"curve": []}, "curve must hold"),
        ({"steps": "100"}, "steps has a value of the wrong type, '100'"),
        ({"protocol": "other"}, "one protocol, got"),
        ({"tier": "full"}, "one tier, got full, quick"),
        ({"sha256": "0"}, "other data"),
        ({"tunables": ["decay"]}, r"tunes \['decay'\]"),
        ({"k": 0}, "twice"),
    ],
)
def test_rows_that_cannot_be_compared(tmp_path, change, words):
    rows = make(REFERENCE, (1.0, 2.0))
    rows[1].update(change)
    with pytest.raises(ValueError, match=words):
        write_report(rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_without_a_field_or_none_at_all(tmp_path):
    (row,) = make(REFERENCE, (1.0,))
    del row["step_ms"]
    with pytest.raises(ValueError, match="row 1 has no 'step_ms'"):
        write_report([row], tmp_path)
    with pytest.raises(ValueError, match="got none"):
        write_report([], tmp_path)


# ------------------------------------------------------------------ the files


class Page(HTMLParser):
    """Checks that tags nest, and gathers what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.ids, self.links = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.sources += [attrs[k] for k in ("src", "data") if k in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read_all(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_the_same_table_gives_the_same_bytes(tmp_path):
    rows = [r for r in sweep() if not (r["method"] == "worse" and r["workload"] == "gru")]
    environment = {"torch": "2.13", "threads": 1, "dirty": False, "<b>": "a|b"}
    write_report(rows, tmp_path / "a", environment=environment)
    shuffled = json.loads(json.dumps(rows))
    random.Random(0).shuffle(shuffled)
    path = write_report(shuffled, tmp_path / "b", environment=dict(reversed(environment.items())))
    first, second = read_all(tmp_path / "a"), read_all(tmp_path / "b")
    names = ("ratios", "profiles", "best_of_k", "sensitivity", "curves")
    pictures = {f"figures/{n}.{end}" for n in names for end in ("png", "svg")}
    assert set(first) == pictures | {"report.md", "report.html"}
    assert first == second

    text = path.read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", text, re.M)
    assert titles[0] == "What lost, and what won"
    assert text.index("### Lost to tuned") < text.index("### Won against") < text.index(f"## {titles[1]}")
    for target in re.findall(r"\]\((.*?)\)", text):
        assert (tmp_path / "b" / target).is_file()
    for words in (
        "3 searches of 24 are missing",
        "Of 6 pairs of method and workload, 1 lost, 2 won, 2 are open, 0 have one seed and no interval, and "
        "1 have not run.",
        "in at most 75 % of cases",
        "one in 8 workloads",
        rows[0]["protocol"],
        r"a\|b",
    ):
        assert words in text
    # every line of a table has as many cells as its head
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1

    html = (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert [link.removeprefix("#") for link in page.links] == page.ids
    assert len(page.ids) == len(titles)
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert tables.judged(Outcomes(rows), lost=True).rows[0][2] in html


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(make(REFERENCE, (1.0,)), id="one trial"),
        pytest.param(make("m", (1.0, 4.0)), id="no reference"),
        pytest.param(make("m", (4.0,), tunables=(), diverged=True, curve=[[0, 4.0]]), id="one that diverged"),
        pytest.param(make(REFERENCE, (0.0, -1e-9)) + make("m", (0.0,), tunables=()), id="zero"),
    ],
)
def test_small_tables_have_a_report_as_well(tmp_path, rows):
    text = write_report(rows, tmp_path).read_text(encoding="utf-8")
    assert "The environment was not recorded." in text
    if all(row["method"] != REFERENCE for row in rows):
        assert f"No trial of {REFERENCE}" in text
    else:
        assert "Nothing can be judged" in text
    assert not re.search(r"\bnan\b|\binf\b", text)


def test_pictures_show_what_the_tables_say(tmp_path, monkeypatch):
    """The map of ratios has the tables' numbers, a star where they are sure, and gaps where nothing ran."""
    kept = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: kept.setdefault(path, figure))
    rows = [r for r in sweep() if not (r["method"] == "worse" and r["workload"] == "gru")]
    draw(Outcomes(rows), tmp_path)
    ax = kept[tmp_path / "ratios.png"].axes[0]
    texts = [t.get_text() for t in ax.texts]
    assert texts == ["0.667*", "0.667*", "0.997", "1.011", "1.500*", "missing"]
    left, right = kept[tmp_path / "profiles.png"].axes
    ends = {line.get_label(): line.get_ydata()[-1] for line in left.lines if len(line.get_xdata()) > 2}
    assert ends == {REFERENCE: 1, "better": 1, "noisy": 1, "worse": 0.5}
    assert {line.get_label(): line.get_ydata()[-1] for line in right.lines}["worse"] == 0
    (best,) = kept[tmp_path / "best_of_k.png"].axes
    (line,) = (line for line in best.lines if line.get_label() == REFERENCE)
    np.testing.assert_allclose(line.get_ydata()[-1], 1.0)
