"""diagnose: what is wrong with a run, how sure that is, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from thermoopt.diagnosis.evidence import MIN_READINGS, Evidence, Run, missing_members
from thermoopt.diagnosis.finding import CONFIDENCES, Finding, in_few
from thermoopt.diagnosis.kinds import FOLLOWS, KINDS
from thermoopt.physics import by_rate, in_words

if TYPE_CHECKING:
    from thermoopt.diagnosis.collapse_detector import CollapseDetector
    from thermoopt.diagnosis.entropy_split import EntropySplit

__all__ = ["DiagnosticReport", "diagnose"]

SURE = ("HIGH", "MEDIUM")
"""A finding of one of these confidences makes a run unhealthy."""


@dataclass(frozen=True)
class DiagnosticReport:
    """The findings of a diagnosis and the figures behind them; ``str()`` of it is text to print.

    Attributes:
        findings: sorted by confidence; empty if nothing was found.
        facts: the figures behind them: steps, readings, equilibrium fraction, dispersion and so on.
        sections: further text by title, from an entropy split or a collapse detector.
    """

    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]
    sections: Mapping[str, str] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether there are at least 10 readings and no finding has HIGH or MEDIUM confidence."""
        return self.facts["readings"] >= MIN_READINGS and not any(f.confidence in SURE for f in self.findings)

    @property
    def recommendations(self) -> list[str]:
        """What to change: one line per finding of HIGH or MEDIUM confidence."""
        return [f"[{f.confidence}] {f.advice}" for f in self.findings if f.confidence in SURE]

    @property
    def summary(self) -> str:
        """The diagnosis in one line: steps, readings, and the kinds of finding."""
        n = self.facts["readings"]
        steps, length = self.facts["steps"], self.facts.get("length")
        run = f"{steps} steps{'' if length is None else f' of {length}'}, {n} readings"
        if n < MIN_READINGS and not self.findings:
            return f"{run}: too few to judge (at least {MIN_READINGS} readings are needed)."
        if self.healthy:
            return f"{run}: nothing wrong was found."
        sure = [f for f in self.findings if f.confidence in SURE]
        if not sure:
            return f"{run}: too few to judge everything (at least {MIN_READINGS} readings are needed)."
        return f"{run}: {', '.join(f.kind.replace('_', ' ') for f in sure)}."

    def __str__(self) -> str:
        lines = [f"Diagnosis: {self.summary}"]
        lines += [f"  {finding}" + _because(finding) for finding in self.findings]
        lines += [f"  {name}: {_shown(value)}" for name, value in self.facts.items() if value is not None]
        for title, text in self.sections.items():
            lines += ["", f"{title}:", text]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for strict JSON."""
        return {
            "healthy": self.healthy,
            "summary": self.summary,
            "findings": [f.to_dict() for f in self.findings],
            "recommendations": self.recommendations,
            "facts": dict(self.facts),
            "sections": dict(self.sections),
        }

    def to_markdown(self) -> str:
        """Return the report as Markdown: a summary, a table of findings, the figures behind them."""
        lines = ["## Diagnosis", "", self.summary, ""]
        if self.findings:
            lines += ["| confidence | kind | layers | measured | advice |", "| --- | --- | --- | --- | --- |"]
            for f in self.findings:
                layers = in_few(f.layers) if f.layers else "all"
                cells = (f.confidence, f.kind.replace("_", " "), layers, f.message + _because(f), f.advice)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            lines.append("")
        lines += [f"- {name}: {_shown(value)}" for name, value in self.facts.items() if value is not None]
        for title, text in self.sections.items():
            lines += ["", f"### {title}", "", "```", text, "```"]
        return "\n".join(lines) + "\n"


def diagnose(
    observer: Run,
    splitter: EntropySplit | None = None,
    collapse_detector: CollapseDetector | None = None,
    *,
    ended: bool = False,
) -> DiagnosticReport:
    """Find what is wrong with a run, from what an observer recorded.

    Each kind of finding is one function in :data:`thermoopt.diagnosis.kinds.KINDS`; its docstring gives the
    value of its measure in a run with nothing wrong. A finding that follows from another is kept, as LOW. The
    diagnosis can be made at any time and changes nothing.

    Args:
        observer: an :class:`~thermoopt.Observer`, or a saved run (:class:`thermoopt.record.SavedRun`).
        splitter: an :class:`EntropySplit` whose report to append.
        collapse_detector: a :class:`CollapseDetector` whose recommendations to append; they may be newer
            than the observer's last reading.
        ended: whether the run is over, in which case stopping short of its planned length is a finding.
            The record of a process that has ended knows this by itself.

    Returns:
        The report; if there are no readings, it says why.

    Raises:
        TypeError: if ``observer`` is not a run.
    """
    missing = missing_members(observer)
    if missing:
        hint = "; Observer(model, optimizer) makes one" if hasattr(observer, "param_groups") else ""
        raise TypeError(
            f"observer must be an Observer or a SavedRun, got a {type(observer).__name__} without "
            f"{missing[0]}{hint}"
        )
    run = Evidence(observer, ended)
    found = [finding for kind in KINDS.values() if (finding := kind(run)) is not None]
    sections = {}
    if splitter is not None:
        sections["Entropy split"] = splitter.report()
    if collapse_detector is not None:
        sections["Collapse detector"] = (
            "\n".join(collapse_detector.get_recommendations()) or "no collapse ahead"
        )
    order = sorted(_explained(found), key=lambda f: CONFIDENCES.index(f.confidence))
    return DiagnosticReport(tuple(order), _facts(run, observer), sections)


def _explained(found: list[Finding]) -> list[Finding]:
    """Lower findings that follow from another to LOW; causes come before their consequences."""
    out: list[Finding] = []
    for finding in found:
        cause = next(
            (f.kind for f in out if f.confidence in SURE and finding.kind in FOLLOWS.get(f.kind, ())), None
        )
        out.append(finding if cause is None else replace(finding, confidence="LOW", follows_from=cause))
    return out


def _facts(run: Evidence, observer: Run) -> dict[str, Any]:
    facts: dict[str, Any] = {"steps": run.taken, "readings": run.n}
    if run.length is not None:
        facts["length"] = run.length
    if run.n == 0:
        facts["why"] = _why_none(run)
        return facts
    reading = observer.reading
    facts["sigma"] = _number(run.late_median("sigma"))
    facts["r"] = _number(run.late_median("r"))
    facts["rho_momentum"] = _number(run.late_median("rho_momentum"))
    facts["gaussianity"] = _number(run.late_median("gaussianity"))
    if reading is not None:
        facts["equilibrium_fraction"] = _number(reading.equilibrium_fraction())
        facts["dispersion"] = _number(reading.dispersion)
    for name, own in by_rate(observer.history.standings).items():
        facts[f"rate of {'all groups' if name == 'all' else name}"] = in_words(own)
    return facts


def _why_none(run: Evidence) -> str:
    if run.skipped.get("no_gradients"):
        return (
            "no parameter had a dense gradient: call loss.backward() before optimizer.step(); sparse "
            "gradients are not measured"
        )
    if run.skipped.get("closure"):
        return (
            "every measured step evaluated its closure more than once, or at weights that the optimizer had "
            "shifted (LBFGS, SAM): observe the inner optimizer instead, if there is one"
        )
    if run.taken == 0:
        return "no optimizer step was seen: train first, with the optimizer that the observer was given"
    return "no step has been measured yet: train for longer, or lower log_every"


def _because(finding: Finding) -> str:
    return f" (follows from {finding.follows_from.replace('_', ' ')})" if finding.follows_from else ""


def _number(x: float) -> float | None:
    return float(x) if x == x else None


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
