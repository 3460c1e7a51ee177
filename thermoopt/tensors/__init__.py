"""From tensors, on any device and any number of ranks, to numbers on the host."""

from thermoopt.tensors.fsdp1 import check_whole, see_parts
from thermoopt.tensors.layout import (
    follow_groups,
    follow_layers,
    holds_numbers,
    same_members,
    same_objects,
)
from thermoopt.tensors.norms import root_mean_squares
from thermoopt.tensors.precision import widest
from thermoopt.tensors.rows import uneven_rows
from thermoopt.tensors.sampling import STRIDE, block_size, sample_pages
from thermoopt.tensors.sharding import Sharding, is_distributed, local, place
from thermoopt.tensors.transit import WARM_UP, Arrival, Fetch, capturing, send
from thermoopt.tensors.travel_probe import PendingTravel, TravelProbe

__all__ = [
    "STRIDE",
    "WARM_UP",
    "Arrival",
    "Fetch",
    "PendingTravel",
    "Sharding",
    "TravelProbe",
    "block_size",
    "capturing",
    "check_whole",
    "follow_groups",
    "follow_layers",
    "holds_numbers",
    "is_distributed",
    "local",
    "place",
    "root_mean_squares",
    "same_members",
    "same_objects",
    "sample_pages",
    "see_parts",
    "send",
    "uneven_rows",
    "widest",
]
