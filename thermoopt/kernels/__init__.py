"""One AdamW step and its sums: implementations of one function for different machines."""

from thermoopt.kernels.averages import CAUSES, RUN, average_in, count
from thermoopt.kernels.doctor import report
from thermoopt.kernels.flat_pass import FlatPass, is_flat
from thermoopt.kernels.layout import is_dense, real_elements
from thermoopt.kernels.native_checks import PLAIN
from thermoopt.kernels.native_travel import TravelPlan
from thermoopt.kernels.reference import reference_step
from thermoopt.kernels.torch_pass import LayerTensors, Parcel, measure
from thermoopt.kernels.travel_plans import Addresses, TravelKernel, travel_plan
from thermoopt.kernels.triton_tables import DeviceNumbers
from thermoopt.physics.sums import Sum

__all__ = [
    "CAUSES",
    "PLAIN",
    "RUN",
    "Addresses",
    "DeviceNumbers",
    "FlatPass",
    "LayerTensors",
    "Parcel",
    "Sum",
    "TravelKernel",
    "TravelPlan",
    "average_in",
    "count",
    "is_dense",
    "is_flat",
    "measure",
    "real_elements",
    "reference_step",
    "report",
    "travel_plan",
]
