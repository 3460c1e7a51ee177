"""AdamW that accounts for the thermodynamics of training inside its own step."""

from thermoopt.adamw import ThermoAdamW
from thermoopt.collapse import CollapseDetector
from thermoopt.controllers.presets import autotune
from thermoopt.diagnose import DiagnosticReport, diagnose
from thermoopt.entropy import EntropySplit
from thermoopt.finding import Finding
from thermoopt.history import History
from thermoopt.meter import Quantities, Reading
from thermoopt.observer import Observer
from thermoopt.param_groups import detect_layer_type, make_param_groups
from thermoopt.scheduler import ThermoScheduler
from thermoopt.sinks import CSVSink, JSONLSink, LogSink, MLflowSink, TensorBoardSink, WandbSink

__version__ = "0.1.0"

__all__ = [
    "CSVSink",
    "CollapseDetector",
    "DiagnosticReport",
    "EntropySplit",
    "Finding",
    "History",
    "JSONLSink",
    "LogSink",
    "MLflowSink",
    "Observer",
    "Quantities",
    "Reading",
    "TensorBoardSink",
    "ThermoAdamW",
    "ThermoScheduler",
    "WandbSink",
    "__version__",
    "autotune",
    "detect_layer_type",
    "diagnose",
    "make_param_groups",
]
