"""Controllers close the loop from readings to scales."""

from thermoopt.controllers.base import (
    Action,
    Controller,
    Scales,
    Start,
    check_claim,
    check_saved_controller,
    claim,
    restore,
)
from thermoopt.controllers.cooling import SHAPES, Cooling, cooling_factor
from thermoopt.controllers.decay import Barostat
from thermoopt.controllers.lever import Bounds, Lever
from thermoopt.controllers.presets import autotune
from thermoopt.controllers.replay import Recorder, Replay
from thermoopt.controllers.saved import check_numbers
from thermoopt.controllers.setpoints import Signals, Wanted
from thermoopt.controllers.thermostat import Thermostat
from thermoopt.controllers.wrappers import Chain, DryRun
from thermoopt.physics import Standing

__all__ = [
    "SHAPES",
    "Action",
    "Barostat",
    "Bounds",
    "Chain",
    "Controller",
    "Cooling",
    "DryRun",
    "Lever",
    "Recorder",
    "Replay",
    "Scales",
    "Signals",
    "Standing",
    "Start",
    "Thermostat",
    "Wanted",
    "autotune",
    "check_claim",
    "check_numbers",
    "check_saved_controller",
    "claim",
    "cooling_factor",
    "restore",
]
