"""One AdamW step and its sums: several bodies of one function, tested equal."""

from thermoopt.kernels.reference import reference_step
from thermoopt.kernels.sums import Sum

__all__ = ["Sum", "reference_step"]
