"""Hugging Face Trainer: a callback that measures any optimizer, and ThermoAdamW made from its arguments.

Needs the extra ``hf``. A run in three lines, and what its logs show: ``docs/huggingface.md``.
"""

from thermoopt.integrations.trainer_callback import OBSERVER_FILE, ThermoCallback
from thermoopt.integrations.trainer_optimizer import thermo_adamw, thermo_optimizer, training_steps
from thermoopt.integrations.unwrapping import unwrap

__all__ = ["OBSERVER_FILE", "ThermoCallback", "thermo_adamw", "thermo_optimizer", "training_steps", "unwrap"]
