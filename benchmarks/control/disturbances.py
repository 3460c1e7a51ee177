"""How disturbances affect autotune, its replay, Prodigy, and AdamW tuned for the undisturbed run.

Every run is a row of ``rows.jsonl``; runs that have a row are not repeated, so a stopped command resumes
where it stopped. The table is written to ``disturbances.md`` beside the rows.

    python -m thermoopt.benchmarks.control.disturbances --out runs/disturbances
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from thermoopt import ThermoAdamW, autotune
from thermoopt.benchmarks.control.scenes import SCENES, STEPS, Scene, Stage, undisturbed
from thermoopt.benchmarks.harness.rows import read_rows
from thermoopt.controllers import Chain, Controller, Recorder, Replay, Thermostat

__all__ = ["GRID", "METHODS", "main", "run", "table"]

SEEDS = (0, 1, 2)
TUNING_SEED = 100
"""Seed on which AdamW's lr is chosen, in the undisturbed run."""

GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
WARMUP = 0.05
FLOOR = 0.01
"""Share of the initial loss that is added to both sides of a ratio."""

CLIP = (0.5, 2.0)
"""Ratios to the replay are clipped to these bounds, so that no exploding replay outweighs the rest."""

LEGEND = f"""- The columns from prodigy to replay are ratios (loss + f)/(AdamW's loss under the same
  disturbance + f), where f is 1 % of the initial loss. Lower is better; inf marks a run that did not stay
  finite.
- *no gear* is autotune without its reverse gear, and *loss reported* is autotune with the loss reported.
- *replay* plays back the scales of the undisturbed run.
- *lowered* counts the runs of autotune in which a rate was lowered.
- *gear's worth* is autotune relative to *no gear*, where a rate was lowered.

In the means below the table, ratios to the replay are clipped to {CLIP[0]:g} and {CLIP[1]:g}."""

METHODS = ("adamw", "prodigy", "autotune", "no gear", "loss reported", "replay")


def _without_gear(steps: int) -> Controller:
    """Make autotune without its reverse gear."""
    _, barostat, cooling = autotune(steps).controllers
    return Chain(Thermostat(total_steps=steps, reverse=False), barostat, cooling)


CONTROLLERS: dict[str, Callable[[int], Controller]] = {
    "autotune": autotune,
    "loss reported": autotune,
    "no gear": _without_gear,
}


def _linear(told: int) -> Callable[[int], float]:
    warm = max(1, round(WARMUP * told))
    return lambda n: (n + 1) / warm if n < warm else max(0.0, 1 - (n - warm) / max(1, told - warm))


def _optimizer(
    scene: Scene, method: str, lr: float, groups: list[dict[str, Any]], controller: Controller | None
) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
    """Make an optimizer over groups of named parameters, and the scheduler that is stepped with it."""
    told = max(1, round(scene.told * STEPS))
    if controller is not None:
        made = ThermoAdamW(groups, weight_decay=scene.decay, controller=controller)
        beside = OneCycleLR(made, lr, total_steps=STEPS + 1) if scene.schedule else None
        return made, beside
    if method == "prodigy":
        from prodigyopt import Prodigy

        plain = [{"params": [p for _, p in group["params"]]} for group in groups]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints which decay it uses
            prodigy = Prodigy(plain, lr=1.0, weight_decay=scene.decay)
        return prodigy, LambdaLR(prodigy, lambda n: max(0.0, 1 - n / told))
    adamw = torch.optim.AdamW(groups, lr, weight_decay=scene.decay)
    if scene.schedule:
        return adamw, OneCycleLR(adamw, lr, total_steps=STEPS + 1)
    return adamw, LambdaLR(adamw, _linear(told))


def run(
    scene: Scene, method: str, lr: float, seed: int, rows: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Train once.

    Args:
        scene: what happens.
        method: of :data:`METHODS`.
        lr: AdamW's, and the outside schedule's.
        seed: of weights and batches.
        rows: a recorded trajectory, for ``"replay"``.

    Returns:
        A row: scene, method, lr, seed, final loss (infinity if it was not finite), largest training loss,
        initial loss, how often a rate was lowered, and the recorded trajectory where there is one.
    """
    stage = Stage(scene, seed)
    told = max(1, round(scene.told * STEPS))
    controller: Controller | None = None
    if method == "replay":
        controller = Replay(rows)
    elif method in CONTROLLERS:
        controller = Recorder(CONTROLLERS[method](told))
    named = dict(stage.model.named_parameters())
    groups = [{"params": [(name, named[name]) for name in stage.first]}]
    optimizer, beside = _optimizer(scene, method, lr, groups, controller)
    initial, worst = stage.evaluate(), 0.0
    for step in range(STEPS):
        if stage.begin(step):
            if stage.later:
                late = [(name, named[name]) for name in stage.later]
                optimizer.add_param_group({"params": late if method != "prodigy" else [p for _, p in late]})
                if beside is not None:
                    beside = _follow(beside, optimizer)
            if scene.resumed:
                saved = copy.deepcopy(optimizer.state_dict())
                again = None if controller is None else _again(method, told, rows)
                before, controller = optimizer, again
                optimizer, follows = _optimizer(scene, method, lr, groups, controller)
                optimizer.load_state_dict(saved)
                if beside is not None and follows is not None:
                    follows.load_state_dict(beside.state_dict())
                    beside = follows
                del before
        optimizer.zero_grad()
        loss = stage.loss(step)
        loss.backward()
        worst = max(worst, loss.item()) if math.isfinite(worst) else worst
        if not math.isfinite(loss.item()):
            worst = math.inf
            break
        if method == "loss reported":
            assert isinstance(optimizer, ThermoAdamW)
            optimizer.report_loss(loss)
        optimizer.step()
        if beside is not None:
            beside.step()
    final = stage.evaluate() if math.isfinite(worst) else math.inf
    log = [] if controller is None else [a for a in controller.log if a.kind == "lr" and a.new < a.old * 0.99]
    row = {
        "scene": scene.name,
        "method": method,
        "lr": lr,
        "seed": seed,
        "final": final if math.isfinite(final) else None,
        "worst": worst if math.isfinite(worst) else None,
        "initial": initial,
        "lowered": [[a.step, a.new / a.old, a.reason] for a in log],
    }
    if isinstance(controller, Recorder) and scene.name.startswith("undisturbed"):
        row["trajectory"] = controller.trajectory
    return row


def _again(method: str, told: int, rows: Sequence[Mapping[str, Any]]) -> Controller:
    return Replay(rows) if method == "replay" else Recorder(CONTROLLERS[method](told))


def _follow(beside: LRScheduler, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """A LambdaLR for the present groups at the step of the old one: torch's holds one rate per group."""
    assert isinstance(beside, LambdaLR)
    rate, at = beside.lr_lambdas[0], beside.last_epoch
    for group in optimizer.param_groups:
        group["initial_lr"] = optimizer.param_groups[0]["initial_lr"]
    return LambdaLR(optimizer, rate, at)


def _missing(
    rows: list[dict[str, Any]], asked: argparse.Namespace
) -> Iterable[tuple[Scene, str, float, int]]:
    """Return the runs that are missing; those that others build on come first."""
    done = {(r["scene"], r["method"], r["lr"], r["seed"]) for r in rows}
    calm = {scene.task: undisturbed(scene) for scene in SCENES}
    for scene in calm.values():
        for lr in GRID:
            if (scene.name, "adamw", lr, TUNING_SEED) not in done:
                yield scene, "adamw", lr, TUNING_SEED
    scenes = [scene for scene in SCENES if scene.name in asked.scenes]
    for seed in asked.seeds:
        for scene in (*calm.values(), *scenes):
            lr = best_lr(rows, scene.task)
            for method in asked.methods:
                # a trajectory has no scales for a group added later
                unplayable = method == "replay" and (scene.when is None or scene.frozen == "add")
                if not unplayable and (scene.name, method, lr, seed) not in done:
                    yield scene, method, lr, seed


def best_lr(rows: Iterable[Mapping[str, Any]], task: str) -> float:
    """Return AdamW's best lr of the grid in the undisturbed run."""
    tuned = {
        r["lr"]: r["final"]
        for r in rows
        if r["scene"] == f"undisturbed {task}" and r["seed"] == TUNING_SEED and r["final"] is not None
    }
    return min(tuned, key=tuned.__getitem__)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table in Markdown: ratios to tuned AdamW under the same disturbance."""
    rows = [r for r in rows if r["seed"] != TUNING_SEED]
    names = [f"undisturbed {t}" for t in ("product", "digits")] + [scene.name for scene in SCENES]
    heads = [m for m in METHODS if m != "adamw"]
    lines = [
        f"| what happens | AdamW | {' | '.join(heads)} | lowered | gear's worth | autotune / replay |",
        "| --- | " + "---: | " * (len(heads) + 4),
    ]
    worths: list[float] = []
    against: list[float] = []
    for name in names:
        own = [r for r in rows if r["scene"] == name]
        base = _mean(own, "adamw")
        if base is None:
            continue
        floor = FLOOR * sum(r["initial"] for r in own) / len(own)
        cells = [_ratio(_mean(own, m), base, floor) for m in heads]
        found = [_mean(own, m) for m in ("autotune", "no gear", "replay")]
        lowered = sum(len(r["lowered"]) > 0 for r in own if r["method"] == "autotune")
        worth = _quotient(found[0], found[1], floor) if lowered else None
        replayed = _quotient(found[0], found[2], floor)
        worths += [worth] if worth is not None else []
        if replayed is not None and not name.startswith("undisturbed"):
            against.append(min(max(replayed, CLIP[0]), CLIP[1]))
        tail = ["" if x is None else f"{x:.3f}" for x in (worth, replayed)]
        lines.append(f"| {name} | {base:.4g} | {' | '.join(cells)} | {lowered} | {' | '.join(tail)} |")
    seeds = sorted({r["seed"] for r in rows})
    about = "\n".join(f"- {scene.name}: {scene.about}." for scene in SCENES)
    lrs = ", ".join(f"{lr:g}" for lr in GRID)
    return "\n\n".join(
        [
            "# How disturbances affect a run",
            f"Runs of {STEPS} steps with seeds {', '.join(map(str, seeds))}, compared by the final loss on "
            "data that were not trained on. AdamW has warm-up over 5 %, then linear to zero, at the learning "
            f"rate among {lrs} that is best in the undisturbed run on another seed.",
            LEGEND,
            "The disturbances are:",
            about,
            "\n".join(lines),
            f"The geometric mean of autotune relative to the replay is {_geometric(against):.3f}, and that "
            f"of the gear's worth, where it acted, is {_geometric(worths):.3f}.\n",
        ]
    )


def _mean(rows: Iterable[Mapping[str, Any]], method: str) -> float | None:
    found = [math.inf if r["final"] is None else r["final"] for r in rows if r["method"] == method]
    return sum(found) / len(found) if found else None


def _quotient(a: float | None, b: float | None, floor: float) -> float | None:
    return None if a is None or b is None or not math.isfinite(a + b) else (a + floor) / (b + floor)


def _ratio(value: float | None, base: float, floor: float) -> str:
    if value is None:
        return ""
    return f"{(value + floor) / (base + floor):.3f}" if math.isfinite(value) else "inf"


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/disturbances"), help="folder for the results")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="default: 0 1 2")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    names = [scene.name for scene in SCENES]
    parser.add_argument(
        "--scenes", nargs="+", choices=names, default=names, metavar="NAME", help="default: all"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "rows.jsonl"
    rows = [dict(row) for row in read_rows(path)] if path.exists() else []
    warnings.simplefilter("ignore")  # products of schedules and runs beyond their length are intended
    with path.open("a") as file:
        _run_all(rows, args, file)
    (args.out / "disturbances.md").write_text(table(rows))
    print(f"wrote {args.out}/disturbances.md")


def _run_all(rows: list[dict[str, Any]], asked: argparse.Namespace, file: Any) -> None:
    while (it := next(iter(_missing(rows, asked)), None)) is not None:
        scene, method, lr, seed = it
        trajectory: Sequence[Mapping[str, Any]] = ()
        if method == "replay":
            calm = f"undisturbed {scene.task}"
            trajectory = next(
                r["trajectory"]
                for r in rows
                if (r["scene"], r["method"], r["seed"]) == (calm, "autotune", seed)
            )
        row = run(scene, method, lr, seed, trajectory)
        rows.append(row)
        file.write(json.dumps(row) + "\n")
        file.flush()
        print(f"{scene.name:20} {method:14} seed {seed}  {row['final']}  worst {row['worst']}", flush=True)


if __name__ == "__main__":
    main()
