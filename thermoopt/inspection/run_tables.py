"""Tables of a saved run: all parameters, by layer type, by layer."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from thermoopt.inspection.tables import Table, course
from thermoopt.param_groups import LAYER_TYPES
from thermoopt.physics import by_rate
from thermoopt.record import SavedRun

__all__ = ["layer_table", "total_table", "type_table"]

Array = NDArray[np.float64]

COURSE = 12
"""Characters of a sparkline: a twelfth of the run is longer than most disturbances."""

_TOTALS = (
    ("sigma", "σ, entropy production", "+.2e"),
    ("d_eS", "d_eS, productive part", "+.2e"),
    ("d_iS", "d_iS, heat", "+.2e"),
    ("R_ie", "R_ie, heat over work", ".2f"),
    ("r", "r, update energy (1: equilibrium)", ".2f"),
    ("gaussianity", "gaussianity (0.798: Gaussian)", ".3f"),
    ("rho_momentum", "ρ_m, gradient against momentum", "+.3f"),
    ("rho", "ρ, gradient against the previous one", "+.3f"),
    ("wd_balance", "R_wd, decay against growth of the norm", ".2f"),
    ("angular_step", "angular step", ".1e"),
    ("grad_norm", "‖g‖", ".3g"),
    ("param_norm", "‖θ‖", ".4g"),
    ("update_norm", "‖U‖", ".4g"),
    ("distance", "‖θ − θ₀‖²", ".3g"),
    ("lr_eff", "effective learning rate", ".2e"),
    ("wd_eff", "effective weight decay", ".2e"),
)
_LAYERS = (
    ("r", "r", ".2f"),
    ("sigma", "σ", "+.1e"),
    ("R_ie", "R_ie", ".2f"),
    ("wd_balance", "R_wd", ".2f"),
    ("gaussianity", "N1/d", ".3f"),
    ("rho_momentum", "ρ_m", "+.2f"),
    ("angular_step", "angle", ".1e"),
    ("param_norm", "‖θ‖", ".3g"),
)


_NOT_ALWAYS = ("loss", "rho", "distance")
"""Quantities that are left out where no loss was reported, or no observer tracked them."""


def total_table(run: SavedRun) -> Table:
    """Loss, and quantities of all parameters together: first, halfway, last, and the course between."""
    history = run.history
    begun, last = history.steps[[0, -1]].tolist()  # those shown: a table may begin in mid-run
    middle = int(np.searchsorted(history.steps, (begun - 1 + last) / 2))
    rows = []
    for name, words, form in (("loss", "loss", ".4g"), *_TOTALS):
        values = history.losses if name == "loss" else history.total(name)
        if name in _NOT_ALWAYS and not np.isfinite(values).any():
            continue
        shown = (values[-1], values[middle], values[0])
        cells = [_number(v, form) for v in shown]
        rows.append((words, cells[0], course(values, 2 * COURSE), cells[1], cells[2]))
    head = ("quantity", "last", "trend", "halfway", "first")
    return Table("All parameters", head, rows, frozenset({0, 2}), _UNDEFINED)


def type_table(run: SavedRun) -> Table:
    """The last reading by layer type: sums of σ and of squared norms, medians over layers of the ratios."""
    latest = _latest(run)
    names = run.history.layer_names
    total = float(run.history.total("sigma")[-1])
    rows = []
    for kind in LAYER_TYPES:
        own = [i for i, name in enumerate(names) if run.layer_types[name] == kind]
        if not own:
            continue
        sigma = float(np.nansum(latest["sigma"][own]))
        norm = math.sqrt(float(np.nansum(latest["param_norm"][own] ** 2)))
        share = _number(100 * sigma / total if total else math.nan, "+.0f", " %")
        cells = [
            _number(
                sigma if key == "sigma" else norm if key == "param_norm" else _median(latest[key][own]), form
            )
            for key, _, form in _LAYERS
        ]
        rows.append((kind, str(len(own)), *cells, share))
    head = ("type", "layers", *(word for _, word, _ in _LAYERS), "share of σ")
    note = "r, R_ie, R_wd, N1/d, ρ_m and angle: median over the layers in which they are defined"
    return Table("By layer type, last reading", head, rows, note=note)


def rate_table(run: SavedRun) -> Table:
    """Each rate of a controller at its last reading, and whether it followed its set-point over the run."""
    rows = []
    for name, own in by_rate(run.history.standings).items():
        last, states = own[-1], Counter(standing.state for standing in own)
        rest = ", ".join(f"{n} {state}" for state, n in states.most_common() if state != "follows")
        numbers = (
            last.wanted,
            last.held,
            last.given,
            last.phi,
            last.phi_star,
            last.phi / (last.phi_star or math.nan),
        )
        cells = [_number(x, ".3g") for x in numbers]
        followed = f"{states['follows']} of {len(own)}"
        rows.append((name, *cells, followed, rest or "-", last.why))
    head = ("rate", "wanted", "held", "given", "φ", "φ*", "r = φ/φ*", "followed", "otherwise", "last reason")
    note = "given: after warm-up and cooling; followed: readings at which the rate held was the rate wanted"
    return Table("Rates of the controller, last reading", head, rows, frozenset({0, 8, 9}), note)


def layer_table(run: SavedRun, most: int | None = None, name_width: int | None = None) -> Table:
    """Return the last reading of every layer, with the course of r and of the norm.

    Args:
        run: to read.
        most: number of layers to list, those furthest from r = 1; None lists all.
        name_width: cut names to this many characters; None leaves them.
    """
    history = run.history
    latest, names = _latest(run), history.layer_names
    r, norm = history.layers("r"), history.layers("param_norm")
    chosen = list(range(len(names)))
    title = "By layer, last reading"
    if most is not None and len(names) > most:
        with np.errstate(divide="ignore", invalid="ignore"):
            far = np.abs(np.log(latest["r"]))
        chosen = sorted(np.argsort(-np.nan_to_num(far, posinf=math.inf), kind="stable")[:most].tolist())
        title = f"By layer, last reading: the {most} of {len(names)} furthest from r = 1"
    rows = []
    for i in chosen:
        name = names[i]
        kind = run.layer_types[name]
        if name_width is not None and len(name) > name_width:
            name = "…" + name[1 - name_width :]
        first, *rest = [_number(latest[key][i], form) for key, _, form in _LAYERS]
        rows.append((name, kind, first, course(r[:, i], COURSE), *rest, course(norm[:, i], COURSE)))
    head = ("layer", "type", "r", "trend of r", *(word for _, word, _ in _LAYERS[1:]), "trend of ‖θ‖")
    return Table(title, head, rows, frozenset({0, 1, 3, len(head) - 1}), _UNDEFINED)


_UNDEFINED = "-: undefined"


def _latest(run: SavedRun) -> dict[str, Array]:
    """Quantities of the layers in their last reading, ``[n_layers]`` each."""
    out = {}
    for name, _, _ in _LAYERS:
        values = run.history.layers(name)
        out[name] = values[-1] if len(values) else np.zeros(0)
    return out


def _median(values: Array) -> float:
    values = values[~np.isnan(values)]
    return float(np.median(values)) if values.size else math.nan


def _number(value: float, form: str, unit: str = "") -> str:
    if math.isnan(value):
        return "-"
    return "∞" if value == math.inf else format(value, form) + unit
