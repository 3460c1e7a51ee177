"""Files written at the end of a run: picture, tables and diagnosis, in one folder."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from thermoopt.diagnosis import diagnose
from thermoopt.observer import Observer

__all__ = ["write_artifacts"]


def write_artifacts(observer: Observer, folder: Path, *, ended: bool = True) -> list[Path]:
    """Write a run's picture, tables and diagnosis.

    The files are ``dashboard.png`` (extra ``viz``), ``history.csv``, ``history.jsonl`` (for ``thermoopt
    inspect``), ``diagnosis.txt`` and ``diagnosis.json``. Existing files with these names are replaced.

    Args:
        observer: the observer that measured the run.
        folder: the folder to write to; created if missing.
        ended: whether training came to its end rather than being interrupted.

    Returns:
        The files written.

    Raises:
        OSError: if the folder cannot be written.

    Warns:
        RuntimeWarning: naming the files that could not be written and why: no reading, fewer than two for
            the picture, or no matplotlib. The others are written. Also if the run ended uncooled.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written, left_out = [], []

    readings = len(observer.history)
    if readings < 2:
        left_out.append(f"dashboard.png (it needs 2 readings, the run has {readings})")
    else:
        try:
            observer.plot_dashboard(folder / "dashboard.png")
            written.append(folder / "dashboard.png")
        except ImportError as error:
            left_out.append(f"dashboard.png ({error})")
    if readings == 0:
        left_out.append("history.csv and history.jsonl (the run has no reading)")
    else:
        written += [folder / "history.csv", folder / "history.jsonl"]
        observer.export_csv(written[-2])
        observer.export_jsonl(written[-1])

    report = diagnose(observer, ended=ended)
    written += [folder / "diagnosis.txt", folder / "diagnosis.json"]
    written[-2].write_text(f"{report}\n", encoding="utf-8")
    text = json.dumps(report.to_dict(), indent=2, allow_nan=False)
    written[-1].write_text(text + "\n", encoding="utf-8")

    for finding in report.findings:
        if finding.kind == "stopped_uncooled":
            warnings.warn(f"{finding.message} {finding.advice}", RuntimeWarning, stacklevel=2)
    if left_out:
        warnings.warn(f"{folder}: not written: {'; '.join(left_out)}", RuntimeWarning, stacklevel=2)
    return written
