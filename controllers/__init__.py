"""Controllers close the loop from readings to scales."""

from thermoopt.controllers.base import Controller, Scales
from thermoopt.controllers.cooling import Cooling

__all__ = ["Controller", "Cooling", "Scales"]
