"""ThermoAdamW: torch's AdamW with an account of entropy production inside its step."""

from thermoopt.adamw.arguments import (
    EMA_STEPS,
    check_count,
    check_hookable,
    check_materialized,
    inner_optimizer,
)
from thermoopt.adamw.backends import dry_kernel
from thermoopt.adamw.control_loop import start_of
from thermoopt.adamw.optimizer import ThermoAdamW
from thermoopt.adamw.rates import Rates, RatesCache, group_rates
from thermoopt.adamw.torch_backend import MeasuringPass
from thermoopt.adamw.torch_sums import fill

__all__ = [
    "EMA_STEPS",
    "MeasuringPass",
    "Rates",
    "RatesCache",
    "ThermoAdamW",
    "check_count",
    "check_hookable",
    "check_materialized",
    "dry_kernel",
    "fill",
    "group_rates",
    "inner_optimizer",
    "start_of",
]
