"""AdamW that accounts for the thermodynamics of training inside its own step."""

from thermoopt.adamw import ThermoAdamW
from thermoopt.history import History
from thermoopt.meter import Quantities, Reading
from thermoopt.sinks import CSVSink, JSONLSink, LogSink, TensorBoardSink

__version__ = "0.1.0"

__all__ = [
    "CSVSink",
    "History",
    "JSONLSink",
    "LogSink",
    "Quantities",
    "Reading",
    "TensorBoardSink",
    "ThermoAdamW",
    "__version__",
]
