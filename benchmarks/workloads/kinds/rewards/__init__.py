"""Networks that act or predict rewards: their targets move with them."""

from __future__ import annotations

from thermoopt.benchmarks.workloads.kinds.rewards.pendulum import PENDULUM
from thermoopt.benchmarks.workloads.kinds.rewards.policies import PPO, REINFORCE
from thermoopt.benchmarks.workloads.kinds.rewards.values import Q_LEARNING, TD

__all__ = ["PENDULUM", "PPO", "Q_LEARNING", "REINFORCE", "TD"]
