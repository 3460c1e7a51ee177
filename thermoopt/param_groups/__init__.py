"""The part of a model that a parameter belongs to, and parameter groups by these parts."""

from typing import TYPE_CHECKING

from thermoopt.lazy import lazy_face
from thermoopt.param_groups.names import LAYER_TYPES, detect_layer_type

if TYPE_CHECKING:
    from thermoopt.param_groups.groups import layer_types as layer_types
    from thermoopt.param_groups.groups import make_param_groups as make_param_groups

__getattr__, __dir__ = lazy_face(
    __name__, {"thermoopt.param_groups.groups": ("layer_types", "make_param_groups")}
)

__all__ = ["LAYER_TYPES", "detect_layer_type", "layer_types", "make_param_groups"]
