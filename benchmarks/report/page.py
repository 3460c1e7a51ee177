"""A report as Markdown and as one self-contained HTML page: the same sections in both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from thermoopt.inspection import Picture, Table, document, html_picture, html_table

__all__ = ["Section", "html", "markdown"]


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: its heading.
        parts: paragraphs of plain text, tables and pictures, in order.
    """

    title: str
    parts: Sequence[str | Table | Picture]


def markdown(title: str, about: Sequence[str], sections: Sequence[Section], folder: Path) -> str:
    """Return the report as Markdown.

    Args:
        title: of the report.
        about: lines below it.
        sections: in order.
        folder: of the file; pictures are named relative to it.
    """
    out = [f"# {title}", *about]
    for section in sections:
        out.append(f"## {section.title}")
        for part in section.parts:
            if isinstance(part, Table):
                out += [f"### {part.title}", part.markdown()]
            elif isinstance(part, Picture):
                out.append(f"![{part.alt}]({part.path.relative_to(folder).as_posix()})")
            else:
                out.append(part)
    return "\n\n".join(out) + "\n"


def html(title: str, about: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the report as one page of HTML; pictures are part of it.

    Args:
        title: of the report.
        about: lines below it.
        sections: in order; the page begins with links to them.
    """
    links = " · ".join(f'<a href="#{_anchor(s.title)}">{escape(s.title)}</a>' for s in sections)
    header = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="soft">{escape(line)}</p>' for line in about),
        f'<nav aria-label="sections"><p>{links}</p></nav>',
    ]
    parts: list[str] = []
    for section in sections:
        parts.append(f'<h2 id="{_anchor(section.title)}">{escape(section.title)}</h2>')
        for part in section.parts:
            if isinstance(part, Table):
                parts.append(f"<h3>{escape(part.title)}</h3>{html_table(part)}")
            elif isinstance(part, Picture):
                parts.append(html_picture(part))
            else:
                parts.append(f"<p>{escape(part)}</p>")
    return document(title, header, parts)


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
