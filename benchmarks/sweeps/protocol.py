"""The definition of a sweep: the tiers of ``protocol.toml``, checked, and the studies of a tier."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from thermoopt.benchmarks.methods import METHODS
from thermoopt.benchmarks.workloads import WORKLOADS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["PROTOCOL", "Cell", "Protocol", "ProtocolError", "read_tiers", "unknown"]

PROTOCOL = Path(__file__).with_name("protocol.toml")
"""The protocol that comes with the package."""

SAMPLERS = ("none", "tpe")


class ProtocolError(ValueError):
    """A protocol that cannot be used; the message names tier, field, value and what is allowed."""


@dataclass(frozen=True, order=True)
class Cell:
    """One study: a method on a workload, with a seed.

    Attributes:
        workload, steps, method: workload, number of steps, and method.
        seed: seed of the model, the batches and the design.
    """

    workload: str
    steps: int
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the study within its tier."""
        return f"{self.workload}-{self.steps}/{self.method}/{self.seed}"


@dataclass(frozen=True)
class Protocol:
    """One tier.

    Attributes:
        tier: name of the tier.
        about: description; not part of the hash.
        workloads: indices of the horizons of every workload.
        methods: names of the methods.
        seeds: seeds of models, batches and designs.
        budget: number of points for tuning a method with tunables, at least 1.
        design: how many of them are drawn in advance, from 1 to ``budget``.
        sampler: draws the others: "tpe", or "none" if there are none.
        lr, decay: smallest and largest value of a point.
        evaluations: number of validations of a run after its start.
        log_every: steps between lines of a run's log.

    Raises:
        ProtocolError: for an invalid value.
    """

    tier: str
    about: str
    workloads: dict[str, tuple[int, ...]]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: int
    design: int
    sampler: str
    lr: tuple[float, float]
    decay: tuple[float, float]
    evaluations: int
    log_every: int

    def __post_init__(self) -> None:
        """Check everything."""
        for what, names, known in (
            ("workload", [*self.workloads], [*WORKLOADS]),
            ("method", [*self.methods], [*METHODS]),
        ):
            for name in names:
                if name not in known:
                    raise ProtocolError(f"tier {self.tier!r}: {unknown(what, name, known)}")
        for name, indices in self.workloads.items():
            two = tuple(range(len(WORKLOADS[name].horizons)))
            self._check(
                f"workloads.{name}", indices, indices and {*indices} <= {*two}, f"indices of {list(two)}"
            )
            self._check(f"workloads.{name}", indices, _unique(indices), "every index once")
        self._check("workloads", list(self.workloads), self.workloads, "at least one")
        self._check("methods", self.methods, self.methods and _unique(self.methods), "every method once")
        whole = all(_whole(s, 0) for s in self.seeds)
        self._check(
            "seeds", self.seeds, self.seeds and whole and _unique(self.seeds), "distinct integers >= 0"
        )
        for field in ("budget", "evaluations", "log_every"):
            self._check(field, getattr(self, field), _whole(getattr(self, field), 1), "an integer >= 1")
        design = _whole(self.design, 1) and self.design <= self.budget
        self._check("design", self.design, design, f"an integer from 1 to the budget of {self.budget}")
        self._check("sampler", self.sampler, self.sampler in SAMPLERS, f"one of {', '.join(SAMPLERS)}")
        drawn = (self.sampler == "none") == (self.design == self.budget)
        self._check(
            "sampler",
            self.sampler,
            drawn,
            f"'none' where design is budget, else 'tpe' (design {self.design}, budget {self.budget})",
        )
        for field in ("lr", "decay"):
            ends = getattr(self, field)
            good = len(ends) == 2 and all(_number(x) for x in ends) and 0 < ends[0] < ends[1] < math.inf
            self._check(field, ends, good, "two numbers, 0 < least < largest")

    def _check(self, field: str, value: object, good: object, allowed: str) -> None:
        if not good:
            raise ProtocolError(f"tier {self.tier!r}: {field} must be {allowed}, got {value!r}")

    @classmethod
    def load(cls, tier: str, path: Path | None = None) -> Protocol:
        """Read a tier.

        Args:
            tier: name of the tier.
            path: path of the file; None is the package's own.

        Raises:
            ProtocolError: for a tier that is missing or invalid.
        """
        tiers = read_tiers(path)
        if tier not in tiers:
            raise ProtocolError(unknown("tier", tier, tiers))
        return cls.of(tier, tiers[tier])

    @classmethod
    def of(cls, tier: str, table: dict[str, Any]) -> Protocol:
        """Make a tier from its table.

        Raises:
            ProtocolError: for missing, unknown or invalid fields.
        """
        fields = [f for f in cls.__dataclass_fields__ if f != "tier"]
        for name in table:
            if name not in fields:
                raise ProtocolError(f"tier {tier!r}: {unknown('field', name, fields)}")
        missing = [f for f in fields if f not in table]
        if missing:
            raise ProtocolError(f"tier {tier!r}: {', '.join(missing)} missing")
        listed: dict[str, Any] = {
            f: tuple(table[f]) if isinstance(table[f], list) else table[f] for f in fields
        }
        for field in ("methods", "seeds", "lr", "decay"):
            if not isinstance(listed[field], tuple):
                raise ProtocolError(f"tier {tier!r}: {field} must be a list, got {listed[field]!r}")
        if not isinstance(table["workloads"], dict):
            raise ProtocolError(f"tier {tier!r}: workloads must be a table, got {table['workloads']!r}")
        for name, indices in table["workloads"].items():
            if not isinstance(indices, (list, tuple)):
                raise ProtocolError(f"tier {tier!r}: workloads.{name} must be a list, got {indices!r}")
        listed["workloads"] = {name: tuple(i) for name, i in table["workloads"].items()}
        return cls(tier, **listed)

    @property
    def content(self) -> dict[str, Any]:
        """The tier as plain data, from which :meth:`of` restores it."""
        table = asdict(self)
        del table["tier"]
        return json.loads(json.dumps(table))

    @cached_property
    def hash(self) -> str:
        """SHA-256 over name and content of the tier, apart from its description, in hexadecimal."""
        said = {k: v for k, v in self.content.items() if k != "about"}
        said |= {"lr": [float(x) for x in self.lr], "decay": [float(x) for x in self.decay]}
        canonical = json.dumps([self.tier, said], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def cells(self) -> list[Cell]:
        """All studies in order of work: methods innermost, so that a stop leaves complete comparisons."""
        return [
            Cell(name, WORKLOADS[name].horizons[h], method, seed)
            for seed in self.seeds
            for name, indices in self.workloads.items()
            for h in indices
            for method in self.methods
        ]

    def points(self, method: str) -> int:
        """Return the number of trials in a study of this method: the budget, or one if nothing is tuned."""
        return self.budget if METHODS[method].tunables else 1


def read_tiers(path: Path | None = None) -> dict[str, dict[str, Any]]:
    """Read a protocol file.

    Args:
        path: path of the file; None is the package's own.

    Returns:
        The table of every tier by name.

    Raises:
        ProtocolError: for a file that cannot be read or is not TOML.
    """
    path = PROTOCOL if path is None else path
    try:
        tiers = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProtocolError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{path} is not TOML: {error}") from error
    for name, table in tiers.items():
        if not isinstance(table, dict):
            raise ProtocolError(f"{path}: {name} must be the table of a tier, got {table!r}")
    return tiers


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Return a message about an unknown name, with the nearest known ones."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(known)}"
    return f"there is no {what} {name!r}; {hint}"


def _whole(x: object, least: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= least


def _number(x: object) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _unique(items: Iterable[object]) -> bool:
    items = list(items)
    return len(set(items)) == len(items)
