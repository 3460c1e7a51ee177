"""Self-contained HTML pages, mainly about a run: no scripts, no fonts, no requests."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from thermoopt.controllers import Action
from thermoopt.diagnosis import DiagnosticReport
from thermoopt.inspection.tables import NOTHING, Table
from thermoopt.plots import caption

__all__ = ["Picture", "document", "html_picture", "html_table", "page", "page_of_several"]

MAX_NAMES = 8
"""Layers named in a finding; of the others only the number is given."""

# Text on cards has a contrast of at least 4.5 : 1 in both colour schemes (WCAG 2.1, level AA).
_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --card: #f6f8fa; --high: #a40e26; --medium: #7d4e00; --low: #57606a; --well: #0a6640; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --soft: #9da7b3;
  --line: #30363d; --card: #161b22; --high: #ff8182; --medium: #e3b341; --low: #9da7b3; --well: #56d364; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; }
.soft { color: var(--soft); }
.card { border: 1px solid var(--line); border-left: .35rem solid var(--low); border-radius: .4rem;
  background: var(--card); padding: .6rem .9rem; margin: .6rem 0; overflow-wrap: anywhere; }
.HIGH { border-left-color: var(--high); } .HIGH b { color: var(--high); }
.MEDIUM { border-left-color: var(--medium); } .MEDIUM b { color: var(--medium); }
.well { border-left-color: var(--well); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; text-align: right; }
th { color: var(--soft); font-weight: 600; }
.left { text-align: left; }
figure { margin: 0; }
figure img { display: block; width: 100%; min-width: 56rem; height: auto; border-radius: .4rem; }
@media (max-width: 40rem) { th:first-child, td:first-child {
  white-space: normal; min-width: 9rem; max-width: 11rem; overflow-wrap: break-word; } }
summary { cursor: pointer; font-weight: 600; margin-top: 1rem; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        path: the PNG.
        title: shown above it.
        alt: describes it to those who cannot see it.
    """

    path: Path
    title: str
    alt: str


def page(
    name: str,
    about: str,
    report: DiagnosticReport,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    actions: Sequence[Action] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the page as one HTML string with its pictures embedded.

    Args:
        name: of the run.
        about: a line about its size.
        report: a :class:`~thermoopt.diagnosis.DiagnosticReport`.
        tables: shown in this order; the last one, which is long, is folded.
        pictures: PNG files.
        actions: of the controllers.
        notes: lines below ``about``.
    """
    *open_tables, folded = tables
    header = [
        f'<h1>{escape(name)}</h1><p class="soft">{escape(about)}</p>',
        *(f'<p class="soft">{escape(note)}</p>' for note in notes),
    ]
    parts = [
        '<h2 id="diagnosis">Diagnosis</h2>',
        *_findings(report),
        *(f"<h2>{escape(t.title)}</h2>{html_table(t)}" for t in open_tables),
        *(f"<h2>{escape(p.title)}</h2>{html_picture(p)}" for p in pictures),
    ]
    if actions:
        items = "".join(f"<li>{escape(caption(action))}</li>" for action in actions)
        parts.append(
            f"<details><summary>Actions in words: {len(actions)}</summary><ol>{items}</ol></details>"
        )
    parts.append(f"<details open><summary>{escape(folded.title)}</summary>{html_table(folded)}</details>")
    return document(f"{name}: thermoopt inspect", header, parts)


def page_of_several(
    name: str,
    notes: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    sections: Sequence[tuple[str, str, DiagnosticReport]],
) -> str:
    """Return the page of runs side by side.

    Args:
        name: of them all.
        notes: lines below it.
        tables: shown first.
        pictures: shown next.
        sections: name, size and diagnosis of each run.
    """
    header = [
        f"<h1>{escape(name)}</h1>",
        *(f'<p class="soft">{escape(note)}</p>' for note in notes),
    ]
    parts = [
        *(f"<h2>{escape(t.title)}</h2>{html_table(t)}" for t in tables),
        *(f"<h2>{escape(p.title)}</h2>{html_picture(p)}" for p in pictures),
    ]
    for title, about, report in sections:
        parts.append(f'<h2>{escape(title)}</h2><p class="soft">{escape(about)}</p>')
        parts += _findings(report)
    return document(f"{name}: thermoopt inspect", header, parts)


def document(title: str, header: Sequence[str], parts: Sequence[str]) -> str:
    """Return a page that loads no other resource.

    Args:
        title: of the window.
        header: HTML of the top.
        parts: HTML of the rest.
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # nothing outside the page is ever loaded
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'\">",
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style></head><body><header>",
            *header,
            "</header><main>",
            *parts,
            "</main></body></html>",
            "",
        ]
    )


def _findings(report: DiagnosticReport) -> list[str]:
    cards = [f'<div class="card{" well" if report.healthy else ""}"><p>{escape(report.summary)}</p></div>']
    for finding in report.findings:
        layers = list(finding.layers)
        more = f" and {len(layers) - MAX_NAMES} more" if len(layers) > MAX_NAMES else ""
        named = ", ".join(layers[:MAX_NAMES]) + more
        where = f"{finding.readings} readings" + (f"; layers: {named}" if layers else "")
        if finding.follows_from:
            where += f"; follows from {finding.follows_from.replace('_', ' ')}"
        kind = finding.kind.replace("_", " ")
        cards.append(
            f'<div class="card {escape(finding.confidence)}"><p><b>{escape(finding.confidence)}</b> '
            f"{escape(kind)}: {escape(finding.message)}</p><p>{escape(finding.advice)}</p>"
            f'<p class="soft">{escape(where)}</p></div>'
        )
    return cards


def html_table(table: Table) -> str:
    """Return a table as HTML, without its title; one wider than the window scrolls by itself."""
    if not table.rows:
        return f'<p class="soft">{NOTHING}</p>'

    def row(cells: Sequence[str], tag: str) -> str:
        left = [' class="left"' if i in table.left else "" for i in range(len(cells))]
        return "".join(f"<{tag}{c}>{escape(cell)}</{tag}>" for c, cell in zip(left, cells, strict=True))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    note = f'<p class="soft">{escape(table.note)}</p>' if table.note else ""
    head = f"<thead><tr>{row(table.head, 'th')}</tr></thead>"
    return f"<div {_scrolls(table.title)}><table>{head}<tbody>{body}</tbody></table></div>{note}"


def html_picture(picture: Picture) -> str:
    """Return a picture as HTML, without its title; the file is embedded in the page."""
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    return (
        f"<figure {_scrolls(picture.title)}>"
        f'<img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}"></figure>'
    )


def _scrolls(title: str) -> str:
    """HTML attributes of a part wider than a phone: it scrolls by itself, with the keyboard as well."""
    return f'class="scroll" tabindex="0" role="region" aria-label="{escape(title)}"'
