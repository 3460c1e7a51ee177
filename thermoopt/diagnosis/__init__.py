"""What is wrong with a run, how sure that is, and what to change by how much."""

from thermoopt.diagnosis.collapse_detector import CollapseDetector
from thermoopt.diagnosis.diagnose import SURE, DiagnosticReport, diagnose
from thermoopt.diagnosis.entropy_split import EntropySplit
from thermoopt.diagnosis.finding import Finding

__all__ = ["SURE", "CollapseDetector", "DiagnosticReport", "EntropySplit", "Finding", "diagnose"]
