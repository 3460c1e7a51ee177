"""Observer: measures any torch optimizer as ThermoAdamW measures itself."""

from thermoopt.observer.carried_start import CarriedTravel
from thermoopt.observer.observer import LOG_EVERY, Observer
from thermoopt.observer.step_hooks import check_whole_step, closure_of, is_dry
from thermoopt.observer.tracker import TRACKABLE
from thermoopt.observer.whole_steps import on_whole_steps

__all__ = [
    "LOG_EVERY",
    "TRACKABLE",
    "CarriedTravel",
    "Observer",
    "check_whole_step",
    "closure_of",
    "is_dry",
    "on_whole_steps",
]
