"""AdamW that accounts for the thermodynamics of training inside its own step."""

from thermoopt.adamw import ThermoAdamW
from thermoopt.controllers.presets import autotune
from thermoopt.history import History
from thermoopt.meter import Quantities, Reading
from thermoopt.observer import Observer
from thermoopt.scheduler import ThermoScheduler
from thermoopt.sinks import CSVSink, JSONLSink, LogSink, TensorBoardSink

__version__ = "0.1.0"

__all__ = [
    "CSVSink",
    "History",
    "JSONLSink",
    "LogSink",
    "Observer",
    "Quantities",
    "Reading",
    "TensorBoardSink",
    "ThermoAdamW",
    "ThermoScheduler",
    "__version__",
    "autotune",
]
