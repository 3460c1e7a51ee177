"""Networks of further kinds, on which the default control law was looked at before they became workloads."""

from __future__ import annotations

from thermoopt.benchmarks.workloads.kinds.alike import BOOTSTRAP, TRIPLETS
from thermoopt.benchmarks.workloads.kinds.codes import QUANTISED, SPARSE
from thermoopt.benchmarks.workloads.kinds.functions import DEEP_LINEAR, EXPERTS, SPLINES, SPREAD, SURFACE
from thermoopt.benchmarks.workloads.kinds.images import BATCHNORM, CAPSULES, IMPLICIT, MISLABELLED, RESNET
from thermoopt.benchmarks.workloads.kinds.inference import VARIATIONAL
from thermoopt.benchmarks.workloads.kinds.private import PRIVATE, PRIVATE_NOISY
from thermoopt.benchmarks.workloads.kinds.recurrent import ADDING, CTC, ROWS
from thermoopt.benchmarks.workloads.kinds.relations import COMPLETION, GRAPH_ATTENTION, TOPICS
from thermoopt.benchmarks.workloads.kinds.rewards import PENDULUM, PPO, Q_LEARNING, REINFORCE, TD
from thermoopt.benchmarks.workloads.kinds.shapes import CLOUDS, SEGMENTS, SPIRALS
from thermoopt.benchmarks.workloads.kinds.soft import DISTILLED, FEW
from thermoopt.benchmarks.workloads.kinds.stacks import (
    STACK_BATCHNORM,
    STACK_LAYERNORM,
    STACK_RELU,
    STACK_TANH,
)
from thermoopt.benchmarks.workloads.kinds.transformers import MARKOV, SORT

__all__ = ["KINDS"]

KINDS = (
    RESNET,
    BATCHNORM,
    CAPSULES,
    IMPLICIT,
    DISTILLED,
    FEW,
    SORT,
    MARKOV,
    ROWS,
    ADDING,
    CTC,
    SURFACE,
    SPREAD,
    DEEP_LINEAR,
    EXPERTS,
    SPLINES,
    SPARSE,
    QUANTISED,
    TRIPLETS,
    GRAPH_ATTENTION,
    TOPICS,
    COMPLETION,
    CLOUDS,
    SPIRALS,
    SEGMENTS,
    MISLABELLED,
    BOOTSTRAP,
    PRIVATE,
    PRIVATE_NOISY,
    VARIATIONAL,
    TD,
    Q_LEARNING,
    REINFORCE,
    PPO,
    PENDULUM,
    STACK_RELU,
    STACK_TANH,
    STACK_LAYERNORM,
    STACK_BATCHNORM,
)
"""Workloads of further kinds, in the order of their tables."""
