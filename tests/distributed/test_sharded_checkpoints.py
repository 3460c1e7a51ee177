"""Distributed checkpoints: saved on two ranks, taken up by 1, 2 and 4, and by plain AdamW.

torch.distributed.checkpoint and FSDP2, on CPU with gloo.
"""

import functools
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from tests.support.sharded_runs import (
    account,
    differences,
    each,
    error,
    launch,
    net,
    shard,
    thermo,
    whole,
    wholes,
)
from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune
from thermoopt.tensors.sampling import BLOCK, STRIDE, sample

pytestmark = pytest.mark.dist

F32, F64 = torch.float32, torch.float64
STEPS, SAVED_AT = 10, 5


def large():
    """More parameters than are all sampled; the borders after 75 and 150 rows cut one block each."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(341, 300), torch.nn.Tanh(), torch.nn.Linear(300, 3))


def plain(model):
    return torch.optim.AdamW(model.named_parameters(), lr=1e-2, weight_decay=0.1)


def scheduled(model):
    return torch.optim.SGD(model.named_parameters(), lr=1e-2, momentum=0.9)


KINDS = {
    "autotuned": (lambda: net(F64), lambda m: thermo(m, backend="torch", controller=autotune(STEPS))[0]),
    "large": (large, lambda m: thermo(m, backend="native", controller=autotune(STEPS))[0]),
    "monitor": (lambda: net(F64), lambda m: thermo(m, backend="torch")[0]),
    "plain": (lambda: net(F64), plain),
    "scheduled": (lambda: net(F64), scheduled),
    "tracked": (lambda: net(F64), scheduled),
}
"""Models and optimizers that are saved."""

LOADS = {
    **{(kind, kind): KINDS[kind] for kind in KINDS},
    ("monitor", "plain"): KINDS["plain"],
    ("plain", "monitor"): KINDS["monitor"],
}
"""What a checkpoint of one kind is loaded into."""

WAYS = ((2, False), (2, True), (1, True), (4, False))
"""Ranks that load, and whether optimizer state was flattened: both where as many saved, else one."""


class Run:
    """A model, its optimizer, and what drives or watches it."""

    def __init__(self, ranks, kind, make):
        model, optimizer = make
        self.ranks, self.kind = ranks, kind
        self.model = model()
        if ranks.world > 1:
            shard(self.model, (ranks.world,))
        self.optimizer = optimizer(self.model)
        self.observer = self.scheduler = None
        if kind == "scheduled":
            flags = {"shape": "constant", "controller": autotune(STEPS)}
            self.scheduler = ThermoScheduler(self.optimizer, STEPS, **flags)
        if kind == "tracked":
            flags = {"log_every": 1, "ema_steps": 5, "track": ("rho", "distance")}
            self.observer = Observer(self.model, self.optimizer, **flags)

    def train(self, steps):
        trace = []
        first = next(self.model.parameters())
        for step in steps:
            rng = torch.Generator().manual_seed(step)
            x = torch.randn(16, first.shape[1], generator=rng).to(first.dtype)
            self.optimizer.zero_grad()
            error(self.model, self.ranks.part(x)).backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            group = self.optimizer.param_groups[0]
            thermo = group.get("thermo", {"lr_scale": 1.0, "wd_scale": 1.0, "layer_factors": torch.ones(1)})
            numbers = [group["lr"], group["weight_decay"], thermo["lr_scale"], thermo["wd_scale"]]
            trace.append(torch.tensor([*numbers, *thermo["layer_factors"].tolist()], dtype=F64))
        out = {"trace": torch.stack(trace), "params": wholes(self.model)}
        source = self.observer or self.optimizer
        if isinstance(source, (Observer, ThermoAdamW)):
            reading = account(source)
            out["reading"] = {key: reading[key] for key in ("step", "steps", "skipped", "layers", "total")}
        return out

    def tree(self):
        """What groups carry beyond torch's own."""
        groups = self.optimizer.state_dict()["param_groups"]
        return [{key: group[key] for key in ("thermo", "thermo_travel") if key in group} for group in groups]


def options(flat):
    return StateDictOptions(flatten_optimizer_state_dict=flat)


def saving(ranks, kind, folder):
    """Save in mid-run, nested and flat, and go on."""
    run = Run(ranks, kind, KINDS[kind])
    run.train(range(SAVED_AT))
    for flat in (False, True):
        model, optimizer = get_state_dict(run.model, run.optimizer, options=options(flat))
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=f"{folder}/{kind}-{flat}")
    if run.scheduler is not None and ranks.rank == 0:
        torch.save(run.scheduler.state_dict(), f"{folder}/{kind}.scheduler")
    if run.observer is not None:
        torch.save(run.observer.state_dict(), f"{folder}/{kind}.observer.{ranks.rank}")
    if kind == "autotuned":
        full = StateDictOptions(full_state_dict=True, cpu_offload=True)
        states = get_state_dict(run.model, run.optimizer, options=full)
        if ranks.rank == 0:
            torch.save(states, f"{folder}/{kind}.full")
    tree = run.tree()
    return {"tree": tree, **run.train(range(SAVED_AT, STEPS)), "tree after": run.tree()}


def loading(ranks, key, folder):
    saved, into, flat = key
    run = Run(ranks, into, LOADS[saved, into])
    before, scales = [whole(p) for p in run.model.parameters()], run.tree()
    model, optimizer = get_state_dict(run.model, run.optimizer, options=options(flat))  # takes a dry step
    moved = [not torch.equal(a, whole(p)) for a, p in zip(before, run.model.parameters(), strict=True)]
    dry = {
        "moved": any(moved),
        "steps": 0,
        "reading": True,
        "log": 0,
        "tree": scales,
        "tree after": run.tree(),
    }
    if isinstance(run.optimizer, ThermoAdamW):
        controller = run.optimizer.controller
        dry["steps"], dry["reading"] = run.optimizer.steps, run.optimizer.reading is None
        dry["log"] = 0 if controller is None else len(controller.log)
    # a checkpoint of plain AdamW holds nothing of ours
    planner = DefaultLoadPlanner(allow_partial_load=saved == "plain")
    states = {"model": model, "optimizer": optimizer}
    dcp.load(states, checkpoint_id=f"{folder}/{saved}-{flat}", planner=planner)
    set_state_dict(
        run.model,
        run.optimizer,
        model_state_dict=model,
        optim_state_dict=optimizer,
        options=options(flat),
    )
    warned = finish(run, f"{folder}/{saved}")
    tree = run.tree()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        out = run.train(range(SAVED_AT, STEPS))
    warned += [str(w.message) for w in caught if w.category is RuntimeWarning]
    return {"dry": dry, "tree": tree, "warned": warned, **out, "tree after": run.tree()}


def finish(run, name):
    """Load what does not travel in the optimizer; return what was warned of."""
    if run.scheduler is not None:
        run.scheduler.load_state_dict(torch.load(f"{name}.scheduler", weights_only=True))
    if run.observer is None:
        return []
    own = Path(f"{name}.observer.{run.ranks.rank}")
    state = torch.load(own if own.exists() else f"{name}.observer.0", weights_only=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        run.observer.load_state_dict(state)
    return [str(w.message) for w in caught]


def loading_full(ranks, folder):
    """From one file with whole tensors, as torch.load gives it on every rank."""
    run = Run(ranks, "autotuned", KINDS["autotuned"])
    model, optimizer = torch.load(f"{folder}/autotuned.full", weights_only=True)
    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    set_state_dict(run.model, run.optimizer, model_state_dict=model, optim_state_dict=optimizer, options=full)
    return {"tree": run.tree(), **run.train(range(SAVED_AT, STEPS))}


def rested(ranks, folder):
    """Runs after a dry step and new weights, and the same without the dry step."""
    out = {}
    for kind in ("autotuned", "scheduled"):
        pair = []
        for dry in (True, False):
            run = Run(ranks, kind, KINDS[kind])
            if dry:
                get_state_dict(run.model, run.optimizer)
                run.optimizer.state.clear()  # torch's own state counts the step
            with torch.no_grad():
                for p in run.model.parameters():
                    p.mul_(3.0)
            pair.append(run.train(range(6)))
        out[kind] = pair
    return out


def foreign_observer(ranks, folder):
    """Rank 0's observer state on all ranks: one file, as if there were one process."""
    run = Run(ranks, "tracked", KINDS["tracked"])
    state = torch.load(f"{folder}/tracked.observer.0", weights_only=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        run.observer.load_state_dict(state)
        out = run.train(range(SAVED_AT, SAVED_AT + 1))
    return {"warned": [str(w.message) for w in caught if w.category is RuntimeWarning], **out}


def save_all(ranks, folder):
    return each(ranks, saving, KINDS, folder)


def load_all(ranks, folder):
    flats = [flat for world, flat in WAYS if world == ranks.world]
    keys = [(saved, into, flat) for saved, into in LOADS for flat in flats]
    out = {"each": each(ranks, loading, keys, folder)}
    if ranks.world > 1:
        out |= each(ranks, _named, [name for name in OTHERS if name != "rested" or ranks.world == 2], folder)
    return out


OTHERS = {run.__name__: run for run in (rested, loading_full, foreign_observer)}


def _named(ranks, name, folder):
    return OTHERS[name](ranks, folder)


def _of(rank, name):
    assert not isinstance(rank[name], str), rank[name]
    return rank[name]


# ------------------------------------------------------------------ results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def saved(folder):
    results = launch(save_all, 2, folder / "saving", str(folder))

    def of(kind):
        found = [rank[kind] for rank in results]
        failed = [x for x in found if isinstance(x, str)]
        assert not failed, failed[0]
        return found

    return of


@pytest.fixture(scope="module")
def loads(saved, folder):
    """What ranks that load give back, by their number, which load when first asked for."""
    return functools.cache(lambda world: launch(load_all, world, folder / f"loading{world}", str(folder)))


@pytest.fixture(scope="module")
def loaded(request, loads):
    """A function of what was saved, into what, and how, that gives each rank's results."""
    results = loads(request.param)

    def of(saved, into, flat):
        found = [rank["each"][saved, into, flat] for rank in results]
        failed = [x for x in found if isinstance(x, str)]
        assert not failed, failed[0]
        return found

    of.world, of.results = request.param, results
    return of


each_way = pytest.mark.parametrize(
    ("loaded", "flat"),
    WAYS,
    indirect=["loaded"],
    ids=[f"{world}-{'flat' if flat else 'nested'}" for world, flat in WAYS],
)
on_several = pytest.mark.parametrize("loaded", [2, 4], indirect=True)


@each_way
@pytest.mark.parametrize("into", KINDS)
def test_a_dry_step_moves_nothing(loaded, into, flat):
    """DCP steps a fresh optimizer with lr 0 and gradients of 0 to see its state."""
    for rank in loaded(into, into, flat):
        dry = rank["dry"]
        assert not dry["moved"]
        assert (dry["steps"], dry["reading"], dry["log"]) == (0, True, 0)
        # a controller may have looked at the layers; that it learned nothing is the next test's
        apart = {"skipped_dry", "controller"}
        before = [_without(group, apart) for group in dry["tree"]]
        after = [_without(group, apart) for group in dry["tree after"]]
        assert not differences(after, before, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("loaded", [2], indirect=True)
def test_a_run_after_a_dry_step_is_that_without(loaded):
    """With weights that came in between, of three times the size: units and start are theirs."""
    for rank in loaded.results:
        for kind, (rested, fresh) in _of(rank, "rested").items():
            for part in ("trace", "params"):
                assert not differences(rested[part], fresh[part], 0.0, 0.0, kind)


def _without(group, keys):
    return {
        name: {k: v for k, v in part.items() if k not in keys} if isinstance(part, dict) else part
        for name, part in group.items()
    }


@each_way
@pytest.mark.parametrize("kind", ["autotuned", "monitor", "scheduled"])
def test_what_groups_carry_is_loaded_whole(saved, loaded, kind, flat):
    expected = saved(kind)[0]["tree"]
    assert expected[0]
    for rank in loaded(kind, kind, flat):
        assert not differences(rank["tree"], expected, rtol=0.0, atol=0.0)
        assert not rank["warned"]


def _forces(tree):
    """The sums of forces that groups carry."""
    parts = ({**group.get("thermo", {}), **group.get("thermo_travel", {})} for group in tree)
    return [{name: part[name] for name in ("travel_work", "travel_impulse")} for part in parts]


@each_way
@pytest.mark.parametrize("kind", ["autotuned", "scheduled"])
def test_sums_of_forces_go_on_where_ranks_hold_nothing(saved, loaded, kind, flat):
    """Of a layer of one row all ranks but the first hold nothing, and no part of the work done."""
    if kind == "scheduled" and loaded.world == 1:
        pytest.skip("one process does not wait for others: a reading comes a step earlier")
    expected = _forces(saved(kind)[0]["tree after"])
    assert (expected[0]["travel_work"] != 0).all()
    for rank in loaded(kind, kind, flat):
        assert not differences(_forces(rank["tree after"]), expected, rtol=1e-9)


@each_way
def test_samples_that_borders_cut_are_the_only_ones_not_kept(saved, loaded, flat):
    """Of a large layer the blocks on a border between ranks are not sampled: they hold the present value."""
    expected = saved("large")[0]["tree"]
    start = expected[0]["thermo"]["travel_start"]
    true = torch.cat([sample(p.detach(), STRIDE).reshape(-1) for p in large().parameters()])
    assert 0 < (start != true).sum() <= BLOCK
    assert (start != 0).all()
    for rank in loaded("large", "large", flat):
        tree = rank["tree"]
        # the forces on such a block are no rank's either: it has no impulse
        hidden = {"travel_start", "travel_impulse"}
        for name in hidden:
            differ = (tree[0]["thermo"][name] != expected[0]["thermo"][name]).sum()
            assert 0 < differ <= BLOCK if loaded.world == 4 else differ == 0
        assert not differences(
            [_without(g, hidden) for g in tree], [_without(g, hidden) for g in expected], 0.0, 0.0
        )


@each_way
@pytest.mark.parametrize(("before", "into"), [key for key in LOADS if key[0] == key[1]])
def test_the_run_goes_on_as_if_not_interrupted(saved, loaded, before, into, flat):
    """Bit for bit on as many ranks as before; to rounding on fewer or more."""
    if before == "scheduled" and loaded.world == 1:
        pytest.skip("one process does not wait for others: a reading comes a step earlier")
    expected = saved(before)[0]
    if loaded.world == 2:
        tolerance = atol = 0.0
    else:
        tolerance, atol = (2e-3, 2e-6) if before == "large" else (1e-9, 1e-11)
    for rank in loaded(before, into, flat):
        for part in expected.keys() - {"tree", "tree after"}:
            got, wanted = rank[part], expected[part]
            if before == "tracked" and loaded.world != 2 and part == "reading":
                got, wanted = ({**x, "layers": _plain_terms(x["layers"]), "total": {}} for x in (got, wanted))
            assert not differences(got, wanted, tolerance, atol)


def _plain_terms(layers):
    """All quantities but those that a tracker holds of each rank's own shards."""
    return {name: _without({"": layer}, {"rho", "distance"}) for name, layer in layers.items()}


@each_way
def test_an_observers_state_of_other_shards_is_not_taken_for_its_own(loaded, flat):
    """The start of the distance is each rank's own: that of another one's is left out, with a warning."""
    for i, rank in enumerate(loaded(*("tracked",) * 2, flat)):
        warned = [message for message in rank["warned"] if "no fitting start of the run" in message]
        assert len(warned) == (0 if loaded.world == 2 else 1)
        if loaded.world > 1:
            foreign = _of(loaded.results[i], "foreign_observer")
            # the weights are those of the start
            assert {layer["distance"] for layer in foreign["reading"]["layers"].values()} == {0.0}
            foreign = foreign["warned"]
            assert len(foreign) == (0 if loaded.world == 2 and i == 0 else 1)
            assert all("no fitting start of the run" in message for message in foreign)


@each_way
def test_plain_adamw_goes_on_from_a_monitors_checkpoint(saved, loaded, flat):
    """And the other way round: moments and step counts are torch's own."""
    for before, into in (("monitor", "plain"), ("plain", "monitor")):
        expected = saved(before)[0]["params"]
        for rank in loaded(before, into, flat):
            assert not differences(rank["params"], expected, rtol=0.0, atol=1e-13)
            if into == "monitor":
                assert rank["reading"]["steps"] == rank["reading"]["step"] == STEPS


@on_several
def test_one_file_with_whole_tensors(saved, loaded):
    expected = saved("autotuned")[0]
    tolerance = 0.0 if loaded.world == 2 else 1e-9
    for rank in loaded.results:
        got = _of(rank, "loading_full")
        assert not differences(got["tree"], expected["tree"], 0.0, 0.0)
        for part in ("trace", "params", "reading"):
            assert not differences(got[part], expected[part], tolerance, tolerance)
