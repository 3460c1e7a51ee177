"""The demo: a small GPT learns real text while its optimizer keeps the account."""

from thermoopt.demo.corpus import Corpus, load_corpus
from thermoopt.demo.gpt import GPT, GPTConfig
from thermoopt.demo.run import DemoResult, InputError, run_demo

__all__ = ["GPT", "Corpus", "DemoResult", "GPTConfig", "InputError", "load_corpus", "run_demo"]
