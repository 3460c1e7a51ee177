"""The registry of workloads."""

from thermoopt.benchmarks.workloads.images import CNN_MNIST1D, CONV_DIGITS, MLP_MNIST1D, VIT_DIGITS
from thermoopt.benchmarks.workloads.linear import LINEAR
from thermoopt.benchmarks.workloads.task import Task, Workload
from thermoopt.benchmarks.workloads.text import GPT_TEXT, GRU_TEXT, LSTM_TEXT

__all__ = ["HELD_OUT", "WORKLOADS", "Task", "Workload"]

WORKLOADS = {
    w.name: w
    for w in (GPT_TEXT, GRU_TEXT, CNN_MNIST1D, MLP_MNIST1D, CONV_DIGITS, LINEAR, VIT_DIGITS, LSTM_TEXT)
}
"""Every workload by name."""

HELD_OUT = ("vit", "lstm")
"""Workloads on which no constant of a control law was chosen: run once, reported as they are."""
