"""ThermoScheduler: a schedule for any torch optimizer, with or without a controller."""

from thermoopt.scheduler.plan import ANYTIME, GroupSchedule, SchedulePlan, copied, geometric_mean, plain
from thermoopt.scheduler.scheduler import ThermoScheduler

__all__ = ["ANYTIME", "GroupSchedule", "SchedulePlan", "ThermoScheduler", "copied", "geometric_mean", "plain"]
