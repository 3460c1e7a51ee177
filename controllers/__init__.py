"""Controllers close the loop from readings to scales."""

from thermoopt.controllers.base import Controller, Scales

__all__ = ["Controller", "Scales"]
