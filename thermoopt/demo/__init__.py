"""A small GPT trained three ways, and the account of it."""

from typing import TYPE_CHECKING

from thermoopt.demo.defaults import DEFAULT_STEPS
from thermoopt.lazy import lazy_face

if TYPE_CHECKING:
    from thermoopt.demo.corpus import batches as batches
    from thermoopt.demo.corpus import load_corpus as load_corpus
    from thermoopt.demo.corpus import windows as windows
    from thermoopt.demo.gpt import GPT as GPT
    from thermoopt.demo.gpt import GPTConfig as GPTConfig
    from thermoopt.demo.run import run_demo as run_demo

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "thermoopt.demo.corpus": ("batches", "load_corpus", "windows"),
        "thermoopt.demo.gpt": ("GPT", "GPTConfig"),
        "thermoopt.demo.run": ("run_demo",),
    },
)

__all__ = ["DEFAULT_STEPS", "GPT", "GPTConfig", "batches", "load_corpus", "run_demo", "windows"]
