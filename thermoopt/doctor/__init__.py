"""What a bug report needs, and a test of every kernel that this machine can run."""

from thermoopt.doctor.report import report
from thermoopt.doctor.self_test import BACKENDS, Verdict, devices, self_test

__all__ = ["BACKENDS", "Verdict", "devices", "report", "self_test"]
