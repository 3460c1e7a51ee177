"""A control law given as text: an expression on the command line, or a function of a module."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import thermoopt
from thermoopt import controllers
from thermoopt.benchmarks.methods import Method
from thermoopt.benchmarks.methods.ours import FREE, controlled
from thermoopt.controllers import Controller

__all__ = ["law", "law_method"]


def law(source: str) -> Callable[[int], Controller]:
    """Return the function, from a number of steps to a controller, that a source describes.

    Args:
        source: ``package.module:function``, or an expression that sees the names of ``thermoopt`` and
            ``thermoopt.controllers``, as ``lambda steps: autotune(steps)``.

    Raises:
        ValueError: the source cannot be read or is not callable; the message has it.
    """
    module, colon, name = source.partition(":")
    try:
        if colon and module.replace(".", "").isidentifier() and name.isidentifier():
            made = getattr(importlib.import_module(module), name)
        else:
            made = eval(source, {**vars(controllers), **vars(thermoopt)})  # of the user's own command line
    except (SyntaxError, NameError, ImportError, AttributeError) as error:
        raise ValueError(f"law {source!r} cannot be read: {type(error).__name__}: {error}") from error
    if not callable(made):
        raise ValueError(f"law must be callable with the number of steps, got {source!r}")
    return made


def law_method(name: str, source: str) -> Method:
    """Make a method of a law: ThermoAdamW under its controller, no lr, decay 0.01."""
    make = law(source)
    return Method(name, source, lambda job: controlled(job, make(job.steps)), FREE)
