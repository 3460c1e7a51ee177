"""AdamW that accounts for the thermodynamics of training inside its own step."""

from typing import TYPE_CHECKING

from thermoopt.lazy import lazy_face

__version__ = "0.1.0"

if TYPE_CHECKING:
    from thermoopt.account import History as History
    from thermoopt.account import Quantities as Quantities
    from thermoopt.account import Reading as Reading
    from thermoopt.adamw import ThermoAdamW as ThermoAdamW
    from thermoopt.controllers import autotune as autotune
    from thermoopt.diagnosis import CollapseDetector as CollapseDetector
    from thermoopt.diagnosis import DiagnosticReport as DiagnosticReport
    from thermoopt.diagnosis import EntropySplit as EntropySplit
    from thermoopt.diagnosis import Finding as Finding
    from thermoopt.diagnosis import diagnose as diagnose
    from thermoopt.observer import Observer as Observer
    from thermoopt.param_groups import detect_layer_type as detect_layer_type
    from thermoopt.param_groups import make_param_groups as make_param_groups
    from thermoopt.scheduler import ThermoScheduler as ThermoScheduler
    from thermoopt.sinks import CSVSink as CSVSink
    from thermoopt.sinks import JSONLSink as JSONLSink
    from thermoopt.sinks import LogSink as LogSink
    from thermoopt.sinks import MLflowSink as MLflowSink
    from thermoopt.sinks import TensorBoardSink as TensorBoardSink
    from thermoopt.sinks import WandbSink as WandbSink

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "thermoopt.account": (
            "History",
            "Quantities",
            "Reading",
        ),
        "thermoopt.adamw": ("ThermoAdamW",),
        "thermoopt.controllers": ("autotune",),
        "thermoopt.diagnosis": (
            "CollapseDetector",
            "DiagnosticReport",
            "EntropySplit",
            "Finding",
            "diagnose",
        ),
        "thermoopt.observer": ("Observer",),
        "thermoopt.param_groups": (
            "detect_layer_type",
            "make_param_groups",
        ),
        "thermoopt.scheduler": ("ThermoScheduler",),
        "thermoopt.sinks": (
            "CSVSink",
            "JSONLSink",
            "LogSink",
            "MLflowSink",
            "TensorBoardSink",
            "WandbSink",
        ),
    },
)

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
