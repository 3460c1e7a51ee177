"""Where readings go while a run is on: files, experiment trackers, and the queue that feeds them."""

from thermoopt.sinks.files import CSVSink, JSONLSink
from thermoopt.sinks.queue import MAX_UNSENT, Sink, SinkQueue
from thermoopt.sinks.trackers import LogSink, MLflowSink, TensorBoardSink, WandbSink, flat_scalars

__all__ = [
    "MAX_UNSENT",
    "CSVSink",
    "JSONLSink",
    "LogSink",
    "MLflowSink",
    "Sink",
    "SinkQueue",
    "TensorBoardSink",
    "WandbSink",
    "flat_scalars",
]
