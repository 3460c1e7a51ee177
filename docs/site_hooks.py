"""What the site has beyond docs/: the reference of the sources, and the benchmarks' tables and pictures."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


@event_priority(100)
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay out the package as it is installed (controllers lie beside it), its docstrings in Markdown.

    Before mkdocstrings is set up, which passes over paths that are not there yet.
    """
    stage = ROOT / "build" / "docs"
    shutil.rmtree(stage, ignore_errors=True)
    for source, target in ((ROOT / "thermoopt", ""), (ROOT / "controllers", "controllers")):
        for path in source.rglob("*.py"):
            copy = stage / "thermoopt" / target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(in_markdown(path.read_text(encoding="utf-8")), encoding="utf-8")
    return config


def in_markdown(text: str) -> str:
    """Turn the roles and formulas of docstrings into what Markdown knows: links, ``$x$`` and ``$$x$$``."""
    text = re.sub(r":math:`([^`]+)`", lambda m: "$" + " ".join(m[1].split()) + "$", text)
    text = re.sub(
        r"^( *)\.\. math::(.*)\n((?:\1 +\S.*\n)*)",
        lambda m: f"{m[1]}\n{m[1]}$${' '.join((m[2] + m[3]).split())}$$\n",
        text,
        flags=re.MULTILINE,
    )
    return re.sub(r":(?:class|func|meth|data|attr|mod|exc):`(~?)([^`]+)`", _link, text)


def _link(role: re.Match[str]) -> str:
    shown = role[2].rsplit(".", 1)[1] if role[1] else role[2]
    return f"<autoref identifier='{role[2]}' optional><code>{shown}</code></autoref>"


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write formulas as MathML, which browsers show without a script."""
    return re.sub(
        r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>',
        _formula,
        html,
        flags=re.DOTALL,
    )


def _formula(found: re.Match[str]) -> str:
    kind = "inline" if found["tag"] == "span" else "block"
    return convert(unescape(found["tex"]), display=kind)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add ``benchmarks/results`` under the same path, and the changelog."""
    for path in sorted((ROOT / "benchmarks" / "results").rglob("*")):
        if path.suffix in (".md", ".png", ".svg"):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "changelog.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links out of docs/, as they are right in the repository, lead to what :func:`on_files` added."""
    return markdown.replace("](../benchmarks/", "](benchmarks/").replace(
        "](../CHANGELOG.md", "](changelog.md"
    )
