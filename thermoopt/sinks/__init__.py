"""Destinations of readings during a run: files, experiment trackers, and the queue that feeds them."""

from thermoopt.sinks.csv_sink import CSVSink
from thermoopt.sinks.jsonl import FileSink, JSONLSink
from thermoopt.sinks.parquet import ParquetSink
from thermoopt.sinks.queue import MAX_UNSENT, Sink, SinkQueue
from thermoopt.sinks.trackers import LogSink, MLflowSink, TensorBoardSink, WandbSink, flat_scalars

__all__ = [
    "MAX_UNSENT",
    "CSVSink",
    "FileSink",
    "JSONLSink",
    "LogSink",
    "MLflowSink",
    "ParquetSink",
    "Sink",
    "SinkQueue",
    "TensorBoardSink",
    "WandbSink",
    "flat_scalars",
]
