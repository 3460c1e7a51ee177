"""One step and its sums: bodies of one function for different machines."""

from thermoopt.kernels.doctor import report
from thermoopt.kernels.layout import is_dense, real_elements
from thermoopt.kernels.reference import reference_step
from thermoopt.kernels.torch_pass import LayerTensors, Parcel, measure
from thermoopt.physics.sums import Sum

__all__ = [
    "LayerTensors",
    "Parcel",
    "Sum",
    "is_dense",
    "measure",
    "real_elements",
    "reference_step",
    "report",
]
