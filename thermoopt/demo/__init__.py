"""A small GPT trained three ways, and the account of it."""

from thermoopt.demo.corpus import batches, load_corpus, windows
from thermoopt.demo.gpt import GPT, GPTConfig
from thermoopt.demo.run import DEFAULT_STEPS, run_demo

__all__ = [
    "DEFAULT_STEPS",
    "GPT",
    "GPTConfig",
    "batches",
    "load_corpus",
    "run_demo",
    "windows",
]
