"""The kinds of finding, one function each: ``Evidence`` in, a ``Finding`` or None out.

Each function's docstring states its null, the value of the measure in a run with nothing wrong, and where its
bounds come from. Bounds called *measured* were set on seed 0 of this project's six small workloads and
validated on other seeds and workloads (``benchmarks/validation``).
"""

from collections.abc import Callable

from thermoopt.diagnosis.evidence import Evidence
from thermoopt.diagnosis.finding import Finding
from thermoopt.diagnosis.kinds.layers import dead_layer, exploding_layer, layers_out_of_step
from thermoopt.diagnosis.kinds.progress import nothing_learned, progress_lost
from thermoopt.diagnosis.kinds.rates import (
    learning_rate_runaway,
    learning_rate_too_high,
    learning_rate_too_low,
    learning_rate_zero,
    momentum_overdamped,
    oscillation,
    stopped_uncooled,
)
from thermoopt.diagnosis.kinds.steps import (
    gradient_noise,
    gradients_below_eps,
    no_gradients,
    non_finite_steps,
)
from thermoopt.diagnosis.kinds.weights import weight_decay_collapse, weight_decay_irrelevant

__all__ = ["FOLLOWS", "KINDS"]

KINDS: dict[str, Callable[[Evidence], Finding | None]] = {
    kind.__name__: kind
    for kind in (
        learning_rate_runaway,
        non_finite_steps,
        no_gradients,
        learning_rate_zero,
        stopped_uncooled,
        gradients_below_eps,
        learning_rate_too_high,
        exploding_layer,
        weight_decay_collapse,
        progress_lost,
        momentum_overdamped,
        learning_rate_too_low,
        oscillation,
        dead_layer,
        nothing_learned,
        layers_out_of_step,
        gradient_noise,
        weight_decay_irrelevant,
    )
}
"""Every kind by name, causes before what follows from them."""

FOLLOWS = {
    "learning_rate_runaway": {
        "non_finite_steps",
        "learning_rate_too_high",
        "progress_lost",
        "exploding_layer",
        "weight_decay_collapse",
        "learning_rate_too_low",
        "oscillation",
        "dead_layer",
        "layers_out_of_step",
        "gradient_noise",
        "nothing_learned",
    },
    "no_gradients": {
        "learning_rate_too_low",
        "oscillation",
        "layers_out_of_step",
        "gradient_noise",
        "nothing_learned",
    },
    "learning_rate_zero": {
        "learning_rate_too_low",
        "oscillation",
        "layers_out_of_step",
        "gradient_noise",
        "nothing_learned",
    },
    "gradients_below_eps": {
        "learning_rate_too_low",
        "layers_out_of_step",
        "oscillation",
        "gradient_noise",
        "nothing_learned",
    },
    "non_finite_steps": {
        "learning_rate_too_high",
        "progress_lost",
        "exploding_layer",
        "weight_decay_collapse",
        "oscillation",
        "layers_out_of_step",
        "nothing_learned",
    },
    "learning_rate_too_high": {
        "progress_lost",
        "weight_decay_collapse",
        "dead_layer",
        "exploding_layer",
        "oscillation",
        "layers_out_of_step",
        "gradient_noise",
        "nothing_learned",
    },
    "progress_lost": {
        "learning_rate_too_low",
        "dead_layer",
        "layers_out_of_step",
        "gradient_noise",
        "nothing_learned",
    },
    "weight_decay_collapse": {
        "progress_lost",
        "learning_rate_too_low",
        "dead_layer",
        "layers_out_of_step",
        "gradient_noise",
        "nothing_learned",
    },
    "momentum_overdamped": {
        "learning_rate_too_low",
        "oscillation",
        "layers_out_of_step",
        "gradient_noise",
        "nothing_learned",
    },
    "exploding_layer": {
        "progress_lost",
        "weight_decay_collapse",
        "oscillation",
        "layers_out_of_step",
        "nothing_learned",
    },
    "learning_rate_too_low": {"nothing_learned"},
    "dead_layer": {"nothing_learned"},
}
"""The kinds that a finding of HIGH or MEDIUM confidence explains: those are reported as LOW, with the cause.
For example, a learning rate far too high makes layers explode and oscillate; one change repairs all three."""
