"""What is wrong with a run, how sure that is, and what to change and by how much."""

from typing import TYPE_CHECKING

from thermoopt.diagnosis.diagnose import SURE, DiagnosticReport, diagnose
from thermoopt.diagnosis.finding import Finding
from thermoopt.lazy import lazy_face

if TYPE_CHECKING:
    from thermoopt.diagnosis.collapse_detector import CollapseDetector as CollapseDetector
    from thermoopt.diagnosis.entropy_split import EntropySplit as EntropySplit

# what needs torch is loaded on first use: saved runs are diagnosed without it
__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "thermoopt.diagnosis.collapse_detector": ("CollapseDetector",),
        "thermoopt.diagnosis.entropy_split": ("EntropySplit",),
    },
)

__all__ = ["SURE", "CollapseDetector", "DiagnosticReport", "EntropySplit", "Finding", "diagnose"]
