"""Kinds of finding about single layers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from thermoopt.diagnosis.evidence import MIN_READINGS, Array, Evidence, median
from thermoopt.diagnosis.finding import Finding, in_few, two_digits

__all__ = ["dead_layer", "exploding_layer", "layers_out_of_step"]

GROWN = 30.0
"""Growth of a matrix's norm since the start from which it explodes. Measured: at most 13 times in healthy
runs, except for the one matrix of a regression that has to grow 40 times."""

APART = 10.0
"""A layer explodes only if it grew at least this many times more than the median layer; growth of all layers
is a learning-rate problem."""

STEEPENED = 1000.0
"""Growth of a layer's gradient norm from which it explodes. Measured: at most 27 times in healthy runs, 50
in runs with any other fault."""

DECADES = 1.5
"""Two sets of matrices are out of step if their angular steps are at least this many decades apart. Measured:
at most 1.3 in healthy runs (an embedding of unit variance beside a GRU), 1.5 to 2.5 where half of the
matrices run at a thousandth of the learning rate."""

LASTING = 5
"""Successive readings, a whole average, for which a layer must have had no gradient."""

SAME_FALL = 1e-4
"""Largest relative difference between how fast an average falls and how fast it forgets for that to be the
same: readings are kept in float32, 6e-8 of a norm, and fall by some percent from one to the next."""

SAME_FALL_FIRST = 1e-4
"""Largest difference between the logarithms of how far a first power fell from one reading to the next and of
what was forgotten: records keep each of the three terms in it to 8e-6, and the terms of an embedding, rows of
which are seen late, drift by 4e-5 two hundred steps after its gradient ended."""

SURE = 4
"""Averages for which squares alone must have fallen like that: a gradient that passes for zero at 5e-3 of its
average's root would have to fade on to 7e-4 of what that was."""

FITTED = 0.01
"""Loss at the end, over the first, below which all gradients vanish because nothing is left to fit."""

PEERS = 3
"""Fewest matrices for a comparison with their median."""


def dead_layer(run: Evidence) -> Finding | None:
    r"""Parameters without a gradient, or with one of exactly zero, from the start or since some step.

    Null: a gradient that is exactly zero in every element of a layer and in every one of some hundred steps
    does not come about by rounding; frozen parameters do not count. An average over exact zeros only forgets,
    by :math:`1-1/\mathrm{ema\_steps}` a step. So does one of the squares of a gradient that fades to 1e-2 of
    what it was: where moments are known the first power must forget, too, elsewhere squares must do so for
    :data:`SURE` averages. Where all layers fade while the loss goes to 0 (:data:`FITTED`), none is dead. HIGH
    where gradients are zero (the layer is in the graph, and something blocks it), MEDIUM where there is none
    (it may be unused on purpose) and where all vanish and no loss tells why, LOW for shifts that cancel
    (:func:`_cancelled`).
    """
    if len(run.layer_steps) < MIN_READINGS:
        return None
    norms = run.layers("grad_norm")
    free = np.array([name not in run.frozen for name in run.names]) & (run.layers("numel")[-1] != 0)
    never = np.isnan(norms).all(axis=0) & free
    silent = {"zero": _zero_since(run), "none": _none_since(norms)}
    cancelled = _cancelled(run, np.where(never, 0, silent["zero"])) & free
    free &= ~cancelled
    never &= free
    faded = (silent["zero"] > 0) & (silent["zero"] <= len(norms) - LASTING)
    all_fade = bool(faded[free].all())
    fitted = run.loss_ratios()[1]
    if all_fade and fitted < FITTED:
        silent["zero"] = np.where(faded, len(norms), silent["zero"])
    for what, since in silent.items():
        dead = (since <= len(norms) - LASTING) & free & ~never
        if dead.any() or (what == "none" and never.any()):
            break
    else:
        return _shifts(run, run.select(cancelled)) if cancelled.any() else None
    whole = since[dead].min(initial=len(norms)) == 0
    layers = run.select(dead if dead.any() else never)
    many = f"{in_few(layers)} {'have' if len(layers) > 1 else 'has'} had"
    first = 0 if whole or not dead.any() else int(since[dead].min())
    readings = len(norms) - first
    gradient = "a gradient of exactly zero" if what == "zero" else "no gradient"
    if first:
        gradient += f" since step {int(run.layer_steps[first - 1])} ({readings} readings)"
    else:
        gradient += f"{' at all' if what == 'none' else ''} in {readings} readings"
    unexplained = what == "zero" and all_fade and math.isnan(fitted)
    if unexplained:
        cause = (
            "This is so in every layer: check whether the loss is 0. If it is not, look for a detach() or a "
            "dead activation."
        )
    elif what == "zero":
        cause = (
            "Look for a detach(), a dead activation, a factor of zero or a softmax over a single item "
            "between this layer and the loss, and for inputs that are all 0."
        )
    else:
        cause = (
            "Check whether forward() uses it. If not, leave it out of the optimizer or set "
            "requires_grad=False. If only some steps use it, measure every step to be sure."
        )
    return Finding(
        "dead_layer",
        "HIGH" if what == "zero" and not unexplained else "MEDIUM",
        f"{many} {gradient}.",
        cause,
        measure="grad_norm",
        effect=0.0,
        null=math.nan,
        readings=readings,
        layers=layers,
        layer_type=run.type_of(layers),
    )


def _cancelled(run: Evidence, since: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Vectors without a gradient from the first step on beside a matrix of the same module that has one.

    So is a bias where outputs enter a loss by their differences alone (ranking, contrastive losses), or by
    their derivatives (a Hamiltonian).
    """
    modules = np.array([name.rpartition(".")[0] for name in run.names])
    learning = set(modules[run.matrix & (since > 0)].tolist())
    return (since == 0) & ~run.matrix & np.array([module in learning for module in modules], dtype=bool)


def _shifts(run: Evidence, layers: tuple[str, ...]) -> Finding:
    """Report biases on which the loss does not depend."""
    return Finding(
        "dead_layer",
        "LOW",
        f"{', '.join(layers)} {'have' if len(layers) > 1 else 'has'} had no gradient, or exactly zero, "
        "since the first step, although the matrix of the same module has one. A bias gets none if the loss "
        "depends only on differences between outputs.",
        "Nothing needs fixing; bias=False would save the parameter.",
        measure="grad_norm",
        effect=0.0,
        null=math.nan,
        readings=run.n,
        layers=layers,
        layer_type=run.type_of(layers),
    )


def _none_since(norms: Array) -> NDArray[np.int64]:
    """Reading from which on each layer has no gradient, ``[n]``; their number where it has one to the end."""
    there = np.isfinite(norms)
    return np.where(there.any(axis=0), len(norms) - np.argmax(there[::-1], axis=0), len(norms))


@np.errstate(all="ignore")
def _zero_since(run: Evidence) -> NDArray[np.int64]:
    r"""Reading from which on each layer's gradient is zero, ``[n]``; their number where it is not.

    The first power is :math:`\sum|g|/\sqrt{\hat v}`, up to a constant: gaussianity while as many elements
    have a gradient's memory as on average, gaussianity * \|U\|^2 / r once Adam has warmed up.
    """
    norms, steps = run.layers("grad_norm"), run.layer_steps
    log_keep = math.log(run.keep) if 0 < run.keep < 1 else math.nan
    forgotten = log_keep * np.diff(steps)[:, None]
    # an average is of the steps so far: its weight is 1 - keep**t
    weight = np.log(1 - run.keep ** steps[:, None].astype(float))
    shape = np.log(run.layers("gaussianity"))
    elements = np.log(run.layers("update_norm") ** 2 / run.layers("r"))
    square, first, more = (np.diff(x + weight, axis=0) for x in (2 * np.log(norms), shape, shape + elements))
    forgets = np.abs(square / forgotten - 1) < SAME_FALL
    zero = (norms[1:] == 0) & (norms[:-1] == 0)
    still = forgets | zero
    count = np.where(still.all(axis=0), len(still), np.argmax(~still[::-1], axis=0))
    since = np.where(count > 0, len(norms) - 1 - count, len(norms))
    lately = [(np.abs(x - forgotten) < SAME_FALL_FIRST)[-LASTING:].all(axis=0) for x in (first, more)]
    span = steps[-1] - steps[np.minimum(since, len(norms) - 1)]
    long = ~np.isfinite(shape).any(axis=0) & (span * -log_keep >= SURE)
    gone = zero[-1] | lately[0] | lately[1] | long
    # an average forgets from the reading after the last one that had a gradient
    last = norms[np.minimum(since, len(norms) - 1), np.arange(norms.shape[1])]
    return np.where(gone, since + (last > 0), len(norms))


def exploding_layer(run: Evidence) -> Finding | None:
    """A layer whose weights or gradients grow out of all proportion to the others'.

    Null: 1, neither grows. HIGH if the norm has grown :data:`GROWN` times since the start and :data:`APART`
    times more than the median layer's, or if the gradient has grown :data:`STEEPENED` times since the first
    readings and is as far from the median, in growth and in size: behind a gate that begins near 0 (layer
    scale, B = 0 in LoRA) a gradient grows from nothing to what others have. For the same reason the growth of
    a matrix that begins smaller than the median one (a policy's last layer, of gain 0.01) counts from the
    rms at which that one began.
    """
    if not run.enough or run.matrix.sum() < PEERS:
        return None
    m = run.matrix
    names = np.array(run.names)[m]
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(run.layers("numel")[-1, m])
        began = np.maximum(run.start[m], root * median(run.start[m] / root))
        norm = run.layers("param_norm")[-1, m] / began
        gradients = run.layers("grad_norm")[:, m]
        early = np.array([median(column[:MIN_READINGS]) for column in gradients.T])
        late = np.array([median(column[-MIN_READINGS // 2 :]) for column in gradients.T])
        grad = late / early
    steep = late > APART * median(late)
    for measure, growth, bound, large in (
        ("param_norm", norm, GROWN, np.ones_like(steep)),
        ("grad_norm", grad, STEEPENED, steep),
    ):
        usual = median(growth)
        wild = (growth > bound) & (growth > APART * usual) & large
        if wild.any():
            worst = int(np.nanargmax(np.where(wild, growth, np.nan)))
            layers = tuple(names[wild])
            times = two_digits(growth[worst])
            if measure == "param_norm":
                what, those = "weights", "those"
                less = two_digits(growth[worst] / usual)
                advice = (
                    f"Lower this layer's learning rate by a factor of {less}, or check its "
                    "initialisation and its inputs."
                )
            else:  # Adam's step does not grow with the gradient: what makes it large comes first
                what, those = "gradient", "that"
                advice = (
                    "Check what feeds this layer: inputs that are not normalised, a saturated softmax, a "
                    "division by something small. If all is well, lower its learning rate."
                )
            return Finding(
                "exploding_layer",
                "HIGH",
                f"the {what} of {names[worst]} grew by a factor of {times}, {those} of the median layer by a "
                f"factor of {usual:.2g}.",
                advice,
                measure=measure,
                effect=float(growth[worst]),
                null=1.0,
                readings=run.n,
                layers=layers,
                layer_type=run.type_of(layers),
            )
    return None


def layers_out_of_step(run: Evidence) -> Finding | None:
    r"""Two sets of matrices whose angular steps lie decades apart.

    :math:`\eta\|U\|/\|\theta\|` is the fraction of itself by which a layer turns in a step; with Adam and a
    common learning rate it depends only on the layer's size and r. Null: no gap of :data:`DECADES` between
    neighbours. The dispersion :math:`D = \mathrm{Var}(r_l)` is reported too but decides nothing: it is also
    large in healthy language models (up to 11 measured), where a few layers drift long after the others
    have reached equilibrium. MEDIUM.
    """
    if not run.enough or run.matrix.sum() < PEERS:
        return None
    names = np.array(run.names)[run.matrix]
    angular = run.layer_medians("angular_step")[run.matrix]
    moving = angular > 0
    names, angular, order = names[moving], angular[moving], np.argsort(angular[moving])
    if len(names) < PEERS:
        return None
    gaps = np.diff(np.log10(angular[order]))
    cut = int(np.argmax(gaps)) + 1
    if gaps[cut - 1] < DECADES:
        return None
    slow, fast = order[:cut], order[cut:]
    odd, way = (slow, "more slowly") if len(slow) <= len(fast) else (fast, "faster")
    r = run.layer_medians("r")[run.matrix]
    layers = tuple(sorted(names[odd], key=run.names.index))
    return Finding(
        "layers_out_of_step",
        "MEDIUM",
        f"{len(odd)} of {len(names)} matrices ({in_few(layers)}) turn{'s' * (len(odd) == 1)} at least "
        f"{two_digits(10 ** gaps[cut - 1])} times {way} than the rest: {np.median(angular[odd]):.1e} radians "
        f"per step (dispersion D of r: {_variance(r):.2g}).",
        "Compare the learning rates of their parameter groups; if these are equal, compare how the matrices "
        "are initialised.",
        measure="gap in log10 of the angular step",
        effect=float(gaps[cut - 1]),
        null=0.0,
        readings=int(run.layers_late.sum()),
        layers=layers,
        layer_type=run.type_of(layers),
    )


def _variance(x: Array) -> float:
    x = x[np.isfinite(x)]
    return float(np.var(x)) if len(x) > 1 else math.nan
