"""Methods and control laws on workloads of many families, judged on families not used for choosing."""

from __future__ import annotations

from thermoopt.benchmarks.families.cases import (
    CHOSEN_ON,
    DEVELOPMENT,
    LONG,
    LRS,
    REFERENCE,
    SEEDS,
    Case,
    family,
)
from thermoopt.benchmarks.families.ratios import Ratios, leave_family_out, ratios, summary

__all__ = [
    "CHOSEN_ON",
    "DEVELOPMENT",
    "LONG",
    "LRS",
    "REFERENCE",
    "SEEDS",
    "Case",
    "Ratios",
    "family",
    "leave_family_out",
    "ratios",
    "summary",
]
