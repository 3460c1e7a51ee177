"""Controllers close the loop from readings to scales."""

from thermoopt.controllers.barostat import Barostat
from thermoopt.controllers.base import Action, Controller, Scales, Start
from thermoopt.controllers.cooling import Cooling
from thermoopt.controllers.lever import Bounds
from thermoopt.controllers.presets import autotune
from thermoopt.controllers.replay import Recorder, Replay
from thermoopt.controllers.setpoints import Signals, Wanted
from thermoopt.controllers.thermostat import Thermostat
from thermoopt.controllers.wrappers import Chain, DryRun

__all__ = [
    "Action",
    "Barostat",
    "Bounds",
    "Chain",
    "Controller",
    "Cooling",
    "DryRun",
    "Recorder",
    "Replay",
    "Scales",
    "Signals",
    "Start",
    "Thermostat",
    "Wanted",
    "autotune",
]
