"""What sums mean: pure functions from sums to entropy production, its split, equilibrium and norm balance."""

from thermoopt.physics.norm_balance import (
    ANGULAR_BOUND,
    AVERAGE,
    FREE_FALL,
    NU,
    TOLERANCE,
    Balance,
    NormMotion,
    repaired_decay,
    sgd_shrink,
    steps_until,
    swing_rest,
)
from thermoopt.physics.quantities import (
    GAUSSIAN,
    QUANTITIES,
    R_IE_CAP,
    check_quantity,
    dispersion,
    quantities,
)
from thermoopt.physics.sums import Sum
from thermoopt.physics.terms import (
    COLUMNS,
    TRACKED,
    Linear,
    Term,
    columns_of,
    layer_terms,
    linear_sums,
    norm_forecast,
    null_update_energy,
)
from thermoopt.physics.travel import TRAVEL_SUMS, Travel, Weights

__all__ = [
    "ANGULAR_BOUND",
    "AVERAGE",
    "COLUMNS",
    "FREE_FALL",
    "GAUSSIAN",
    "NU",
    "QUANTITIES",
    "R_IE_CAP",
    "TOLERANCE",
    "TRACKED",
    "TRAVEL_SUMS",
    "Balance",
    "Linear",
    "NormMotion",
    "Sum",
    "Term",
    "Travel",
    "Weights",
    "check_quantity",
    "columns_of",
    "dispersion",
    "layer_terms",
    "linear_sums",
    "norm_forecast",
    "null_update_energy",
    "quantities",
    "repaired_decay",
    "sgd_shrink",
    "steps_until",
    "swing_rest",
]
